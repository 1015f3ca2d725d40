"""When a run counts as diverged, and what then stands."""

import math
import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import ShardSet
from tests.train.test_run import Run, after_update, error_line
from train.checkpoint import find_newest, generations, read_generation
from train.health import FACTOR, PATIENCE_UPDATES, Health
from train.session import Session

GREY = 0.08


def observed(*mse: float) -> Health:
    health = Health()
    for value in mse:
        health.observe(value, GREY)
    return health


def test_a_run_that_learns_and_then_explodes_has_diverged() -> None:
    learned = [GREY / (1 + update / 50) for update in range(500)]
    assert not observed(*learned).suspect
    assert observed(*learned, *[0.3] * 10).suspect
    assert not observed(*learned, *[0.3] * 10).diverged
    assert observed(*learned, *[0.3] * (PATIENCE_UPDATES + 20)).diverged


def test_a_run_that_explodes_in_its_first_updates_has_diverged() -> None:
    assert observed(*[0.3] * PATIENCE_UPDATES).diverged


@pytest.mark.parametrize("first", [0.004, 0.02])
def test_good_weights_that_get_worse_than_they_were_have_not_diverged(first: float) -> None:
    """Those of another run, under another objective."""
    assert not observed(*[first] * 10, *[0.06] * 500).suspect


def test_on_images_that_are_all_but_grey_an_untrained_model_may_be_worse() -> None:
    health = Health()
    for _ in range(500):
        health.observe(0.02, 0.001)
    assert not health.suspect


def test_a_spike_passes_and_leaves_nothing() -> None:
    health = observed(*[0.08] * 20, *[0.02] * 100, *[0.4] * 30)
    assert health.suspect
    for _ in range(30):
        health.observe(0.02, GREY)
    assert not health.suspect


def test_a_kl_warm_up_that_costs_most_of_what_was_learned_is_no_divergence() -> None:
    assert not observed(*[0.08] * 10, *[0.002] * 500, *[0.05] * 500).suspect


@given(st.lists(st.tuples(st.floats(1e-4, 0.25), st.floats(0, FACTOR)), max_size=200))
def test_no_run_that_stays_near_grey_or_below_it_is_suspect(updates: list[tuple[float, float]]) -> None:
    health = Health()
    for grey, share in updates:
        health.observe(0.999 * share * grey, grey)
    assert not health.suspect


def test_no_number_is_a_divergence() -> None:
    assert observed(*[0.1] * 20, math.nan).diverged


def test_it_comes_back_from_a_checkpoint() -> None:
    health = observed(*[0.1] * 20, *[0.4] * 10)
    assert Health(**asdict(health)) == health


@pytest.fixture
def run(tmp_path: Path, tiny_toml: Path, faces: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that saves at every update, and paints nothing."""
    monkeypatch.setattr("train.loop.validate", lambda *_: "")
    made = Run(tiny_toml, faces, tmp_path / "run")
    made.arguments += ["--checkpoint.save-every-minutes", "1e-9"]
    return made


def explode(session: Session) -> None:
    """From now on it answers with white."""
    with torch.no_grad():
        last = [module for module in session.state.model.decoder.modules() if hasattr(module, "bias")][-1]
        last.bias.fill_(60.0)  # type: ignore[operator,union-attr]


def poison(session: Session) -> None:
    with torch.no_grad():
        next(session.state.model.parameters())[0] = math.nan


def test_a_diverged_run_stops_and_the_last_good_generation_stands(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.health.PATIENCE_UPDATES", 5)
    with after_update(12, explode):
        assert run("--train.total-images", "640") == 1
    line = error_line(capsys)
    assert "must not get worse than a plain grey picture" in line
    assert "at update 1" in line or "at update 2" in line
    assert "--optim.learning-rate" in line
    newest, passed_over = find_newest(run.folder.checkpoints)
    assert newest is not None
    assert not passed_over
    generation = read_generation(newest)
    assert 0 < generation.state["updates"] <= 13
    assert not generation.state["health"]["bad_updates"]
    assert not run.folder.final.exists()


def test_a_signal_while_the_loss_looks_wrong_saves_and_prunes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with after_update(12, explode), after_update(16, lambda _: os.kill(os.getpid(), signal.SIGTERM)):
        assert run("--train.total-images", "640") == 0
    capsys.readouterr()
    states = [read_generation(path).state for path in generations(run.folder.checkpoints)]
    assert states[0]["health"]["bad_updates"]
    # At least both that were kept before; a slow machine has saved once more meanwhile.
    good = [state["health"]["bad_updates"] for state in states[1:]]
    assert len(good) >= 2
    assert not any(good)


def test_not_a_number_stops_and_names_the_update(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with after_update(3, poison):
        assert run() == 1
    line = error_line(capsys)
    assert "loss must stay finite; got loss nan" in line
    assert "at update 4 (position 48)" in line
    assert all(int(path.name) < 48 for path in generations(run.folder.checkpoints))


def test_weights_that_are_no_numbers_are_not_saved_on_request_either(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes between the update that spoilt them and the next one, which would notice."""
    run.arguments += ["--checkpoint.save-every-minutes", "60"]
    monkeypatch.setattr("train.loop._requests", lambda session, *_: 1 if session.state.updates == 2 else 0)
    with after_update(3, poison):
        assert run() == 1
    assert "weights must be finite to be saved; got others in model 'encoder.0.weight' after update 3" in error_line(
        capsys
    )
    assert all(int(path.name) < 48 for path in generations(run.folder.checkpoints))
