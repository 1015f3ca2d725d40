"""Runs on several shard sets, from any working directory, and on paths in the home folder."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from tests.train.test_run import error_line
from train.audit import main as audit
from train.checkpoint import MANIFEST_FILE, STATE_FILE, generations
from train.config import load_config
from train.run import main
from train.runfolder import RunFolder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> Path:
    """A working directory with two sets, `shards/faces` and `shards/rare`."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(faces.folder, folder / "shards" / "faces")
    make_shard_set(folder / "shards" / "rare", samples={"train": 12, "test": 4}, size=32, seed=1, name="rare")
    return folder


BOTH = ["--data.shards", "shards/faces", "shards/rare*2", "--train.total-images", "144"]
"""64 training samples in 9 shards; 144 images are two epochs and a quarter."""


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads(RunFolder(folder).summary_file.read_bytes()))


def test_several_sets_train_as_one_from_any_folder(
    sets: Path, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sets)
    whole, halves = tmp_path / "whole", sets / "runs" / "tiny-tiny+rare"
    assert main([str(tiny_toml), *BOTH, "--run.dir", str(whole)]) == 0
    for length in ("80", "144"):  # The first one ends within the second epoch.
        assert main([str(tiny_toml), *BOTH, "--optim.schedule", "constant", "--train.total-images", length]) == 0
    assert main([str(tiny_toml), *BOTH, "--optim.schedule", "constant", "--run.dir", str(tmp_path / "constant")]) == 0
    assert summary(halves)["weights_sha256"] == summary(tmp_path / "constant")["weights_sha256"]
    assert "64 training images from shards/faces, shards/rare*2" in capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    places = load_config(whole / "config.toml").data.shards
    assert places == (str(sets / "shards" / "faces"), f"{sets / 'shards' / 'rare'}*2")
    assert audit([str(whole)]) == 0
    assert "each of 144 samples was trained exactly once in its place" in capsys.readouterr().out
    assert audit([str(whole), "--shards", *places]) == 0
    assert audit([str(whole), "--shards", places[0]]) == 2

    capsys.readouterr()
    one = [str(tiny_toml), *BOTH, "--data.shards", places[0], "--run.dir", str(whole)]
    assert main(one) == 2
    line = error_line(capsys)
    assert f"got other data in {places[0]} than {places[0]}, {places[1]} had" in line
    assert f"--train.init-from {whole} --run.name NEW" in line


def test_a_wrong_sample_is_named_with_its_set(
    sets: Path, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the second reading of a repeated set had missed a sample that the first one had."""
    monkeypatch.chdir(sets)
    run = tmp_path / "run"
    assert main([str(tiny_toml), *BOTH, "--train.total-images", "64", "--run.dir", str(run)]) == 0
    change_state(run, lambda state: state["skipped"].append(0))
    capsys.readouterr()
    assert audit([str(run)]) == 1
    assert "was trained once too often" in capsys.readouterr().out
    named = RunFolder(run).read_ledger()[-1]["named"][0]
    assert named.startswith((f"epoch 0: {sets}/shards/faces: train-0", f"epoch 0: {sets}/shards/rare: train-0"))


def test_a_run_that_was_saved_with_one_set_goes_on(
    finished_run: Path, faces: ShardSet, tmp_path: Path, tiny_toml: Path
) -> None:
    """Before there were several, its name was one word, and there was no list of what was left out."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    for path in generations(run / "checkpoints")[:-1]:
        shutil.rmtree(path)

    def as_before(state: dict[str, Any]) -> None:
        state["config"]["data"]["shards"] = str(faces.folder)
        del state["skipped"], state["config"]["data"]["on_error"]

    change_state(run, as_before)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(f'[\n    "{faces.folder}",\n]', f'"{faces.folder}"'))
    assert load_config(run / "config.toml").data.shards == (str(faces.folder),)
    assert audit([str(run)]) == 0
    assert main([str(tiny_toml), "--data.shards", str(faces.folder), "--run.dir", str(run)]) == 0
    assert summary(run)["weights_sha256"] == summary(finished_run)["weights_sha256"]
    assert audit([str(run)]) == 0


def test_a_path_that_begins_with_a_tilde_lies_in_the_home_folder(
    tiny_toml: Path, faces: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    shutil.copytree(faces.folder, home / "shards")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    tables = '[run]\ndir = "~/runs/x"\n[data]\nshards = "~/shards"\ncache = "~/cache"\n'
    (home / "home.toml").write_text(tables + tiny_toml.read_text())
    assert main(["~/home.toml", "--train.total-images", "16"]) == 0
    assert main(["~/home.toml", "--train.total-images", "16", "--run.dir=~/runs/y", "--data.cache", "near"]) == 0
    assert (home / "runs" / "x" / "final").exists()
    assert (home / "runs" / "y" / "final").exists()
    assert (home / "cache").is_dir()
    assert [path.name for path in work.iterdir()] == ["near"]
    saved = load_config(home / "runs" / "y" / "config.toml").data
    assert (saved.shards, saved.cache) == ((str(home / "shards"),), str(work / "near"))
    assert audit(["~/runs/x", "--shards", "~/shards"]) == 0


def change_state(run: Path, change: Any) -> None:
    """Change the scalars of the newest generation, as if they had been saved so."""
    newest = generations(run / "checkpoints")[0]
    state = json.loads((newest / STATE_FILE).read_bytes())
    change(state)
    data = json.dumps(state).encode()
    manifest = json.loads((newest / MANIFEST_FILE).read_bytes())
    manifest[STATE_FILE] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newest / STATE_FILE).write_bytes(data)
    (newest / MANIFEST_FILE).write_text(json.dumps(manifest))
