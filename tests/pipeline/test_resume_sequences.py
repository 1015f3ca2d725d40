"""Runs that are killed and go on, with other threads, processes, batches and micro-batches each time."""

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import StreamingLoader
from pipeline.format import ShardSet
from tests.helpers import make_shard_set

ROOT = Path(__file__).parents[2]
SAMPLES = 60
SEQUENCES = 100
POSITIONS = 150
"""Of each run: two epochs and a half."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("sequences")
    return make_shard_set(folder, samples={"train": SAMPLES}, shard_samples=7, size=8, encoding="raw")


def uninterrupted(shards: ShardSet, order: dict[str, Any], positions: int = POSITIONS) -> list[str]:
    """The keys of a run that nothing happens to."""
    with StreamingLoader(shards, batch_size=positions, threads=1, prefetch=1, **order) as loader:
        return list(next(loader).keys)


class Run:
    """A run as far as the loader is concerned: the keys of the updates that were applied, and the last checkpoint."""

    def __init__(self, shards: ShardSet, order: dict[str, Any], chance: random.Random) -> None:
        self.shards, self.order, self.chance = shards, order, chance
        self.keys: list[str] = []
        self.checkpoint = ""

    def live(self) -> None:
        """Start, or go on from the checkpoint; apply some updates; die within one."""
        chance = self.chance
        world_size = chance.choice([1, 1, 2, 3, 4])
        batch_size = world_size * chance.randint(1, 9)
        with contextlib.ExitStack() as stack:
            ranks = [
                stack.enter_context(
                    StreamingLoader(
                        self.shards,
                        batch_size=batch_size,
                        rank=rank,
                        world_size=world_size,
                        threads=chance.choice([1, 2, 5]),
                        prefetch=chance.choice([1, 2, 6]),
                        **self.order,
                    )
                )
                for rank in range(world_size)
            ]
            if self.checkpoint:
                for loader in ranks:
                    for _ in range(chance.choice([0, 0, 2])):  # Loaders that were read from before are as good.
                        next(loader)
                    loader.load_state_dict(json.loads(self.checkpoint))
            for _ in range(chance.randint(0, 8)):
                self.keys += update(ranks, micro_batch=chance.randint(1, 9))
                states = [json.dumps(loader.state_dict()) for loader in ranks]
                assert len(set(states)) == 1, "one state for all ranks"
                self.checkpoint = states[0]
            for loader in ranks[: chance.randint(0, world_size)]:
                next(loader)  # Killed within an update, which some ranks have begun.


def update(ranks: list[StreamingLoader], micro_batch: int) -> list[str]:
    """The keys of one global batch, in the order of their positions, from all ranks and micro-batches."""
    found: list[tuple[int, str]] = []
    for loader in ranks:
        batch = next(loader)
        assert batch.images.shape[0] == len(batch.keys)
        for positions, begin in zip(batch.positions.split(micro_batch), range(0, len(batch), micro_batch), strict=True):
            found += zip(positions.tolist(), batch.keys[begin : begin + micro_batch], strict=True)
    return [key for _, key in sorted(found)]


@pytest.mark.parametrize("number", range(SEQUENCES))
def test_the_keys_of_a_run_in_pieces_are_those_of_a_run_in_one(shards: ShardSet, number: int) -> None:
    chance = random.Random(number)
    order = {
        "seed": chance.randint(0, 9),
        "window": chance.choice([None, 1, 2, 5]),
        "lanes": chance.choice([None, 2, 3, 4]),
    }
    run = Run(shards, order, chance)
    lives = 0
    while len(run.keys) < POSITIONS or lives < 2:
        run.live()
        lives += 1
    assert run.keys == uninterrupted(shards, order, len(run.keys))


TRAINER = """
import json, os, sys
from pathlib import Path
from pipeline import StreamingLoader

folder, run, threads, batch_size, total = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:])
with StreamingLoader(folder, batch_size=batch_size, threads=threads, seed=4, window=2, lanes=2) as loader:
    state = run / "state.json"
    if state.exists():
        loader.load_state_dict(json.loads(state.read_text()))
    log = open(run / "keys", "r+" if state.exists() else "w")
    log.truncate(sum(len(line) for line in log.readlines()[: loader.position]) if state.exists() else 0)
    log.seek(0, os.SEEK_END)
    while loader.position < total:
        log.write("".join(f"{key}\\n" for key in next(loader).keys))
        log.flush()
        (run / "state.partial").write_text(json.dumps(loader.state_dict()))
        os.replace(run / "state.partial", state)
        print(loader.position, flush=True)
"""


def test_a_process_that_is_killed_goes_on_where_it_stood(shards: ShardSet, tmp_path: Path) -> None:
    total = 30 * SAMPLES
    for threads, batch_size, updates in ((1, 6, 13), (4, 10, 29), (2, 4, None)):
        command = [sys.executable, "-c", TRAINER, shards.folder, tmp_path, threads, batch_size, total]
        with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, text=True) as trainer:
            assert trainer.stdout is not None
            for _ in itertools.islice(trainer.stdout, updates):
                pass
            if updates is not None:
                trainer.send_signal(signal.SIGKILL)
            trainer.stdout.read()
        assert trainer.returncode == (0 if updates is None else -signal.SIGKILL)
    keys = (tmp_path / "keys").read_text().splitlines()
    assert len(keys) >= total
    assert keys == uninterrupted(shards, {"seed": 4, "window": 2, "lanes": 2}, len(keys))
