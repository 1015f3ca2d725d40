"""TensorBoard through Accelerate, and what is said where a tracker is unknown, missing or failing."""

from pathlib import Path
from typing import Any

import pytest

import train.session
from pipeline.errors import ConfigError
from pipeline.format import ShardSet
from tests.train.test_run import Run
from train.trackers import check_trackers


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet) -> Run:
    made = Run(tiny_toml, faces, tmp_path / "run")
    made.arguments += ["--train.trackers", "tensorboard"]
    return made


def scalars(folder: Path) -> dict[str, list[int]]:
    """Steps by tag, as TensorBoard shows them."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    found = module.EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_gets_every_line_once_over_an_interruption(run: Run) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")
    assert run("--run.max-minutes", "1e-9") == 75
    assert run() == 0
    found = scalars(run.path / "leanstream")
    assert found["train/loss"] == [16, 32, 48, 64, 80, 96]
    assert found["train/psnr_db"] == found["train/images_per_s"] == found["train/loss"]
    assert found["val/psnr_db"] == [48, 80]


def test_an_unknown_tracker_is_refused_before_anything_begins(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--train.trackers", "clipboard") == 2
    line = capsys.readouterr().err
    assert "train.trackers must be among aim, clearml" in line
    assert "got 'clipboard'" in line
    assert not run.path.exists()


def test_a_tracker_that_is_not_installed_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.trackers, "get_available_trackers", list)
    with pytest.raises(ConfigError, match=r"must be installed; got 'comet_ml', which is not. pip install comet-ml\."):
        check_trackers(("comet_ml",))


def test_a_tracker_that_fails_does_not_stop_the_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard", reason="no tensorboard")

    def fail(*_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(train.session, "track", fail)
    assert run() == 0
    assert "warning: no more metrics for trackers, they failed (no network)" in capsys.readouterr().out
    assert run.events.count("trackers failed") == 1
    assert len(run.folder.read_metrics()) == 8
