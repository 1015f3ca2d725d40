from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import train.run
from pipeline.format import ShardSet
from tests.helpers import make_shard_set

TINY = """
[model]
widths = [8, 8, 8, 8]
latent = 4
[optim]
warmup_images = 64
[train]
batch_size = 16
total_images = 96
threads = 2
log_every_updates = 1
prior_images = 32
"""


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    """One thread, as tiny models want, and no Accelerate state left from the test before."""
    torch.set_num_threads(1)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session", autouse=True)
def _every_epoch_saves() -> Iterator[None]:
    """Tiny sets have epochs of milliseconds, and tests want to know where a run has saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop.EPOCH_SAVE_INTERVAL_S", 0.0)
        yield


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """40 training and 12 validation images of 32 px; read it only."""
    return make_shard_set(tmp_path_factory.mktemp("sets") / "faces", samples={"train": 40, "val": 12}, size=32)


@pytest.fixture
def tiny_toml(tmp_path: Path) -> Path:
    """A config file of a run that takes seconds."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> Path:
    """The folder of a finished run named `faces-32`; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished run")
    (folder / "tiny.toml").write_text(TINY)
    arguments = [str(folder / "tiny.toml"), "--data.shards", str(faces.folder)]
    assert train.run.main([*arguments, "--run.dir", str(folder / "faces-32")]) == 0
    return folder / "faces-32"
