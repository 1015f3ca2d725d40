"""Outcomes in the plan's order, from sources that are read in any order, by chunk, or in one pass."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import TransportError
from shard_tool.build import reading
from shard_tool.build.plan import Plan, make_plan
from shard_tool.build.reading import Failure, Made, Outcome, Rejection, outcomes, samples_of
from shard_tool.build.record import content_of
from shard_tool.image.photo import Recipe
from shard_tool.sources.listing import Listing
from shard_tool.sources.protocol import Access, InputError, Known, SideFile

RECIPE = Recipe(16, "center", "jpeg", 95)


class Memory:
    """Inputs whose bytes are their number, in chunks of 6."""

    name = "memory"
    ignored: dict[str, int] = {}  # noqa: RUF012 (of a test)
    known = Known()
    origin: dict[str, str] = {}  # noqa: RUF012 (of a test)

    def __init__(self, count: int, access: Access, fails: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.listing = Listing((f"{number:05d}.jpg".encode(), 1) for number in range(count))
        self.access, self._fails = access, fails
        self.reads: list[int] = []

    def chunks(self) -> NDArray[np.int64]:
        return np.append(np.arange(0, len(self.listing), 6), len(self.listing))

    def read(self, item: int) -> bytes:
        self.reads.append(item)
        error = self._fails(item)
        if error is not None:
            raise error
        return str(item).encode()

    def read_through(self, items: Iterable[int]) -> Iterator[bytes | InputError]:
        before = -1
        for item in items:
            assert item > before, "they ascend"
            before = item
            try:
                yield self.read(item)
            except InputError as error:
                yield error

    def carried(self, item: int) -> dict[str, object]:
        return {}

    def side_files(self, file_name: str) -> list[SideFile]:
        return []


@pytest.fixture(autouse=True)
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "make_sample", lambda data, recipe: b"sample " + data)


def run(source: Memory, threads: int = 2, **options: int) -> dict[int, Outcome]:
    limit, sizes = options.get("limit"), {"shard_samples": 4, "group_samples": 16}
    plan = make_plan(source, None, None, val_fraction=0.2, seed=1, limit=limit, **sizes)
    groups = list(plan.iter_groups())
    order = [item for group in groups for shard in group.shards for item in shard.items.tolist()]
    return dict(zip(order, outcomes(source, [group.items for group in groups], RECIPE, threads), strict=True))


def items_of(plan: Plan) -> Iterator[NDArray[np.int64]]:
    return (group.items for group in plan.iter_groups())


@pytest.mark.parametrize("access", Access)
@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 120), threads=st.integers(1, 3), limit=st.integers(1, 100) | st.none())
def test_every_photo_has_its_own_outcome(access: Access, count: int, threads: int, limit: int | None) -> None:
    reading.make_sample = lambda data, recipe: b"sample " + data  # type: ignore[assignment]
    source = Memory(count, access)
    found = run(source, threads, **({} if limit is None else {"limit": limit}))
    assert found == {item: Made(b"sample %d" % item, content_of(b"%d" % item)) for item in found}
    assert len(found) == min(count, limit or count)
    assert sorted(source.reads) == sorted(found)


@pytest.mark.parametrize("access", [Access.BY_CHUNK, Access.ONE_PASS])
def test_a_source_is_read_in_its_own_order_within_a_group(access: Access) -> None:
    source = Memory(100, access)
    run(source)
    # A group is 16 items of chunks of 6.
    jumps = sum(after < before for before, after in zip(source.reads, source.reads[1:], strict=False))
    assert jumps <= 7
    if access is Access.ONE_PASS:
        assert source.reads == list(range(100))


def test_photos_that_are_done_are_told_before_they_are_yielded() -> None:
    source = Memory(40, Access.BY_CHUNK, lambda item: InputError("bad") if item % 10 == 3 else None)
    plan = make_plan(source, None, None, val_fraction=0, shard_samples=100, group_samples=400, seed=1, limit=None)
    told: list[int] = []
    made = outcomes(source, items_of(plan), RECIPE, 1, done=lambda done, rejected: told.append(rejected))
    first = next(made)
    assert isinstance(first, Made | Rejection)
    assert len(told) == 40
    assert sum(told) == 4
    made.close()


def test_a_rejection_is_an_outcome_like_any_other() -> None:
    for access in Access:
        source = Memory(20, access, lambda item: InputError("encrypted", "why") if item == 7 else None)
        found = run(source)
        assert found[7] == Rejection("encrypted", "why")
        assert sum(isinstance(outcome, Made) for outcome in found.values()) == 19


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TransportError("s3://b must be had; got 503.")])
def test_a_failed_read_fails_alone_or_ends_the_reading_of_its_group(error: Exception) -> None:
    text = getattr(error, "strerror", None) or str(error)
    alone = run(Memory(100, Access.ANY_ORDER, lambda item: error if item == 30 else None))
    assert [item for item, outcome in alone.items() if isinstance(outcome, Failure)] == [30]
    assert alone[30] == Failure(text)
    source = Memory(100, Access.ONE_PASS, lambda item: error if item == 30 else None)
    failed = {item: outcome for item, outcome in run(source).items() if isinstance(outcome, Failure)}
    assert failed.pop(30) == Failure(text)
    assert set(failed.values()) == {Failure("")}
    assert min(failed) == 31
    assert max(failed) < 42, "the groups after it are read"


def test_files_that_are_too_large_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for access in Access:
        source = Memory(10, access)
        source.listing = Listing((f"{n}.jpg".encode(), 1 << 40 if n == 4 else 1) for n in range(10))
        found = run(source)
        assert isinstance(found[4], Rejection)
        assert found[4].reason == "file too large"
        assert 4 not in source.reads
    # What a table says of its rows is a guess.
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 1)
    found = run(Memory(12, Access.BY_CHUNK))
    assert isinstance(found[11], Rejection)
    assert found[9] == Made(b"sample 9", content_of(b"9"))


def test_large_photos_that_are_read_beforehand_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BYTES_AHEAD", 40)
    lock, held, most = threading.Lock(), 0, 0

    class Heavy(Memory):
        def read(self, item: int) -> bytes:
            nonlocal held, most
            data = super().read(item).ljust(20)
            with lock:
                held += len(data)
                most = max(most, held)
            return data

    def sample(data: bytes, recipe: Recipe) -> bytes:
        nonlocal held
        with lock:
            held -= len(data)
        return b""

    monkeypatch.setattr(reading, "make_sample", sample)
    run(Heavy(64, Access.BY_CHUNK), 4)
    assert most <= 40 + 2 * 20


def test_some_outcomes_are_had_without_a_plan() -> None:
    source = Memory(20, Access.ONE_PASS)
    assert [made.sample for made in samples_of(source, [9, 2, 5], RECIPE)] == [b"sample 2", b"sample 5", b"sample 9"]


def test_the_samples_of_a_group_lie_in_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Memory(20, Access.BY_CHUNK)
    plan = make_plan(source, None, None, val_fraction=0, shard_samples=100, group_samples=400, seed=1, limit=None)
    made = outcomes(source, items_of(plan), RECIPE, 1, spool=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        next(made)
    assert len(list(outcomes(source, items_of(plan), RECIPE, 1, spool=tmp_path))) == 20
    assert not list(tmp_path.iterdir())
