from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.batch import digests
from pipeline.errors import CheckpointError
from pipeline.format import Index, ShardSet
from tests.train.tiny import FakeAccelerator, generation_of, state_sha256, tiny_config, tiny_state, updates
from train.checkpoint import Generation, read_generation, write_generation
from train.state import INITIAL_SCALE, SCALE_GROWTH_UPDATES, STATE_VERSION, LossScale


@pytest.mark.parametrize("kind", ["conv", "keras"])
def test_a_restored_state_is_equal_bit_for_bit_and_goes_on_equally(tmp_path: Path, faces: ShardSet, kind: str) -> None:
    config = tiny_config(model={"kind": kind}, optim={"weight_decay": 0.01})
    state = tiny_state(config)
    list(updates(state, config, faces, 3))
    state.loss_scale = LossScale(1024.0, 17)
    generation = generation_of(state, {"fact": 1}, elapsed_s=12.5)
    again = tiny_state(config)
    again.restore(read_generation(write_generation(tmp_path, generation)))
    assert state_sha256(again) == state_sha256(state)
    assert (again.position, again.updates, again.elapsed_s) == (48, 3, 12.5)
    assert (again.error, again.loss_scale, again.audit) == (state.error, state.loss_scale, state.audit)
    for parameter, other in zip(state.model.parameters(), again.model.parameters(), strict=True):
        one, two = state.optimizer.state[parameter], again.optimizer.state[other]
        assert set(one) == set(two)
        for key in one:
            assert one[key].equal(two[key])
            assert (one[key].dtype, one[key].stride()) == (two[key].dtype, two[key].stride())
        assert parameter.stride() == other.stride()
    tail = list(updates(state, config, faces, 3))
    assert list(updates(again, config, faces, 3)) == tail
    assert state_sha256(again) == state_sha256(state)


def test_audit_sums_of_full_epochs_are_those_of_the_index(faces: ShardSet) -> None:
    config = tiny_config()
    state = tiny_state(config)
    list(updates(state, config, faces, 5))
    assert state.position == 2 * 40
    expected = 0
    for number, shard in enumerate(faces.split("train")):
        records = Index.from_bytes((faces.folder / f"{shard.name}.index").read_bytes(), shard.name).records
        rows = np.arange(len(records))
        expected += sum(digests(np.full_like(rows, number), rows, records["image_crc32"].astype(np.int64)).tolist())
    assert state.audit == {0: expected % 2**64, 1: expected % 2**64}


def test_audit_sums_wrap_at_64_bits_and_go_to_the_epoch_of_each_sample() -> None:
    state = tiny_state(tiny_config())
    state.audit = {0: 2**64 - 1}
    state.count_samples(np.array([8, 9, 10, 11]), np.array([1, 2**63, 2**63, 5], np.uint64), 10)
    assert state.audit == {0: 2**63, 1: 2**63 + 5}


def test_only_the_first_process_carries_the_sums_on() -> None:
    state = tiny_state(tiny_config())
    state.restore_scalars(generation_of(tiny_state(tiny_config()), audit={0: 2**64 - 1}).state, first_process=False)
    assert state.audit == {}
    state.restore(generation_of(tiny_state(tiny_config()), audit={0: 2**64 - 1}))
    assert state.audit == {0: 2**64 - 1}


def test_another_version_or_another_model_is_refused() -> None:
    config = tiny_config()
    generation = generation_of(tiny_state(config))
    other = tiny_state(tiny_config(model={"latent": 5}))
    with pytest.raises(CheckpointError, match="must fit the model"):
        other.restore(generation)
    newer = Generation(generation.parts, {**generation.state, "version": STATE_VERSION + 1})
    with pytest.raises(CheckpointError, match=f"must be of version {STATE_VERSION}; got {STATE_VERSION + 1}"):
        tiny_state(config).restore(newer)


def test_missing_optimizer_tensors_are_refused(faces: ShardSet) -> None:
    config = tiny_config()
    state = tiny_state(config)
    list(updates(state, config, faces, 1))
    generation = generation_of(state)
    del generation.parts["optimizer"]
    with pytest.raises(CheckpointError, match="'optimizer'"):
        tiny_state(config).restore(generation)


def test_the_average_is_frozen_and_in_channels_last_as_the_model() -> None:
    state = tiny_state(tiny_config())
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())
    assert not state.ema.training
    weights = [value for value in state.model.parameters() if value.dim() == 4]
    assert weights
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)


def test_the_loss_scale_halves_at_once_and_doubles_after_many_good_updates() -> None:
    scale = LossScale()
    scale.overflowed()
    assert scale.value == INITIAL_SCALE / 2
    for _ in range(SCALE_GROWTH_UPDATES - 1):
        scale.applied()
    assert scale.value == INITIAL_SCALE / 2
    scale.applied()
    assert (scale.value, scale.good_updates) == (INITIAL_SCALE, 0)


@pytest.mark.parametrize("count", [0, 3])
def test_what_the_first_process_has_reaches_the_others_whole(
    faces: ShardSet, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes one after the other: the second receives what the first has sent."""
    config = tiny_config()
    first, second = tiny_state(config), tiny_state(tiny_config(run={"seed": 9}))
    list(updates(first, config, faces, count))
    assert state_sha256(first) != state_sha256(second)
    sent: list[torch.Tensor] = []
    named: list[object] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, _: sent.append(tensor.clone()))
    monkeypatch.setattr("train.state.broadcast_object_list", named.extend)
    before = state_sha256(first)
    first.share(FakeAccelerator(num_processes=2))  # type: ignore[arg-type]
    assert state_sha256(first) == before
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, _: tensor.copy_(sent.pop(0)))
    monkeypatch.setattr("train.state.broadcast_object_list", lambda found: found.__setitem__(0, named[0]))
    second.share(FakeAccelerator(num_processes=2, is_main_process=False))  # type: ignore[arg-type]
    assert not sent
    assert state_sha256(second) == before
