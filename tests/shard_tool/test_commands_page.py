"""Every command of docs/commands.md does what the page says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.format import ShardSet
from shard_tool.cli import main
from shard_tool.labels.find import _SPLIT_NAMES, ATTRIBUTES_FILES, METADATA_FILES, PARTITION_FILES
from shard_tool.labels.tables import CLASS_COLUMNS, SPLIT_COLUMNS, TEXT_COLUMNS

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def commands() -> list[list[str]]:
    text = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL))
    return [shlex.split(line) for line in text.splitlines()]


def test_every_command_runs(
    tmp_path: Path, picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for number in range(24):
        path = tmp_path / "raw" / "pets" / ("cat", "dog")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, (70, 80)).save(path)
    rows = "".join(
        f"{number:05d},{('sad', 'glad')[number % 2]},{('train', 'val')[number % 3 // 2]}\n" for number in range(24)
    )
    (tmp_path / "labels.csv").write_text(f"photo,mood,split\n{rows}")
    monkeypatch.chdir(tmp_path)
    assert {words[1] for words in commands()} == {"make-shards", "inspect", "verify", "preview"}
    for words in commands():
        assert words[0] == "shard_tool"
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert ShardSet.open("shards/by-folder").classes == ("cat", "dog")
    assert ShardSet.open("shards/by-table").classes == ("glad", "sad")
    assert ShardSet.open("shards/by-table").splits["val"].total == 8
    assert {path.name for path in tmp_path.glob("*.*")} == {"labels.csv", "by-folder-preview.jpg", "cats.png"}


def test_the_page_names_what_the_code_takes() -> None:
    text = PAGE.read_text()
    columns = (*SPLIT_COLUMNS, *CLASS_COLUMNS, *TEXT_COLUMNS)
    for name in (
        *ATTRIBUTES_FILES,
        PARTITION_FILES[0],
        *METADATA_FILES[0],
        *METADATA_FILES[1],
        *_SPLIT_NAMES,
        *columns,
    ):
        assert f"`{name}`" in text
