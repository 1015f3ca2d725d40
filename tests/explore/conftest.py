import contextlib
import io
from pathlib import Path

import pytest

from demo import draw_faces
from shard_tool.cli import main as shard_tool
from train.run import main as train

DRAWN = 2000
TOML = """
[model]
widths = [32, 64, 128]
latent = 64
[optim]
learning_rate = 1e-3
[train]
batch_size = 32
total_images = 60000
prior_images = 512
threads = 1
"""


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on drawn faces of 32 px, whose attributes are independent of each other; it takes a minute."""
    folder = tmp_path_factory.mktemp("drawn")
    draw_faces(folder / "raw", count=DRAWN, size=96)
    shards = folder / "drawn-32"
    options = ["--size=32", "--encode=raw", "--val-fraction=0.15", "--quiet", f"--out={shards}"]
    (folder / "drawn.toml").write_text(TOML)
    with contextlib.redirect_stdout(io.StringIO()):
        assert shard_tool(["make-shards", str(folder / "raw"), *options]) == 0
        assert train([str(folder / "drawn.toml"), f"--data.shards={shards}", f"--run.dir={folder / 'run'}"]) == 0
    return folder / "run"
