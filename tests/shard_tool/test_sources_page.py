"""Every command of docs/sources.md that needs no server runs."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.format import ShardSet
from shard_tool.cli import main
from tests.shard_tool.sources.packs import tar_of, webdataset_of, zip_of
from tests.shard_tool.sources.tables import dataset_of, write_parquet

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"


def test_the_commands_of_the_page_run(
    tmp_path: Path,
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = make_folder(tmp_path / "raw", 12, (80, 90))
    zip_of(raw, tmp_path / "celeba-dataset.zip")
    zip_of(make_folder(tmp_path / "other", 3, (80, 90)), tmp_path / "more.zip")
    tar_of(raw, tmp_path / "faces.tar")
    tar_of(raw, tmp_path / "faces.tar.gz", "gz")
    for folder in ("webdataset", "parquet"):
        (tmp_path / folder).mkdir()
    webdataset_of(raw, tmp_path / "webdataset" / "train-0.tar")
    dataset = dataset_of(sorted(raw.rglob("*.jpg")))
    write_parquet(dataset, tmp_path / "parquet" / "train-0.parquet")
    dataset.save_to_disk(str(tmp_path / "saved"))
    commands = re.findall(r"^(shard_tool [^#\n]*)", PAGE.read_text().split("```")[1], re.MULTILINE)
    assert len(commands) == 8
    expected = [12] * 7 + [27]
    for number, (command, photos) in enumerate(zip(commands, expected, strict=True)):
        words = shlex.split(command)[1:]
        assert main([*words, "--size", "16", "--out", f"set-{number}"]) == 0, capsys.readouterr().err
        assert sum(split.total for split in ShardSet.open(Path(f"set-{number}")).splits.values()) == photos, command


def test_the_page_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make-shards", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in set(re.findall(r"--[a-z-]+", PAGE.read_text())):
        assert option in printed, option
