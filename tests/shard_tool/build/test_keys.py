import hashlib
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.format import MAX_KEY_BYTES
from pipeline.tar import split_member_name
from shard_tool.build.keys import Keys, in_share
from shard_tool.sources.listing import Listing


def keys(*paths: str) -> list[str]:
    encoded = sorted(path.encode() for path in paths)
    made = Keys(Listing([(path, 1) for path in encoded]))
    by_path = {path: made[item] for item, path in enumerate(encoded)}
    return [by_path[path.encode()] for path in paths]


def hashed(stem: str, path: str) -> str:
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def test_a_key_is_the_path_without_its_extension() -> None:
    assert keys("a/b/000001.jpg", "plain.webp") == ["a/b/000001", "plain"]


def test_characters_that_readers_trip_over_are_replaced() -> None:
    assert keys("v1.2/fake(10).jpg", "my photo.b.png", "ä.jpg") == ["v1_2/fake_10_", "my_photo_b", "__"]


def test_all_members_of_a_collision_get_a_hash() -> None:
    assert keys("a.jpg", "a.png", "b.jpg") == [hashed("a", "a.jpg"), hashed("a", "a.png"), "b"]


def test_a_name_that_looks_like_another_ones_hash_is_kept_apart() -> None:
    decoy = f"{hashed('a', 'a.jpg')}.jpg"
    assert len(set(keys("a.jpg", "a.png", decoy))) == 3


def test_long_names_are_cut_and_get_a_hash() -> None:
    path = "x" * 100 + ".jpg"
    assert keys(path) == [hashed("x" * 71, path)]
    assert keys("y" * 80 + ".jpg") == ["y" * 80]


@given(
    st.lists(st.text("aä .-_/é1", min_size=1, max_size=12).map(lambda name: name + ".jpg"), unique=True, max_size=20)
)
def test_keys_are_unique_and_safe(paths: list[str]) -> None:
    made = keys(*paths)
    assert len(set(made)) == len(paths)
    for key in made:
        assert len(key.encode()) <= MAX_KEY_BYTES
        assert re.fullmatch(r"[A-Za-z0-9_/-]*", key)
        assert split_member_name(f"{key}.jpg") == (key, "jpg")


def test_a_share_of_the_keys_is_about_that_share_and_never_changes() -> None:
    chosen = np.array([in_share(f"{number:06d}", 0.05) for number in range(10_000)])
    assert 400 < chosen.sum() < 600
    assert np.flatnonzero(chosen)[:5].tolist() == [16, 22, 44, 53, 56]
    assert not in_share("000001", 0)
