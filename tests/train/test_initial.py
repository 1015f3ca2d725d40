"""A new run from other weights, and a finished run that is trained longer."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.helpers import make_shard_set
from tests.train.test_run import Run, error_line
from tests.train.tiny import CPU, tiny_config, tiny_state
from train.checkpoint import weights_sha256
from train.initial import begin_with
from train.pretrained import load_pretrained


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet) -> Run:
    return Run(tiny_toml, faces, tmp_path / "run")


@pytest.mark.parametrize("kind", ["run", "model", "checkpoint"])
def test_a_new_state_takes_the_averaged_weights_and_nothing_else(finished_run: Path, tmp_path: Path, kind: str) -> None:
    source = finished_run / "final" if kind == "model" else finished_run
    if kind == "checkpoint":
        source = Path(shutil.copytree(finished_run, tmp_path / "unfinished"))
        shutil.rmtree(source / "final")
    model, _, _ = load_pretrained(finished_run / "final", CPU)
    state = tiny_state(tiny_config())
    found = begin_with(state, str(source))
    expected = weights_sha256(model.state_dict())
    assert found == {"init_from": str(source), "init_position": 96, "weights_sha256": expected}
    assert weights_sha256(state.model.state_dict()) == weights_sha256(state.ema.state_dict()) == expected
    assert (state.position, state.updates) == (0, 0)
    assert not any(value.any() for values in state.optimizer.state.values() for value in values.values())


def test_another_shape_is_refused_with_the_difference(finished_run: Path) -> None:
    state = tiny_state(tiny_config(model={"latent": 5}))
    with pytest.raises(
        UserError, match=r"same shapes; got .* where decoder\.0\.weight is \(\d+, 4\) there and \(\d+, 5\)"
    ):
        begin_with(state, str(finished_run))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a run or a model; got .*, which holds neither"):
        begin_with(tiny_state(tiny_config()), str(tmp_path))


def test_a_run_from_other_weights_is_recorded_and_resumes_without_taking_them_again(
    run: Run, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(finished_run, tmp_path / "source"))
    assert run("--train.init-from", str(source)) == 0
    started = run.folder.read_ledger()[0]
    assert (started["init_from"], started["init_position"]) == (str(source), 96)
    assert f"beginning with the weights of {source}" in capsys.readouterr().out
    assert (run.folder.final / "README.md").read_text().count("`source`") == 1
    whole = run.summary["weights_sha256"]

    run.path.rename(run.path.with_name("whole"))
    assert run("--train.init-from", str(source), "--run.max-minutes", "1e-9") == 75
    shutil.rmtree(source)
    assert run() == 0  # not named again, and not there any more
    assert run.summary["weights_sha256"] == whole
    assert "init_from" not in run.folder.read_ledger()[-1]
    capsys.readouterr()
    assert run("--train.init-from", "elsewhere", "--train.total-images", "128") == 2
    assert f"train.init_from was {source}, now elsewhere" in error_line(capsys)


def test_a_finished_run_that_is_trained_longer_keeps_its_model_until_the_new_one_is_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--optim.schedule", "constant", "--train.total-images", "32") == 0
    before = load_pretrained(run.folder.final, CPU)[2]
    seen: list[int] = []
    original = run.folder.final.__class__.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith("final.partial"):
            assert not run.folder.final.exists()
        elif self == run.folder.final:
            seen.append(load_pretrained(self, CPU)[2]["position"])
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert run("--optim.schedule", "constant", "--train.total-images", "64") == 0
    assert (before["position"], seen) == (32, [32])
    assert load_pretrained(run.folder.final, CPU)[2]["position"] == 64
    assert sorted(path.name for path in run.path.glob(".*")) == []


def test_other_data_of_the_same_size_may_follow(run: Run, finished_run: Path, tmp_path: Path, tiny_toml: Path) -> None:
    other = make_shard_set(tmp_path / "other", samples={"train": 24}, size=32, seed=7)
    follow = Run(tiny_toml, other, tmp_path / "follow")
    assert follow("--train.init-from", str(finished_run), "--train.total-images", "32") == 0
