import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train.checkpoint
from pipeline.errors import CheckpointError, LeanstreamError, UserError
from train.checkpoint import (
    BackgroundWriter,
    Generation,
    generations,
    prune,
    read_generation,
    read_newest,
    snapshot,
    weights_sha256,
    write_generation,
)

FILES = ["manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"]


def generation(position: int) -> Generation:
    """Its numbers are those of its position."""
    torch.manual_seed(position)
    model = {"conv.weight": torch.randn(4, 3, 2, 2), "bias": torch.randn(4), "count": torch.tensor(position)}
    return Generation(
        {"model": model, "optimizer": {"bias.step": torch.tensor(3.0)}},
        {"position": position, "scale": 65536.0, "audit": {"0": f"{position:016x}"}},
    )


def assert_same(found: Generation | None, expected: Generation) -> None:
    assert found is not None
    assert found.state == expected.state
    assert {part: set(tensors) for part, tensors in found.parts.items()} == {
        part: set(tensors) for part, tensors in expected.parts.items()
    }
    for part, tensors in expected.parts.items():
        for name, value in tensors.items():
            assert found.parts[part][name].dtype == value.dtype
            assert found.parts[part][name].equal(value)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 0x10
    path.write_bytes(data)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_generation_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = write_generation(tmp_path, generation(64))
    assert made == tmp_path / "000000000064"
    assert_same(read_generation(made), generation(64))


def test_only_safetensors_and_json_are_written_readable_as_other_files_are(tmp_path: Path) -> None:
    made = write_generation(tmp_path, generation(64))
    assert sorted(path.name for path in made.iterdir()) == sorted(FILES)
    assert len({path.stat().st_mode for path in made.iterdir()}) == 1


def test_a_snapshot_is_contiguous_and_apart_from_what_it_copied() -> None:
    live = {"weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "step": torch.tensor(1.0)}
    before = {name: value.clone() for name, value in live.items()}
    taken = snapshot(live)
    for value in live.values():
        value.add_(1)
    assert all(value.is_contiguous() for value in taken.values())
    assert all(value.equal(before[name]) for name, value in taken.items())


def test_the_hash_of_weights_sees_values_names_and_shapes_but_not_order_or_memory_format() -> None:
    one, other = torch.randn(2, 3, 4, 4), torch.randn(2)
    reference = weights_sha256({"a": one, "b": other})
    assert weights_sha256({"b": other, "a": one.to(memory_format=torch.channels_last)}) == reference
    variants = [{"a": one, "c": other}, {"a": one.flatten(), "b": other}, {"a": one, "b": other + 1e-7}]
    assert reference not in [weights_sha256(variant) for variant in variants]


DAMAGE: dict[str, Callable[[Path], None]] = {
    **{f"flipped {name}": lambda folder, name=name: flip(folder / name, 20) for name in FILES},  # type: ignore[misc]
    **{f"missing {name}": lambda folder, name=name: (folder / name).unlink() for name in FILES},  # type: ignore[misc]
    **{f"half {name}": lambda folder, name=name: cut(folder / name) for name in FILES},  # type: ignore[misc]
    "empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text("{}"),
    "manifest that is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "empty folder": lambda folder: empty(folder),
    "a file in its place": lambda folder: replace_by_file(folder),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_generation_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    write_generation(tmp_path, generation(64))
    DAMAGE[damage](write_generation(tmp_path, generation(128)))
    found, passed_over = read_newest(tmp_path)
    assert_same(found, generation(64))
    assert len(passed_over) == 1
    assert "000000000128" in passed_over[0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES), st.integers(0), st.integers(1, 255))
def test_no_changed_byte_is_ever_loaded(tmp_path: Path, name: str, offset: int, change: int) -> None:
    path = write_generation(tmp_path, generation(64)) / name
    data = bytearray(path.read_bytes())
    offset %= len(data)
    whitespace = name == "manifest.json" and {data[offset], data[offset] ^ change} <= set(b" \t\n\r")
    data[offset] ^= change
    path.write_bytes(data)
    if whitespace:  # another space between the same values is no damage
        assert_same(read_generation(path.parent), generation(64))
    else:
        with pytest.raises(CheckpointError, match="passed over"):
            read_generation(path.parent)


def test_no_generation_is_none_and_no_whole_one_is_an_error(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "missing") == (None, [])
    assert read_newest(tmp_path) == (None, [])
    cut(write_generation(tmp_path, generation(64)) / "state.json")
    with pytest.raises(CheckpointError, match=r"must hold one whole generation.*--run.fresh"):
        read_newest(tmp_path)


def test_a_damaged_generation_of_the_same_position_is_replaced(tmp_path: Path) -> None:
    flip(write_generation(tmp_path, generation(64)) / "model.safetensors", 100)
    assert_same(read_generation(write_generation(tmp_path, generation(64))), generation(64))


def test_leftovers_of_an_interrupted_save_are_ignored_and_removed(tmp_path: Path) -> None:
    partial = tmp_path / "000000000128.partial"
    shutil.copytree(write_generation(tmp_path, generation(64)), partial)
    assert_same(read_newest(tmp_path)[0], generation(64))
    write_generation(tmp_path, generation(128))
    assert not partial.exists()
    partial.mkdir()
    prune(tmp_path, 2, 128)
    assert [path.name for path in generations(tmp_path)] == ["000000000128", "000000000064"]
    assert not partial.exists()


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for position in (8, 16, 24, 32):
        write_generation(tmp_path, generation(position))
    prune(tmp_path, 2, 32)
    assert [int(path.name) for path in generations(tmp_path)] == [32, 24]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 60), min_size=1, max_size=25), st.integers(1, 200), st.integers(1, 3))
