import numpy as np
import pytest

from pipeline import counter
from pipeline.counter import draw_words, make_key, permutation, philox

KNOWN_ANSWERS = [  # Random123, kat_vectors, philox4x32 with 10 rounds
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("count", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(count, key, words):
    assert tuple(philox(*count, key=key).tolist()) == words
    assert [word.tolist() for word in philox(*([word, word] for word in count), key=key)] == [[w, w] for w in words]


def test_philox_broadcasts_its_counters():
    rows, columns = np.arange(3)[:, None], np.arange(5)[None, :]
    table = philox(rows, columns, key=(1, 2))[0]
    assert table.shape == (3, 5)
    assert table[2, 4] == philox(2, 4, 0, 0, key=(1, 2))[0]


def test_keys_and_words_are_pinned_for_good():
    assert make_key("shards", 0, 1) == (3126247273, 1037957278)
    words = draw_words(np.array([0, 1, 2, 1 << 40]), "flip", 3)
    assert words.tolist() == [
        2440537174,
        2497090878,
        2421954805,
        972929424,
    ]


def test_words_depend_on_all_bits_of_a_position_and_on_the_key():
    positions = np.array([5, 5 + (1 << 32), 5 + (1 << 33)])
    assert len(set(draw_words(positions, "flip", 0).tolist())) == 3
    assert (draw_words(positions, "flip", 0) != draw_words(positions, "flip", 1)).all()
    assert make_key("a", 1) != make_key("a", 2) != make_key("b", 2)


def test_permutations_are_pinned_for_good():
    assert permutation(8, "rows", 0).tolist() == [6, 3, 1, 7, 5, 0, 4, 2]
    assert permutation(13, "shards", 5, 1).tolist() == [11, 8, 3, 1, 7, 5, 2, 9, 10, 0, 6, 4, 12]
    assert permutation(1 << 17, "rows", 1)[:6].tolist() == [93089, 67999, 88901, 83715, 96997, 53119]


@pytest.mark.parametrize(
    "count", [0, 1, 2, 3, 1001, 2 * counter._CHUNK, 2 * counter._CHUNK + 1, 3 * counter._CHUNK + 7]
)
def test_a_permutation_is_a_bijection_of_any_count(count):
    order = permutation(count, "rows", 1)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_the_size_of_the_pieces_that_are_hashed_does_not_matter(monkeypatch):
    whole = permutation(1001, "rows", 2)
    monkeypatch.setattr(counter, "_CHUNK", 7)
    np.testing.assert_array_equal(permutation(1001, "rows", 2), whole)


def test_permutations_of_other_keys_are_unrelated():
    orders = np.stack([permutation(1000, "rows", seed) for seed in range(20)])
    fixed = (orders == np.arange(1000)).sum(axis=1)
    assert fixed.max() <= 8, "a random permutation has one fixed point on average"
    assert abs(np.corrcoef(orders) - np.eye(20)).max() < 0.15
