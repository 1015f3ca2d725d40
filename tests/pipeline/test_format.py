import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ShardError, UserError
from pipeline.format import Index, Shard, ShardSet, Split, npy_bytes
from tests.pipeline.test_tar import write

SAMPLES = [("a/one", b"first image", b'{"source":"a/one.jpg"}'), ("two", b"x" * 600, b'{"source":"two.jpg"}')]


def shard_set(folder: Path, shards: list[Shard]) -> ShardSet:
    split = Split.of([vars(shard) for shard in shards])
    return ShardSet(folder, "faces", 64, 3, "jpeg", {"train": split}, ("Smiling",), parts=({"a": 1},), rejected=2)


def test_every_damage_to_an_index_is_noticed(tmp_path: Path) -> None:
    write(tmp_path)
    good = (tmp_path / "train-000000.index").read_bytes()
    with pytest.raises(ShardError, match="damaged"):
        Index.from_bytes(good[:-1], "x.index")
    with pytest.raises(ShardError, match="damaged"):
        Index.from_bytes(good[:-1] + bytes([good[-1] ^ 1]), "x.index")
    with pytest.raises(ShardError, match="got a file that is none"):
        Index.from_bytes(b"FOREIGN\0" + good[8:], "x.index")
    with pytest.raises(ShardError, match="got a file that is none"):
        Index.from_bytes(b"", "x.index")
    with pytest.raises(ShardError, match="index version 1; got 2"):
        Index.from_bytes(good[:8] + b"\2" + good[9:], "x.index")


def test_raw_members_of_one_shape_have_one_size() -> None:
    black, noise = np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert len(npy_bytes(black)) == len(npy_bytes(noise))
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_bytes(noise))), noise)


def test_a_set_that_is_saved_opens_as_it_was(tmp_path: Path) -> None:
    saved = shard_set(tmp_path, [write(tmp_path, "train-000000"), write(tmp_path, "train-000001")])
    saved.save()
    opened = ShardSet.open(tmp_path)
    assert opened.fingerprint == saved.computed_fingerprint()
    assert (opened.name, opened.attributes, opened.parts, opened.rejected) == ("faces", ("Smiling",), ({"a": 1},), 2)
    assert list(opened.split("train")) == list(saved.split("train"))
    assert opened.split("train").total == 4


def test_the_fingerprint_is_of_the_samples_alone(tmp_path: Path) -> None:
    shards = [write(tmp_path, "train-000000")]
    one, other = shard_set(tmp_path, shards), shard_set(tmp_path / "elsewhere", shards)
    assert one.computed_fingerprint() == other.computed_fingerprint()
    changed = shard_set(tmp_path, [write(tmp_path, samples=SAMPLES[:1])])
    assert changed.computed_fingerprint() != one.computed_fingerprint()


def test_a_set_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardSet.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a folder without shardset\.json"):
        ShardSet.open(tmp_path)
    write(tmp_path)
    with pytest.raises(UserError, match=rf"tars without shardset\.json.*: shard_tool index {tmp_path}"):
        ShardSet.open(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(UserError, match="an unfinished build"):
        ShardSet.open(tmp_path)
    with pytest.raises(UserError, match="a file"):
        ShardSet.open(tmp_path / "train-000000.tar")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "other", "version": 1}', '{"format": "leanstream-shardset", "version": 1}']
)
def test_a_damaged_description_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "shardset.json").write_text(text)
    with pytest.raises(ShardError, match=r"shardset\.json must"):
        ShardSet.open(tmp_path)


def test_an_edited_description_is_noticed(tmp_path: Path) -> None:
    shard_set(tmp_path, [write(tmp_path)]).save()
    path = tmp_path / "shardset.json"
    path.write_text(path.read_text().replace('"image_size": 64', '"image_size": 32'))
    with pytest.raises(ShardError, match="fingerprint"):
        ShardSet.open(tmp_path)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    opened = shard_set(tmp_path, [write(tmp_path)])
    with pytest.raises(UserError, match=r"\(train\); got 'val'"):
        opened.split("val")


def described(folder: Path) -> dict[str, Any]:
    """What a good set of two shards says of itself."""
    shard_set(folder, [write(folder, "train-000000"), write(folder, "train-000001")]).save()
    found: dict[str, Any] = json.loads((folder / "shardset.json").read_text())
    return found


ABSURD = [
    None,
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "\ud800",
    -1,
    0,
    1.5,
    -0.0,
    1e18,
    1 << 62,
    1 << 200,
    True,
    [],
    {},
    [[]],
    [7],
]


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize(
    "place",
    ["name", "image_size", "channels", "encoding", "attributes", "classes", "splits", "rejected", "parts",
     "fingerprint", "image_member", "splits.train", "splits.train.shards", "splits.train.shards.0",
     "splits.train.shards.0.name", "splits.train.shards.0.samples", "splits.train.shards.0.bytes",
     "splits.train.shards.0.sha256"],
)  # fmt: skip
def test_values_of_other_types_and_sizes_are_one_clear_error(tmp_path: Path, place: str, value: Any) -> None:
    data = described(tmp_path)
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    owner: Any = data
    for part in path:
        owner = owner[part]
    owner[last] = value
    (tmp_path / "shardset.json").write_text(json.dumps(data))
    message = ""
    try:
        opened = ShardSet.open(tmp_path)
    except ShardError as error:
        message = str(error)
    if message:
        assert "shardset.json must" in message
        message.encode()
    else:  # What changes nothing that a reader relies on.
        assert (opened.image_size, opened.channels, opened.encoding, len(opened.split("train"))) == (64, 3, "jpeg", 2)


def test_absurd_counts_allocate_nothing(tmp_path: Path) -> None:
    data = described(tmp_path)
    row = data["splits"]["train"]["shards"][0]
    for samples, size in ((1 << 60, 1 << 62), (1 << 40, 1 << 55), (1 << 30, 1 << 44), (4, 2048)):
        row.update(samples=samples, bytes=size)
        (tmp_path / "shardset.json").write_text(json.dumps(data))
        with pytest.raises(ShardError, match="in place of"):
            ShardSet.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 50_000, "1" * 10_000, "NaN", '"\\ud800"'])
def test_json_that_is_meant_to_hurt_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "shardset.json").write_text(text)
    with pytest.raises(ShardError, match=r"shardset\.json must be JSON"):
        ShardSet.open(tmp_path)


def test_two_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    data = described(tmp_path)
    data["splits"]["val"] = data["splits"]["train"]
    (tmp_path / "shardset.json").write_text(json.dumps(data))
    with pytest.raises(ShardError, match="names of shards, each once"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_offset", 1 << 63), ("image_offset", 1 << 40), ("image_size", (1 << 32) - 1), ("json_offset", 1 << 63),
     ("json_size", (1 << 32) - 1)],
)  # fmt: skip
def test_an_index_that_points_behind_its_tar_is_refused(tmp_path: Path, field: str, value: int) -> None:
    shard = write(tmp_path)
    index = Index.from_bytes((tmp_path / "train-000000.index").read_bytes(), "x")
    assert index.check(shard, "x", "Mend it") is index
    records = index.records.copy()
    records[field][1] = value
    with pytest.raises(ShardError, match="lie within its tar"):
        Index(records, index.tar_bytes, index.tar_sha256).check(shard, "x", "Mend it")
    records[:] = records[0]
    records["image_size"] = shard.bytes - 512
    with pytest.raises(ShardError, match="lie within its tar"):
        Index(records, index.tar_bytes, index.tar_sha256).check(shard, "x", "Mend it")
