import gc
import itertools
import os
import sys
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
import torch

from pipeline import StreamingLoader
from pipeline.batch import Buffer, Layout, digests
from pipeline.counter import draw_words, normal
from pipeline.errors import ConfigError, UserError
from pipeline.format import SUFFIX, ShardSet
from pipeline.order import Order
from tests.helpers import make_attributes, make_image, make_key, make_shard_set

SHARD_SAMPLES = 8
ENCODINGS = sorted(SUFFIX)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One set of 40 training and 12 validation samples for each encoding; no test writes into them."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        encoding: make_shard_set(folder / encoding, encoding=encoding, attributes=("Smiling", "Male", "Young"))
        for encoding in ENCODINGS
    }


@pytest.fixture
def raw(sets):
    return sets["raw"]


def load(shards, batches, **settings):
    settings = {"batch_size": 8, "threads": 2} | settings
    with StreamingLoader(shards, **settings) as loader:
        return list(itertools.islice(loader, batches))


def pixels(batch) -> np.ndarray:
    return batch.images.permute(0, 2, 3, 1).numpy()


def numbers(shards, positions, split="train", **order) -> list[int]:
    """The numbers of the samples (of `make_shard_set`) at these positions."""
    found, rows = Order(shards.split(split).samples, **order).locate(np.asarray(positions))
    return (found * SHARD_SAMPLES + rows).tolist()


def same(one, other) -> bool:
    return (
        torch.equal(one.positions, other.positions)
        and torch.equal(one.images, other.images)
        and np.array_equal(one.digests, other.digests)
    )


# What a batch holds


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_batches_hold_the_images_of_the_order(sets, encoding):
    shards = sets[encoding]
    tolerance = {"raw": 0, "png": 0, "jpeg": 6, "webp": 24}[encoding]
    for number, batch in enumerate(load(shards, 11, seed=3)):  # Two epochs and a bit.
        assert batch.positions.tolist() == list(range(8 * number, 8 * number + 8))
        expected = np.stack([make_image("train", n, 16) for n in numbers(shards, batch.positions, seed=3)])
        assert abs(pixels(batch).astype(int) - expected).max() <= tolerance


def test_images_are_bytes_in_channels_last_memory(raw):
    images = load(raw, 1)[0].images
    assert images.dtype == torch.uint8
    assert images.shape == (8, 3, 16, 16)
    assert images.stride() == (16 * 16 * 3, 1, 16 * 3, 3)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_another_split_has_its_own_samples(raw):
    with StreamingLoader(raw, split="val", batch_size=12, threads=1) as loader:
        assert loader.samples == 12
        batch = next(loader)
    assert sorted(batch.keys) == [make_key("val", number) for number in range(12)]
    for number, image in zip(numbers(raw, batch.positions, "val"), pixels(batch), strict=True):
        np.testing.assert_array_equal(image, make_image("val", number, 16))


def test_keys_are_those_of_the_samples_and_can_be_asked_for_late(raw):
    batches = load(raw, 6, seed=1)  # The loader is closed by now.
    for batch in batches:
        assert batch.keys == tuple(make_key("train", number) for number in numbers(raw, batch.positions, seed=1))


def test_labels_are_the_attributes_of_the_samples(raw):
    for batch in load(raw, 5, labels=True):
        assert batch.labels.dtype == torch.int8
        expected = [list(make_attributes(n, raw.attributes).values()) for n in numbers(raw, batch.positions)]
        assert batch.labels.tolist() == expected


def test_labels_are_the_classes_of_the_samples(shard_set):
    shards = shard_set(attributes=(), classes=("a", "b", "c"))
    for batch in load(shards, 5, labels=True):
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == [number % 3 for number in numbers(shards, batch.positions)]


