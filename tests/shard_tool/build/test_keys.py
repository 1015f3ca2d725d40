import hashlib
import os
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import MAX_KEY_BYTES
from pipeline.tar import ShardWriter, member_name, scan_tar, split_member_name
from shard_tool.build.keys import Keys, in_share
from shard_tool.sources.listing import Listing


def keys(*paths: str) -> list[str]:
    encoded = sorted(os.fsencode(path) for path in paths)
    made = Keys(Listing([(path, 1) for path in encoded]))
    by_path = {path: made[item] for item, path in enumerate(encoded)}
    return [by_path[os.fsencode(path)] for path in paths]


def hashed(stem: str, path: str, digits: int = 8) -> str:
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:digits]}"


def test_a_key_is_the_path_without_its_extension() -> None:
    assert keys("a/b/000001.jpg", "plain.webp") == ["a/b/000001", "plain"]


def test_characters_that_readers_trip_over_are_replaced() -> None:
    assert keys("v1.2/fake(10).jpg", "my photo.b.png", "x\n/\t.jpg", "a#1.jpg") == [
        "v1_2/fake_10_",
        "my_photo_b",
        "x_/_",
        "a_1",
    ]


def test_letters_of_every_script_stay_and_are_composed() -> None:
    names = ["张三/0", "Ωμέγα", "żółw", "हिन्दी", "ภาษาไทย", "한국", "العربية", "שלום٣"]
    assert keys(*(f"{name}.jpg" for name in names)) == names
    assert keys(*(unicodedata.normalize("NFD", f"{name}.jpg") for name in names)) == names


def test_names_that_a_reader_would_skip_are_not_skipped() -> None:
    paths = ["__x__/a.jpg", "a/__b.jpg", "._c.jpg", "/d//e.jpg", "😀😀😀😀/f.jpg", "..g.jpg"]
    assert keys(*paths) == ["_x__/a", "a/_b", "_c", "d/e", "_/f", "_g"]
    assert keys("____/a.jpg", "。。/a.jpg") == [hashed("_/a", "____/a.jpg"), hashed("_/a", "。。/a.jpg")]


def test_rows_of_a_table_are_told_apart_by_their_numbers() -> None:
    assert keys("train-0.parquet#07", "train-0.parquet#11") == ["train-0_07", "train-0_11"]


def test_all_members_of_a_collision_get_a_hash() -> None:
    assert keys("a.jpg", "a.png", "b.jpg") == [hashed("a", "a.jpg"), hashed("a", "a.png"), "b"]


def test_keys_that_are_one_file_where_cases_are_the_same_get_a_hash() -> None:
    for one, other in (("Cat/1", "cat/1"), ("STRASSE", "straße"), ("Ä", "ä")):
        assert keys(f"{one}.jpg", f"{other}.jpg") == [hashed(one, f"{one}.jpg"), hashed(other, f"{other}.jpg")]
    assert keys("Cat/1.jpg", "cat/2.jpg") == ["Cat/1", "cat/2"]


def test_composed_and_decomposed_names_get_a_hash() -> None:
    one, other = "é.jpg", unicodedata.normalize("NFD", "é.jpg")
    assert keys(one, other) == [hashed("é", one), hashed("é", other)]


def test_names_that_are_not_utf8_are_told_apart() -> None:
    made = keys("\udce9.jpg", "\udce8.jpg")
    assert len(set(made)) == 2
    assert all(re.fullmatch("_-[0-9a-f]{8}", key) for key in made)


def test_a_name_that_looks_like_another_ones_hash_is_kept_apart() -> None:
    decoy = f"{hashed('a', 'a.jpg')}.jpg"
    assert len(set(keys("a.jpg", "a.png", decoy))) == 3


def test_equal_hashes_get_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    same = "0" * 8

    class Digest:
        def __init__(self, path: bytes) -> None:
            self.path = path

        def hexdigest(self) -> str:
            return same + hashlib.md5(self.path).hexdigest()

    monkeypatch.setattr("shard_tool.build.keys.hashlib.sha256", Digest)
    made = keys(*(f"{'x' * 90}{number}.jpg" for number in range(3)))
    assert len(set(made)) == 3
    assert all(re.fullmatch(f"x+-{same}[0-9a-f]{{8}}", key) and len(key) == MAX_KEY_BYTES for key in made)


