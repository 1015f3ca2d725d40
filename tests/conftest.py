"""Fixtures that the tests of several packages share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.format import ShardSet
from tests.helpers import make_shard_set


@pytest.fixture
def shard_set(tmp_path: Path) -> Callable[..., ShardSet]:
    """A factory of small shard sets: `make_shard_set` in a fresh folder for each call."""
    made = 0

    def make(**settings: object) -> ShardSet:
        nonlocal made
        made += 1
        return make_shard_set(tmp_path / f"set-{made}", **settings)  # type: ignore[arg-type]

    return make
