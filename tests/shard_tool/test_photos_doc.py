"""docs/photos.md: its commands run, and it names every option and every reason."""

import re
import shlex
from pathlib import Path

import pytest

from shard_tool.cli import main
from shard_tool.image import photo, recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "photos.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_runs(command: list[str], tmp_path: Path, make_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "raw", 4, (140, 150))
    monkeypatch.chdir(tmp_path)
    assert command[0] == "shard_tool"
    assert main([*command[1:], "--quiet"]) == 0
    assert list((tmp_path / "shards").glob("*/shardset.json"))


def test_every_reason_is_explained() -> None:
    reasons = set()
    for path in (ROOT / "shard_tool").rglob("*.py"):
        pairs = "|return " if path.parent.name in ("image", "build") else ""
        pattern = rf'(?:PhotoError\(\s*|InputError\(\s*|Rejection\(\s*{pairs})"([a-z ]+)"[,)]'
        reasons |= set(re.findall(pattern, path.read_text()))
    assert len(reasons) >= 14
    assert {reason for reason in reasons if f"`{reason}`" not in TEXT} == set()


def test_every_limit_is_the_programs() -> None:
    assert f"{photo.MAX_FILE_BYTES >> 20} MiB" in TEXT
    assert f"{photo.MAX_PIXELS // 10**6} million pixels" in TEXT
    assert f"more than {photo._BIG_PIXELS // 10**6} million pixels go one at a time" in TEXT
    assert photo.MARGINS == {8: 2.3, 4: 2.3, 2: 2.0}
    assert all(f"`{crop}`" in TEXT for crop in recipe.CROPS)
