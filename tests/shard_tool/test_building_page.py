"""Every command of docs/building.md does what the page says."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import Dataset
from shard_tool.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "building.md"


def test_every_command_runs(
    tmp_path: Path,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_folder(tmp_path / "raw", 12)
    monkeypatch.chdir(tmp_path)
    text = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL))
    build, again, more = [shlex.split(line) for line in text.splitlines()]
    printed = []
    for words in (build, again, more):
        if words is more:
            make_folder(tmp_path / "raw" / "more", 6, (90, 80))
        assert words[:2] == ["shard_tool", "make-shards"]
        assert main(words[1:]) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    assert "already complete" in printed[1]
    assert "shards/more is complete: 6 images" in printed[2]
    assert Dataset.open(["shards/faces", "shards/more"]).split("train").total >= 12


def test_the_page_names_every_option_that_it_explains(capsys: pytest.CaptureFixture[str]) -> None:
    options = set(re.findall(r"`(--[a-z-]+)", PAGE.read_text())) - {"--data"}  # The trainer's.
    assert len(options) > 8
    assert main(["make-shards", "--help"]) == 0
    printed = capsys.readouterr().out
    assert not {option for option in options if option not in printed}
