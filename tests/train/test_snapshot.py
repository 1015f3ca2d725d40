"""A copy behind the loop is of one moment, and lets the loop go on as soon as it can."""

import threading

import pytest
import torch

import train.device
from pipeline.format import ShardSet
from tests.train.tiny import CPU, generation_of, tiny_config, tiny_state, updates
from train.checkpoint import weights_sha256
from train.snapshot import Snapshot, Tensors
from train.update import apply_update


def sha256(parts: dict[str, Tensors]) -> str:
    return weights_sha256({f"{part}/{name}": each for part, tensors in parts.items() for name, each in tensors.items()})


@pytest.mark.parametrize("kind", ["conv", "residual", "keras"])
def test_a_copy_is_contiguous_equal_and_its_own_also_the_second_time(faces: ShardSet, kind: str) -> None:
    config = tiny_config(model={"kind": kind})
    state = tiny_state(config)
    snapshot = Snapshot(state.tensors(), CPU)
    memory: set[int] = set()
    for _ in range(2):
        list(updates(state, config, faces, 1))
        snapshot.begin(state.tensors(), state.unsteady())
        taken = snapshot.take()
        assert sha256(taken) == sha256(state.tensors())
        assert all(each.is_contiguous() for tensors in taken.values() for each in tensors.values())
        here = {each.data_ptr() for tensors in taken.values() for each in tensors.values()}
        assert here == (memory or here)  # the same memory every time
        memory = here
        assert memory.isdisjoint(each.data_ptr() for tensors in state.tensors().values() for each in tensors.values())
    before = sha256(taken)
    list(updates(state, config, faces, 1))
    assert sha256(taken) == before != sha256(state.tensors())


@pytest.mark.parametrize("kind", ["conv", "keras"])
def test_what_is_copied_beside_the_next_update_is_the_state_before_it(
    faces: ShardSet, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy begins as late as can be: when the next update is about to change the weights."""
    config = tiny_config(model={"kind": kind})
    state, undisturbed = tiny_state(config), tiny_state(config)
    list(updates(state, config, faces, 2))
    expected = sha256(state.tensors())
    snapshot = Snapshot(state.tensors(), CPU)
    snapshot.begin(state.tensors(), state.unsteady())
    found: list[str] = []
    writer = threading.Thread(target=lambda: found.append(sha256(snapshot.take())))
    waits: list[float] = []

    def settle() -> None:
        writer.start()
        waits.append(snapshot.wait())

    original = apply_update
    monkeypatch.setattr("tests.train.tiny.apply_update", lambda *args, **more: original(*args, **more, settle=settle))
    list(updates(state, config, faces, 1))
    writer.join()
    assert found == [expected]
    assert len(waits) == 1
    monkeypatch.undo()
    list(updates(undisturbed, config, faces, 3))
    assert sha256(state.tensors()) == sha256(undisturbed.tensors())


def test_nothing_is_waited_for_where_nothing_is_copied() -> None:
    assert Snapshot({"model": {"weight": torch.ones(2)}}, CPU).wait() == 0.0


def test_a_copy_that_fails_lets_the_loop_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    state = tiny_state(tiny_config())
    snapshot = Snapshot(state.tensors(), CPU)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(train.device.SideCopy, "copy", fail)
        snapshot.begin(state.tensors(), state.unsteady())
        with pytest.raises(torch.OutOfMemoryError):
            snapshot.take()
    assert snapshot.wait() == 0.0
    snapshot.begin(state.tensors(), state.unsteady())
    assert sha256(snapshot.take()) == sha256(generation_of(state).parts)


def test_two_copies_at_once_are_refused() -> None:
    state = tiny_state(tiny_config())
    snapshot = Snapshot(state.tensors(), CPU)
    snapshot.begin(state.tensors(), state.unsteady())
    with pytest.raises(AssertionError, match="one copy at a time"):
        snapshot.begin(state.tensors(), state.unsteady())
