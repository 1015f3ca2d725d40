from collections.abc import Iterator

import pytest
import torch
from rich.console import Console
from torch import Tensor

from explore import pictures
from explore.pictures import HELD_BYTES, made_once

BATCHES = [
    torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    for count in (4, 4, 1)
]


class Making:
    """Counts how often a set is made."""

    def __init__(self) -> None:
        self.begun = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.begun += 1
        for batch in BATCHES:
            yield batch.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("held_bytes", [1, 2_000, HELD_BYTES])
def test_pictures_are_made_once_and_come_back_as_they_were(monkeypatch: pytest.MonkeyPatch, held_bytes: int) -> None:
    monkeypatch.setattr(pictures, "HELD_BYTES", held_bytes)
    making = Making()
    with made_once(making, 9, "making", Console()) as found:
        for _ in range(3):
            again = list(found)
            assert len(again) == len(BATCHES)
            assert all(torch.equal(one, batch) for one, batch in zip(again, BATCHES, strict=True))
    assert making.begun == 1


def test_what_was_not_read_to_its_end_is_made_again() -> None:
    making = Making()
    with made_once(making, 9, "making", Console()) as found:
        assert torch.equal(next(iter(found)), BATCHES[0])
        assert [len(batch) for batch in found] == [4, 4, 1]
        assert torch.equal(torch.cat(list(found)), torch.cat(BATCHES))
    assert making.begun == 2
