import pickle

from hypothesis import given
from hypothesis import strategies as st

from shard_tool.sources.listing import JoinedListing, Listing

NAMES = st.lists(st.text("ab/é", min_size=1, max_size=7).map(str.encode), max_size=40)


def test_the_digest_tells_listings_apart() -> None:
    listings = [
        Listing([(b"ab", 1), (b"c", 2)]),
        Listing([(b"a", 1), (b"bc", 2)]),
        Listing([(b"ab", 1), (b"c", 3)]),
        Listing([(b"ab", 1)]),
    ]
    assert len({listing.sha256() for listing in listings}) == len(listings)
    assert Listing([(b"ab", 1)]).sha256() == listings[3].sha256()


@given(NAMES)
def test_paths_and_sizes_come_back_as_they_were_given(names: list[bytes]) -> None:
    listing = Listing((name, number << 20) for number, name in enumerate(names))
    for made in (listing, pickle.loads(pickle.dumps(listing))):
        assert list(made) == [made[item] for item in range(len(made))] == names
        assert made.sizes.tolist() == [number << 20 for number in range(len(names))]


@given(NAMES)
def test_sorting_orders_by_bytes_and_keeps_the_last_of_equal_paths(names: list[bytes]) -> None:
    listing, order = Listing.sort((name, number) for number, name in enumerate(names))
    last = {name: number for number, name in enumerate(names)}
    assert list(listing) == sorted(last)
    assert order.tolist() == listing.sizes.tolist() == [last[name] for name in sorted(last)]


@given(NAMES, NAMES)
def test_joined_listings_are_one_after_the_other(first: list[bytes], second: list[bytes]) -> None:
    parts = [Listing((name, 1) for name in names) for names in (first, second)]
    joined = JoinedListing(parts, [b"", b"x/"])
    assert list(joined) == [joined[item] for item in range(len(joined))] == first + [b"x/" + name for name in second]
    assert [joined.locate(item)[0] for item in range(len(joined))] == [0] * len(first) + [1] * len(second)


def test_a_size_beyond_four_gigabytes_is_kept() -> None:
    assert Listing([(b"a", 5 << 32), (b"b", 1)]).sizes.tolist() == [5 << 32, 1]