def test_labels_are_not_read_unless_asked_for(raw):
    assert load(raw, 1)[0].labels is None


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_half_of_the_images_are_mirrored_by_position(sets, encoding):
    shards = sets[encoding]
    mirrored = []
    for plain, flipped in zip(load(shards, 20, seed=4), load(shards, 20, seed=4, flip=True), strict=True):
        assert np.array_equal(plain.digests, flipped.digests)
        drawn = (draw_words(plain.positions.numpy(), "flip", 4) & 1).tolist()
        for straight, image, flip in zip(pixels(plain), pixels(flipped), drawn, strict=True):
            np.testing.assert_array_equal(image, straight[:, ::-1] if flip else straight)
        mirrored += drawn
    assert 55 < sum(mirrored) < 105
    assert mirrored[:40] != mirrored[40:80], "a sample is not mirrored alike in every epoch"


def test_flips_do_not_depend_on_ranks_or_the_start(raw):
    whole = {p: i for b in load(raw, 5, flip=True) for p, i in zip(b.positions.tolist(), pixels(b), strict=True)}
    for rank in range(2):
        for batch in load(raw, 3, flip=True, rank=rank, world_size=2, start=13):
            for position, image in zip(batch.positions.tolist(), pixels(batch), strict=True):
                np.testing.assert_array_equal(image, whole[position])


def test_noise_is_drawn_by_seed_and_position(raw):
    for batch in load(raw, 6, seed=3, noise=5):
        assert batch.noise.shape == (8, 5)
        assert batch.noise.dtype == torch.float32
        assert batch.noise.is_contiguous()
        np.testing.assert_array_equal(batch.noise.numpy(), normal(batch.positions.numpy(), 5, seed=3, stream="latent"))


def test_noise_is_not_drawn_unless_asked_for(raw):
    assert load(raw, 1)[0].noise is None


def test_noise_changes_nothing_else(sets):
    for one, other in zip(load(sets["jpeg"], 6), load(sets["jpeg"], 6, noise=3), strict=True):
        assert same(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 1},
        {"threads": 5, "prefetch": 3},
        {"batch_size": 96},
        {"batch_size": 7, "start": 3},
        {"rank": 1, "world_size": 2},
        {"rank": 3, "world_size": 4, "start": 9},
        {"flip": True, "labels": True},
    ],
    ids=str,
)
def test_noise_of_a_position_is_the_same_however_it_is_read(sets, settings):
    whole = torch.cat([batch.noise for batch in load(sets["jpeg"], 20, noise=6, seed=1)])
    for batch in load(sets["jpeg"], 1 if "batch_size" in settings else 8, noise=6, seed=1, **settings):
        assert torch.equal(batch.noise, whole[batch.positions])


def test_noise_of_a_position_is_the_same_after_seeking(raw):
    whole = torch.cat([batch.noise for batch in load(raw, 12, noise=6)])
    with StreamingLoader(raw, batch_size=8, threads=2, noise=6) as loader:
        state = loader.state_dict()
        for position in (40, 0, 83, 8):
            loader.load_state_dict(state | {"position": position})
            batch = next(loader)
            assert batch.positions[0] == position
            assert torch.equal(batch.noise, whole[position : position + 8])
    with StreamingLoader(raw, batch_size=8, threads=2, noise=2) as loader:  # A state says nothing of the noise.
        loader.load_state_dict(state)


# The same batches, however they are read


def test_a_fresh_loader_at_every_position_gives_the_same_tail(raw):
    samples = {
        position: (image, digest)
        for batch in load(raw, 12, seed=5, flip=True)
        for position, image, digest in zip(batch.positions.tolist(), pixels(batch), batch.digests, strict=True)
    }
    for start in range(82):
        batch = load(raw, 1, seed=5, flip=True, start=start, threads=1, prefetch=1)[0]
        assert batch.positions.tolist() == list(range(start, start + 8))
        for position, image, digest in zip(batch.positions.tolist(), pixels(batch), batch.digests, strict=True):
            np.testing.assert_array_equal(image, samples[position][0])
            assert digest == samples[position][1]


