"""Several sets read as one: one order, weights in whole numbers, and refusals that say what to do."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline import Dataset, ShardSet, StreamingLoader
from pipeline.batch import digests
from pipeline.errors import ConfigError, ShardError, UserError
from tests.faults import FaultyServer
from tests.helpers import encode, make_key, make_shard_set


@pytest.fixture
def sets(tmp_path: Path) -> tuple[ShardSet, ShardSet]:
    """40 and 12 training images, 12 and 4 for validation, of other pictures."""
    first = make_shard_set(tmp_path / "a", seed=1, name="a")
    return first, make_shard_set(tmp_path / "b", samples={"train": 12, "val": 4}, seed=2, name="b", encoding="raw")


def seen(loader: StreamingLoader, batches: int) -> list[tuple[int, int]]:
    """(shard, row) of every sample of the next batches."""
    found = []
    for _ in range(batches):
        samples = next(loader)._samples
        found += list(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))
    return found


def test_every_epoch_holds_each_sample_as_often_as_its_set_is_repeated(sets):
    first, second = sets
    with StreamingLoader([first.folder, f"{second.folder}*3"], batch_size=4, threads=2, seed=5) as loader:
        assert loader.samples == 40 + 3 * 12
        for _ in range(3):
            keys = Counter()
            for _ in range(loader.samples // 4):
                batch = next(loader)
                keys.update((key, int(crc)) for key, crc in zip(batch.keys, batch._samples.crc32, strict=True))
            assert sorted(keys.values()) == [1] * 40 + [3] * 12
            names = {key for (key, _), times in keys.items() if times == 3}
            assert names == {make_key("train", number) for number in range(12)}


def test_images_are_those_of_their_sets_whatever_the_encoding(sets):
    first, second = sets
    alone = {}
    for one in sets:
        with StreamingLoader(one, batch_size=4, threads=1) as loader:
            for batch in loader.epoch():
                alone.update(zip(batch._samples.crc32.tolist(), batch.images.numpy(), strict=True))
    with StreamingLoader([first, second], batch_size=13, threads=2) as loader:
        for _ in range(12):  # Raw rows are read another way from the second time on.
            batch = next(loader)
            for crc32, image in zip(batch._samples.crc32.tolist(), batch.images.numpy(), strict=True):
                np.testing.assert_array_equal(image, alone[crc32])


def test_the_order_is_that_of_one_set_with_all_these_shards(sets, tmp_path):
    several = Dataset.open(sets)
    assert several.split("train").samples.tolist() == [8, 8, 8, 8, 8, 8, 4]
    with StreamingLoader(sets, batch_size=4, seed=3, threads=1) as loader:
        shards, rows = loader.order.locate(np.arange(52))
        assert seen(loader, 13) == list(zip(shards.tolist(), rows.tolist(), strict=True))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resume_at_every_step_gives_the_same_tail(sets, ranks):
    places = [str(sets[0].folder), f"{sets[1].folder}*2"]

    def loaders(start: int = 0) -> list[StreamingLoader]:
        return [
            StreamingLoader(places, batch_size=8, start=start, rank=rank, world_size=ranks, threads=1, lanes=2)
            for rank in range(ranks)
        ]

    def read(made: list[StreamingLoader], batches: int) -> list[tuple[int, int]]:
        found = [pair for _ in range(batches) for loader in made for pair in seen(loader, 1)]
        for loader in made:
            loader.close()
        return found

    whole = read(loaders(), 16)
    for step in range(0, 16, 3):
        assert read(loaders(8 * step), 16 - step) == whole[8 * step :]


def test_one_set_is_itself(sets):
    alone = Dataset.open(sets[0])
    assert alone.fingerprint == sets[0].fingerprint
    assert (alone.name, alone.location) == ("a", str(sets[0].folder))
    _, shard = alone.split("train")[2]
    assert shard == sets[0].split("train")[2]
    with (
        StreamingLoader(sets[0], batch_size=4, threads=1) as one,
        StreamingLoader(alone, batch_size=4, threads=1) as two,
    ):
        assert seen(one, 25) == seen(two, 25)
        assert one.state_dict() == two.state_dict()


def test_the_fingerprint_follows_from_those_of_the_sets_and_from_their_repeats(sets):
    first, second = (str(one.folder) for one in sets)
    variants = [[first], [second], [first, second], [second, first], [f"{first}*2", second], [first, f"{second}*2"]]
    assert len({Dataset.open(variant).fingerprint for variant in variants}) == len(variants)
    assert Dataset.open([f"{first}*1", second]).fingerprint == Dataset.open(variants[2]).fingerprint
    with StreamingLoader(variants[2], batch_size=4, threads=1) as loader:
        state = loader.state_dict()
    with (
        StreamingLoader(variants[5], batch_size=4, threads=1) as other,
        pytest.raises(ConfigError, match="same set and order"),
    ):
        other.load_state_dict(state)


def test_repeats_weigh_training_alone(sets):
    several = Dataset.open([sets[0].folder, f"{sets[1].folder}*3"])
    assert several.splits.keys() == {"train", "val"}
    assert several.split("train").total == 40 + 36
    assert several.split("val").total == 12 + 4
    assert several.once().split("train").total == 52


def test_what_opens_the_sets_again_does_so_from_any_folder(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several = Dataset.open(["a", "b*3"])
    assert several.location == "a, b*3"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Dataset.open(several.locations).fingerprint == several.fingerprint


def test_a_home_folder_and_odd_names_are_places_like_others(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Dataset.open("~/a").fingerprint == sets[0].fingerprint
    for name in ("a::b", "times*3", "s3:x"):
        os.rename(tmp_path / "a", tmp_path / name)
        assert Dataset.open(str(tmp_path / name)).fingerprint == sets[0].fingerprint, name
        os.rename(tmp_path / name, tmp_path / "a")
    with StreamingLoader("~/a", batch_size=4, threads=1, cache="~/cache") as loader:
        next(loader)
    assert list((tmp_path / "cache").glob("*.tar")), "no folder of the name ~"


def test_labels_count_where_they_are_the_same_everywhere(sets, tmp_path):
    other = make_shard_set(tmp_path / "c", attributes=("Smiling", "Hat"), seed=3)
    none = make_shard_set(tmp_path / "d", attributes=(), seed=4)
    assert Dataset.open(sets).attributes == ("Smiling",)
    with StreamingLoader(sets, batch_size=8, threads=1, labels=True) as loader:
        for _ in range(8):
            batch = next(loader)
            assert batch.labels.tolist() == [[int(key[-5:]) & 1] for key in batch.keys]
    for several in ([sets[0], other], [sets[0], none]):
        with StreamingLoader(several, batch_size=8, threads=1) as loader:
            next(loader)
        with pytest.raises(UserError, match="labels must be the same in all sets; got Smiling in"):
            StreamingLoader(several, batch_size=8, threads=1, labels=True)
    with pytest.raises(UserError, match="labels must be in the set"):
        StreamingLoader([none], batch_size=8, threads=1, labels=True)


def test_sets_that_do_not_go_together_are_refused(sets, tmp_path):
    large = make_shard_set(tmp_path / "large", size=32)
    first = str(sets[0].folder)
    for several, message in (
        ([first, large], "images of one size; got 16 px in .*a and 32 px in .*large"),
        ([first, sets[0]], r"named once; .* write '.*a\*2'"),
        ([], "must name a shard set; got an empty list"),
        ([f"{first}*0"], "1 to 10,000 times an epoch; got 0"),
        ([f"{first}*99999"], "1 to 10,000 times an epoch; got 99999"),
        (None, "folders, URLs or open sets; got None"),
        (7, "folders, URLs or open sets; got 7"),
        ([first, None], "folders, URLs or open sets; got None"),
        ("", "folders, URLs or open sets; got ''"),
        (f"{first}*x", "must be a finished shard set; got no such folder"),
    ):
        with pytest.raises(UserError, match=message):
            StreamingLoader(several, batch_size=8)


@pytest.mark.parametrize("cache", [5, "s3://bucket/cache"])
def test_a_cache_is_a_folder(sets, cache):
    with pytest.raises(ConfigError, match="cache must be a folder on this machine"):
        StreamingLoader(sets[0], batch_size=8, cache=cache)


def test_sets_on_disk_and_behind_a_url_are_read_together(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with StreamingLoader(sets, batch_size=4, threads=1) as loader:
        local = [next(loader).digests.tolist() for _ in range(20)]
    with (
        FaultyServer(sets[1].folder) as server,
        StreamingLoader([sets[0].folder, server.url], batch_size=4, threads=2, cache=tmp_path / "cache") as loader,
    ):
        assert [next(loader).digests.tolist() for _ in range(20)] == local
    copies = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert copies == {f"leanstream-{shard.sha256}" for one in sets for shard in one.split("train")}
    with (
        FaultyServer(sets[1].folder) as server,
        StreamingLoader([sets[0].folder, server.url], batch_size=4, threads=2, cache_bytes=1 << 30) as loader,
    ):
        assert [next(loader).digests.tolist() for _ in range(20)] == local
    copies = {path.stem for path in (tmp_path / "home" / "leanstream").glob("*.tar")}
    assert copies == {f"leanstream-{shard.sha256}" for shard in sets[1].split("train")}, "a local set needs no copies"


def test_a_damaged_sample_is_named_with_its_set(sets):
    path = sets[1].folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-10240])
    with (
        StreamingLoader(sets, batch_size=4, threads=1) as loader,
        pytest.raises(ShardError, match=r"b/train-000001\.tar"),
    ):
        seen(loader, 20)


def test_digests_tell_repeats_apart(sets):
    with StreamingLoader(f"{sets[1].folder}*2", batch_size=4, threads=1) as loader:
        total = sum(int(next(loader).digests.sum()) for _ in range(6)) % 2**64
        shards, rows = loader.order.locate(np.arange(24))
        crc32 = [loader._files.open([shard])[0].crc32.item(row) for shard, row in zip(shards, rows, strict=True)]
    assert total == int(digests(shards, rows, np.array(crc32)).sum()) % 2**64
    assert len(set(shards.tolist())) == 4


def test_a_set_of_100_000_shards_opens_in_numpy_and_not_in_objects(tmp_path):
    rows = [
        {"name": f"train-{n:06d}", "samples": 10_000, "bytes": 1 << 25, "sha256": f"{n:064x}"} for n in range(100_000)
    ]
    from pipeline.format import Split

    huge = ShardSet(tmp_path, "huge", 64, 3, "jpeg", {"train": Split.of(rows)}, fingerprint="x")
    dataset = Dataset((huge,), (1,))
    shards = dataset.split("train")
    assert shards.total == 10**9
    assert shards[99_999][1].name == "train-099999"


def test_encoded_and_raw_samples_are_filled_in_one_batch(sets):
    first, second = sets
    with StreamingLoader([first, second], batch_size=52, threads=1, prefetch=1) as loader:
        batch = next(loader)
        kinds = {first.encoding if shard < 5 else second.encoding for shard in batch._samples.shards.tolist()}
    assert kinds == {"jpeg", "raw"}
    assert encode(np.zeros((2, 2, 3), np.uint8), "raw").startswith(b"\x93NUMPY")


def test_the_description_says_nothing_of_the_machine(sets):
    described = json.loads((sets[0].folder / "shardset.json").read_text())
    assert "location" not in described
    assert str(sets[0].folder) not in json.dumps(described)