def test_long_names_are_cut_at_a_character_and_get_a_hash() -> None:
    path = "x" * 100 + ".jpg"
    assert keys(path) == [hashed("x" * 71, path)]
    assert keys("y" * 80 + ".jpg") == ["y" * 80]
    wide = "张" * 40 + ".jpg"
    assert keys(wide) == [hashed("张" * 23, wide)]


@given(
    st.lists(
        st.text("aA_ä .-_/é1張́#\n", min_size=1, max_size=12)
        .map(lambda name: name.strip("/") + ".jpg")
        .filter(lambda path: "//" not in path),
        unique=True,
        max_size=20,
    )
)
def test_keys_are_unique_and_safe(paths: list[str]) -> None:
    made = keys(*paths)
    assert len({key.casefold() for key in made}) == len(paths)
    for key in made:
        assert len(key.encode()) <= MAX_KEY_BYTES
        assert re.fullmatch(r"[\w/\u0301-]+", key)
        assert not re.search(r"(^|/)__", key)
        assert split_member_name(f"{key}.jpg") == (key, "jpg")


STRANGE = [
    *("张三/0.jpg", "李四/0.jpg", "__x__/1.jpg", "a/__b.jpg", "._c.jpg", ".d/e f.jpg", "g#1.jpg", "v1.2/h.i.jpg"),
    *(f"{'й' * 200}.jpg", f"{'深/' * 60}k.jpg", "ж\u0301/हिन्दी.jpg", "ab.jpg", "AB.png", "line\nfeed.jpg", "-rf.jpg"),
]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of one tiny photo for each strange name."""
    writer = ShardWriter(tmp_path, "train-000000")
    for number, key in enumerate(keys(*STRANGE)):
        writer.add(key, b"%d" % number, "jpg", b'{"label": 0}')
    assert writer.close() is not None
    return tmp_path / "train-000000.tar"


def test_webdataset_reads_every_key(shard: Path) -> None:
    tars = pytest.importorskip("webdataset.tariterators")
    with open(shard, "rb") as stream:
        read = list(tars.group_by_keys(tars.tar_file_expander([{"url": str(shard), "stream": stream}])))
    expected = [(key, b"%d" % number) for number, key in enumerate(keys(*STRANGE))]
    assert [(sample["__key__"], sample["jpg"]) for sample in read] == expected


def test_datasets_reads_every_key(shard: Path) -> None:
    module = pytest.importorskip("datasets.packaged_modules.webdataset.webdataset")
    utils = pytest.importorskip("datasets.utils.file_utils")
    with open(shard, "rb") as stream:
        images = ((name, file) for name, file in utils.ArchiveIterable.from_buf(stream) if name.endswith(".jpg"))
        read = [sample["__key__"] for sample in module.WebDataset._get_pipeline_from_tar(str(shard), images)]
    assert read == keys(*STRANGE)


def test_the_index_can_be_rebuilt_and_gives_every_key(shard: Path) -> None:
    index = scan_tar(shard)
    assert len(index.records) == len(STRANGE)
    data = shard.read_bytes()
    names = [
        member_name(lambda at, size: data[at : at + size], int(offset)) for offset in index.records["image_offset"]
    ]
    assert names == [f"{key}.jpg" for key in keys(*STRANGE)]


def test_tar_lists_and_unpacks_every_key_without_pax_headers(shard: Path, tmp_path: Path) -> None:
    expected = {f"{key}.{suffix}" for key in keys(*STRANGE) for suffix in ("jpg", "json")}
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", shard], check=True, capture_output=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert set(listed.stdout.decode().splitlines()) == expected
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", shard, "-C", tmp_path / "out"], check=True, capture_output=True)
    unpacked = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert unpacked == expected
    with tarfile.open(shard) as tar:
        assert not any(member.pax_headers for member in tar)


def test_a_share_of_the_keys_is_about_that_share_and_never_changes() -> None:
    chosen = np.array([in_share(f"{number:06d}", 0.05) for number in range(10_000)])
    assert 400 < chosen.sum() < 600
    assert np.flatnonzero(chosen)[:5].tolist() == [16, 22, 44, 53, 56]
    assert not in_share("000001", 0)