def test_position_says_where_to_start_again(raw):
    whole = load(raw, 9)
    with StreamingLoader(raw, batch_size=8, threads=2) as loader:
        assert loader.position == 0
        for _ in range(4):
            next(loader)
        position = loader.position
    assert position == 32
    for one, other in zip(load(raw, 5, start=position), whole[4:], strict=True):
        assert same(one, other)


def test_a_far_position_is_as_good_as_a_near_one(raw):
    far = 10**15 + 7
    batch = load(raw, 1, start=far)[0]
    assert batch.positions.tolist() == list(range(far, far + 8))
    expected = np.stack([make_image("train", number, 16) for number in numbers(raw, batch.positions)])
    np.testing.assert_array_equal(pixels(batch), expected)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_together_read_the_global_batches(raw, world_size, start):
    ranks = [load(raw, 11, rank=rank, world_size=world_size, start=start) for rank in range(world_size)]
    for number, whole in enumerate(load(raw, 11, start=start)):
        parts = [batches[number] for batches in ranks]
        assert all(len(part) == 8 // world_size for part in parts)
        assert all((part.positions % world_size == rank).all() for rank, part in enumerate(parts))
        order = torch.cat([part.positions for part in parts]).argsort()
        assert torch.equal(torch.cat([part.images for part in parts])[order], whole.images)
        assert torch.equal(torch.cat([part.positions for part in parts])[order], whole.positions)
        assert np.array_equal(np.concatenate([part.digests for part in parts])[order], whole.digests)


@pytest.mark.parametrize("settings", [{"threads": 1}, {"threads": 5}, {"prefetch": 1}, {"prefetch": 9}])
def test_threads_and_prefetch_do_not_change_the_batches(sets, settings):
    whole = load(sets["jpeg"], 4, batch_size=96, flip=True, labels=True)
    for one, other in zip(whole, load(sets["jpeg"], 4, batch_size=96, flip=True, labels=True, **settings), strict=True):
        assert same(one, other)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("batch_size", [1, 40, 90, 9000])
def test_batches_of_any_size_hold_the_same_samples(raw, batch_size):
    batch = load(raw, 1, batch_size=batch_size)[0]
    assert len(batch) == batch_size
    expected = numbers(raw, np.arange(batch_size))
    assert batch.positions.tolist() == list(range(batch_size))
    table = np.stack([make_image("train", number, 16) for number in range(40)])
    np.testing.assert_array_equal(pixels(batch), table[expected])


def test_window_and_lanes_change_the_order_and_nothing_else(raw):
    windowed = load(raw, 5, window=1, lanes=2)
    keys = [key for batch in windowed for key in batch.keys]
    assert sorted(keys) == [make_key("train", number) for number in range(40)]
    assert keys == [make_key("train", number) for number in numbers(raw, np.arange(40), window=1, lanes=2)]
    assert keys != [key for batch in load(raw, 5) for key in batch.keys]


# The audit


def test_digests_of_an_epoch_add_up_to_the_sum_from_the_index(sets):
    for shards in (sets["jpeg"], sets["raw"]):
        triples = [
            (shard, row, crc32)
            for shard, name in enumerate(shards.split("train").names)
            for row, crc32 in enumerate(_index(shards, name.decode())["image_crc32"].tolist())
        ]
        expected = digests(*np.array(triples, np.int64).T)
        assert len(set(expected.tolist())) == 40
        for epoch in range(3):
            batches = load(shards, 5, start=40 * epoch)
            handed_over = np.concatenate([batch.digests for batch in batches])
            assert handed_over.dtype == np.uint64
            assert sorted(handed_over.tolist()) == sorted(expected.tolist())
            assert handed_over.sum() == expected.sum()


def test_digests_are_pinned_for_good():
    one, two = digests(np.array([0, 3]), np.array([0, 7]), np.array([0, 0xFFFFFFFF])).tolist()
    assert (one, two) == (18006706356320727917, 6583006449607085971)


def test_digests_tell_shards_rows_and_bytes_apart():
    base = np.array([5, 6, 7])
    changed = [digests(*(base + np.eye(3, dtype=np.int64)[axis])[:, None]) for axis in range(3)]
    assert len({int(digest[0]) for digest in [digests(*base[:, None]), *changed]}) == 4


def _index(shards, name):
    from pipeline.format import Index

    return Index.from_bytes((shards.folder / f"{name}.index").read_bytes(), name).records


# Memory


def test_batches_that_are_kept_stay_as_they_were(raw):
    with StreamingLoader(raw, batch_size=8, threads=2, prefetch=2) as loader:
        kept = [next(loader) for _ in range(10)]
        copies = [batch.images.clone() for batch in kept]
        for _ in range(20):
            next(loader)
        assert len({batch.images.data_ptr() for batch in kept}) == 10
        for batch, copy in zip(kept, copies, strict=True):
            assert torch.equal(batch.images, copy)
    assert torch.equal(kept[0].images, copies[0]), "batches outlive the loader"


@pytest.mark.parametrize(
    "derive",
    [
        lambda images: images,
        lambda images: images[3],
        lambda images: images.split(2)[1],
        lambda images: images.permute(0, 2, 3, 1).flatten()[5:],
        lambda images: images.numpy(),
        lambda images: images.detach().view(torch.int8),
        lambda images: memoryview(images.permute(0, 2, 3, 1).numpy()),
    ],
    ids=["tensor", "one image", "micro-batch", "view of a view", "array", "other type", "memoryview"],
)
def test_whatever_is_left_of_a_batch_keeps_its_memory(raw, derive):
    with StreamingLoader(raw, batch_size=8, threads=2, prefetch=1) as loader:
        part = derive(next(loader).images)
        before = np.asarray(part).copy()
        gc.collect()
        for _ in range(12):
            next(loader)
        np.testing.assert_array_equal(np.asarray(part), before)


@pytest.mark.parametrize("derive", [lambda noise: noise, lambda noise: noise[3], lambda noise: noise[2:].numpy()])
def test_noise_alone_keeps_its_memory_and_that_of_the_images(raw, derive):
    with StreamingLoader(raw, batch_size=8, threads=2, prefetch=1, noise=7) as loader:
        kept, copies, places = [], [], set()
        for batch in itertools.islice(loader, 30):
            kept.append(derive(batch.noise))
            copies.append(np.asarray(kept[-1]).copy())
            places.add(batch.images.data_ptr())
        assert len(places) == 30
        for noise, copy in zip(kept, copies, strict=True):
            np.testing.assert_array_equal(np.asarray(noise), copy)
        images = next(loader).images
        before = images.clone()
        for _ in range(12):
            next(loader)
        assert torch.equal(images, before), "nor is noise drawn over images that are kept"


@pytest.mark.parametrize("margin", [0, 16])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_images_and_noise_lie_in_one_piece_of_memory(size, margin):
    layout = Layout((3, size, size, 3), 10, margin)
    buffer = Buffer(layout, pinned=False)
    assert buffer.array.nbytes == layout.bytes
    assert buffer.images.shape == (3, size, size, 3)
    assert buffer.noise.shape == (3, 10)
    begin, images, noise = (array.ctypes.data for array in (buffer.array, buffer.images, buffer.noise))
    assert images == begin + margin
    assert noise % 64 == 0
    assert images + buffer.images.nbytes <= noise < images + buffer.images.nbytes + 64
    assert noise + buffer.noise.nbytes == begin + buffer.array.nbytes


def test_noise_counts_as_memory_of_the_batches_ahead(raw):
    memory = 6 * 8 * (16 * 16 * 3)
    with StreamingLoader(raw, batch_size=8, ram_bytes=memory) as loader:
        assert loader.prefetch == 4
    with StreamingLoader(raw, batch_size=8, ram_bytes=memory, noise=16 * 16 * 3 // 4) as loader:
        assert loader.prefetch == 1


@pytest.mark.parametrize("prefetch", [1, 3])
def test_dropped_buffers_are_used_again(raw, prefetch):
    with StreamingLoader(raw, batch_size=8, threads=2, prefetch=prefetch) as loader:
        # The loop holds one batch while the next is made.
        seen = {batch.images.data_ptr() for batch in itertools.islice(loader, 60)}
        assert 1 < len(seen) <= prefetch + 2


def test_buffers_beyond_need_are_freed_once_their_batches_are_dropped(raw, monkeypatch):
    living: weakref.WeakSet[Buffer] = weakref.WeakSet()
    create = Buffer.__init__

    def counted(self, *arguments):
        create(self, *arguments)
        living.add(self)

    monkeypatch.setattr(Buffer, "__init__", counted)
    with StreamingLoader(raw, batch_size=8, threads=2, prefetch=2) as loader:
        kept = [next(loader) for _ in range(30)]
        assert len(living) >= 30
        del kept
        for _ in range(10):
            next(loader)
        gc.collect()
        assert len(living) <= 2 + 2
        last = next(loader)
    gc.collect()
    assert len(living) == 1, "a closed loader keeps no memory"
    del last
    gc.collect()
    assert len(living) == 0


def test_memory_is_flat_over_many_batches(sets):
    with StreamingLoader(sets["jpeg"], batch_size=8, threads=1, labels=True, flip=True) as loader:
        for _ in range(50):
            next(loader)
        tracemalloc.start()
        try:
            for _ in range(10):
                next(loader)
            gc.collect()  # It empties the interpreter's lists of free tuples too.
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(300):
                next(loader)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 64 << 10, "over 60 epochs of a set of 30 KiB of pixels"
        finally:
            tracemalloc.stop()


def test_open_shards_are_bounded(shard_set):
    shards = shard_set(samples={"train": 60}, shard_samples=1)
    with StreamingLoader(shards, batch_size=5, threads=2, window=2, lanes=2, prefetch=1) as loader:
        for batch in itertools.islice(loader, 24):
            assert len(batch.keys) == 5
            assert len(loader._files._files) <= 2 * 2 * 2 + 3 * 5, "two windows a lane, and what is being read"


# Life and death


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
def test_decode_threads_step_back_and_the_loop_does_not(raw):
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    with StreamingLoader(raw, batch_size=8, threads=2, nice=3) as loader:
        next(loader)
        decoding = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("decode")]
        found = {os.getpriority(os.PRIO_PROCESS, number) for number in decoding}
    assert found == {min(mine + 3, 19)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


def test_leaving_the_loader_stops_its_threads(raw):
    with StreamingLoader(raw, batch_size=64, threads=2) as loader:
        next(loader)
        assert decode_threads()
    assert not decode_threads()


def test_an_exception_in_the_loop_stops_the_threads_too(raw):
    def train() -> None:
        with StreamingLoader(raw, batch_size=64, threads=2) as loader:
            next(loader)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train()
    assert not decode_threads()


def test_a_closed_loader_says_so(raw):
    loader = StreamingLoader(raw, batch_size=8)
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(UserError, match="loader must be open"):
        next(loader)


def test_a_loader_that_was_never_read_closes(raw):
    StreamingLoader(raw, batch_size=8).close()
    assert not decode_threads()


def test_a_failure_while_planning_is_never_the_end_of_the_data(raw, monkeypatch):
    loader = StreamingLoader(raw, batch_size=8, threads=1)

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(loader.order, "locate", fail)
    with pytest.raises(MemoryError):
        next(loader)
    with pytest.raises(UserError, match="loader must be open"):
        next(loader)
    assert not decode_threads()


def test_moving_a_batch_to_where_it_is_changes_nothing(raw):
    batch = load(raw, 1, labels=True)[0]
    assert batch.to("cpu") is batch
    assert batch.to(torch.device("cpu")) is batch


def test_moving_a_batch_moves_its_tensors_and_keeps_the_rest(raw):
    batch = load(raw, 1, labels=True, noise=4)[0]
    moved = batch.to("meta")
    assert {moved.images.device.type, moved.labels.device.type, moved.noise.device.type} == {"meta"}
    assert moved.positions is batch.positions, "on the CPU, always"
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert moved.keys == batch.keys
    assert moved.digests is batch.digests


@pytest.mark.parametrize("part", [slice(2, 5), slice(6, 20), slice(0, 1), slice(None, None, 3)], ids=str)
def test_a_part_of_a_batch_is_a_batch_of_its_own(raw, part):
    batch = load(raw, 2, labels=True, noise=4)[1]
    chosen = batch.to("cpu", part)
    assert len(chosen) == len(range(8)[part])
    for name in ("images", "positions", "labels", "noise"):
        assert torch.equal(getattr(chosen, name), getattr(batch, name)[part])
    assert chosen.keys == batch.keys[part]
    assert np.array_equal(chosen.digests, batch.digests[part])
    moved = batch.to("meta", part)
    assert moved.images.shape == chosen.images.shape
    assert moved.noise.shape == chosen.noise.shape
    assert torch.equal(moved.positions, chosen.positions)
    assert moved.keys == chosen.keys


def test_a_part_of_a_batch_without_labels_and_noise_has_none(raw):
    chosen = load(raw, 1)[0].to("cpu", slice(2))
    assert chosen.labels is None
    assert chosen.noise is None


def test_a_part_that_is_the_whole_batch_is_that_batch(raw):
    batch = load(raw, 1, noise=4)[0]
    for part in (slice(None), slice(0, 8), slice(0, 100)):
        assert batch.to("cpu", part) is batch


# Arguments


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size must be at least 1; got 0"),
        ({"threads": 0}, ConfigError, "threads must be at least 1; got 0"),
        ({"prefetch": 0}, ConfigError, "prefetch must be at least 1; got 0"),
        ({"noise": -1}, ConfigError, "noise must be at least 0; got -1"),
        ({"start": -1}, ConfigError, "start must be at least 0; got -1"),
        ({"world_size": 0}, ConfigError, "world_size must be at least 1; got 0"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank must be below world_size 2; got 2"),
        ({"rank": -1}, ConfigError, "rank must be at least 0; got -1"),
        ({"world_size": 3}, ConfigError, "batch_size must be a multiple of world_size 3; got 8"),
        ({"window": 0}, ConfigError, "window must be at least 1 shard; got 0"),
        ({"lanes": 0}, ConfigError, "lanes must be at least 1; got 0"),
        ({"split": "test"}, UserError, r"split must be one of the set's \(train, val\); got 'test'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_plain_words(raw, settings, error, message):
    with pytest.raises(error, match=message):
        StreamingLoader(raw, **({"batch_size": 8} | settings))
    assert not decode_threads()


def test_labels_of_a_set_without_any_are_refused(shard_set):
    with pytest.raises(UserError, match="labels must be in the set; got none"):
        StreamingLoader(shard_set(attributes=()), batch_size=8, labels=True)


def test_a_folder_without_a_finished_set_is_refused(raw, tmp_path):
    with pytest.raises(UserError, match="must be a finished shard set; got no such folder"):
        StreamingLoader(tmp_path / "none", batch_size=8)
    with pytest.raises(UserError, match=r"must be a finished shard set; got a folder without shardset\.json"):
        StreamingLoader(tmp_path, batch_size=8)
    (tmp_path / "train-000000.tar").write_bytes((raw.folder / "train-000000.tar").read_bytes())
    with pytest.raises(UserError, match="must be a finished shard set; got tars without"):
        StreamingLoader(str(tmp_path), batch_size=8)


def test_a_folder_and_its_opened_set_give_the_same_batches(raw):
    for shards in (str(raw.folder), raw.folder, ShardSet.open(raw.folder)):
        assert same(load(shards, 1)[0], load(raw, 1)[0])
