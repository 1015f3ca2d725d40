from pathlib import Path

import pytest

from pipeline.format import ShardSet
from tests.train.tiny import generation_of, state_sha256, tiny_config, tiny_state, updates
from train.checkpoint import read_generation, write_generation

UPDATES = 7


@pytest.mark.parametrize(
    ("sections", "micro_batch"),
    [
        ({"loss": {"objective": "optimal_sigma"}, "data": {"flip": True}}, 16),
        ({"loss": {"objective": "mse"}, "optim": {"clip_norm": 0.5}}, 16),
        ({"model": {"kind": "keras"}, "loss": {"objective": "mse"}}, 8),
    ],
    ids=["optimal_sigma", "mse", "keras"],
)
def test_resume_at_every_step_gives_the_same_tail(
    tmp_path: Path, faces: ShardSet, sections: dict[str, dict[str, object]], micro_batch: int
) -> None:
    config = tiny_config(**sections)
    state = tiny_state(config, micro_batch)
    folders, hashes, found = [], [], []
    folders.append(write_generation(tmp_path, generation_of(state)))
    for update in updates(state, config, faces, UPDATES):
        found.append(update)
        hashes.append(state_sha256(state))
        folders.append(write_generation(tmp_path, generation_of(state)))
    assert len(set(hashes)) == UPDATES
    for step in range(UPDATES):
        again = tiny_state(config, micro_batch)
        again.restore(read_generation(folders[step]))
        tail = [(update, state_sha256(again)) for update in updates(again, config, faces, UPDATES - step)]
        assert tail == list(zip(found[step:], hashes[step:], strict=True))
        assert again.audit == state.audit