def test_the_first_generation_of_every_span_stays_whenever_it_is_pruned(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], every: int, keep: int
) -> None:
    folder = tmp_path_factory.mktemp("milestones")
    seen: list[int] = []
    for step in steps:
        seen.append((seen or [0])[-1] + step)
        (folder / f"{seen[-1]:012d}").mkdir()
        prune(folder, keep, seen[-1], milestone_images=every)
    spans = {position // every for position in seen} - {0}
    milestones = {min(position for position in seen if position // every == span) for span in spans}
    assert {int(path.name) for path in generations(folder)} == milestones | set(seen[-keep:])


def test_what_is_being_read_stays_until_the_next_time(tmp_path: Path) -> None:
    for position in (8, 16, 24):
        write_generation(tmp_path, generation(position))
    prune(tmp_path, 1, 24, held={8})
    assert [int(path.name) for path in generations(tmp_path)] == [24, 8]
    prune(tmp_path, 1, 24)
    assert [int(path.name) for path in generations(tmp_path)] == [24]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_what_is_not_finite_is_never_written(tmp_path: Path, part: str, value: float) -> None:
    spoilt = generation(64)
    spoilt.parts[part]["bias" if part == "model" else "bias.step"].fill_(value)
    with pytest.raises(LeanstreamError, match=rf"must be finite to be saved; got others in {part} 'bias"):
        write_generation(tmp_path, spoilt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_later_generations_never_cost_the_new_one(tmp_path: Path, keep: int) -> None:
    """As after a fallback: 90 and 99 were passed over, the run went on from 16 and has saved 24 now."""
    for position in (8, 16, 90, 99):
        write_generation(tmp_path, generation(position))
    for position in (90, 99):
        cut(tmp_path / f"{position:012d}" / "manifest.json")
    writer = BackgroundWriter(tmp_path, keep)
    writer.start(lambda: generation(24))
    writer.wait()
    assert [int(path.name) for path in generations(tmp_path)] == [24, 16][:keep]
    assert_same(read_newest(tmp_path)[0], generation(24))


def test_nothing_older_goes_before_the_newer_one_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that lies: the bytes differ once they are read back."""
    write_generation(tmp_path, generation(64))

    def lying_replace(source: Path, target: Path) -> None:
        os.rename(source, target)
        if target.is_dir():
            flip(target / "model.safetensors", 50)

    monkeypatch.setattr(train.checkpoint.os, "replace", lying_replace)
    writer = BackgroundWriter(tmp_path, keep=1)
    writer.start(lambda: generation(128))
    with pytest.raises(CheckpointError, match="must match its manifest"):
        writer.wait()
    assert writer.last_position is None
    assert_same(read_newest(tmp_path)[0], generation(64))


def test_the_writer_tells_the_newest_verified_position(tmp_path: Path) -> None:
    with BackgroundWriter(tmp_path, 2) as writer:
        for position in (8, 16, 24):
            writer.start(partial(generation, position))
        writer.wait()
        assert writer.last_position == 24
        assert not writer.busy
    assert [int(path.name) for path in generations(tmp_path)] == [24, 16]


def test_no_write_outlives_the_writer(tmp_path: Path) -> None:
    def fail() -> None:
        with BackgroundWriter(tmp_path, 2) as writer:
            writer.start(lambda: generation(8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same(read_newest(tmp_path)[0], generation(8))


def test_an_error_of_a_write_surfaces_once_at_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    writer = BackgroundWriter(tmp_path / "checkpoints", 2)
    writer.start(lambda: generation(8))
    with pytest.raises(UserError, match="saving a checkpoint must succeed; got 'Not a directory'"):
        writer.start(lambda: generation(16))
    writer.wait()


def test_any_fault_of_a_write_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(train.checkpoint, "save_file", fail)
    writer = BackgroundWriter(tmp_path, 2)
    writer.start(lambda: generation(8))
    with pytest.raises(MemoryError):
        writer.wait()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What safetensors 0.8 raised on a full tmpfs.
        train.checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_with_a_remedy_and_leaves_the_older_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write_generation(tmp_path, generation(64))

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(train.checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"got 'No space left on device'.*Free some space"):
        write_generation(tmp_path, generation(128))
    assert [path.name for path in tmp_path.iterdir()] == ["000000000064"]
