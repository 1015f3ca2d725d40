"""The benchmark of explore: which libraries a command names, and a whole small run of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.explore import ARGUMENTS, IMAGES, LIMIT_MIB, WITHOUT, Row, libraries, table
from explore.cli import parse
from explore.commands import COMMANDS
from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from train.run import main as train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - WITHOUT))
def test_every_command_takes_the_arguments_that_it_is_measured_with(command):
    arguments = [argument.format(images=IMAGES, folder="somewhere") for argument in ARGUMENTS.get(command, ())]
    parse([command, "--run", "runs/demo", *arguments]).check()


def test_there_are_no_arguments_for_commands_that_are_gone():
    assert set(ARGUMENTS) | WITHOUT <= set(COMMANDS)


def test_libraries_are_what_loaded_files_of_ours_import_from_loaded_modules():
    loaded = {"torch", "numpy", "openTSNE", "matplotlib", "scipy", "json", "explore.latent.tsne", "train.models"}
    found = {*libraries(loaded), *libraries({*loaded, "huggingface_hub"})}
    assert {"torch", "torch:Tensor", "numpy", "openTSNE", "huggingface_hub:ModelHubMixin"} <= found
    assert not any(name.startswith(("json", "explore", "scipy", "matplotlib")) for name in found)
    assert "openTSNE" not in libraries(loaded - {"explore.latent.tsne"})
    assert "huggingface_hub:ModelHubMixin" not in libraries(loaded)


def test_a_row_over_the_limit_stands_out():
    rows = [Row("sample", 64, 100.0, 100.0 + LIMIT_MIB, 1.0), Row("score", 64, 100.0, 101.4 + LIMIT_MIB, 2.0)]
    assert table(rows).splitlines()[2:] == [
        "| sample | 64 | 100 | 250 | 150 | 150 | 1.0 |",
        "| score | 64 | 100 | 251 | **151** | 150 | 2.0 |",
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shards: ShardSet = make_shard_set(tmp_path / "faces", size=32)
    (tmp_path / "tiny.toml").write_text("[model]\nwidths = [8, 8, 8, 8]\nlatent = 4\n[train]\nbatch_size = 16\n")
    options = ["--data.shards", str(shards.folder), "--run.dir", str(tmp_path / "run"), "--train.total-images", "16"]
    assert train([str(tmp_path / "tiny.toml"), *options, "--train.prior-images", "16"]) == 0
    return tmp_path / "run"


def test_a_run_is_measured_without_being_changed(run):
    before = sorted(run.rglob("*"))
    options = ["--work", run.parent / "not" / "yet", "--commands", "reconstruct", "--images", "8"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/explore.py", "--runs", run, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    row = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert row[:2] == ["reconstruct", "32"]
    alone, peak, over, limit, seconds = map(float, row[2:])
    assert 50 < alone < peak
    assert abs(peak - alone - over) <= 1
    assert limit == LIMIT_MIB
    assert seconds > 0
    assert sorted(run.rglob("*")) == before
