import hashlib

import numpy as np
import pytest

from pipeline import counter as noise
from pipeline.counter import make_key, normal, philox

POSITIONS = np.array([0, 1, 77, (1 << 40) + 3])
LARGEST = (1 << 24) - 1
QUARTER = 1 << 22


def draw(positions=POSITIONS, count=8, seed=0, stream="latent"):
    return normal(positions, count, seed=seed, stream=stream)


def textbook(radius_bits, angle_bits):
    """Box and Muller in float64, by the C library's functions."""
    radius = np.sqrt(-2 * np.log((radius_bits + 1.0) / 2**24))
    angle = 2 * np.pi * angle_bits / 2**24
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)])


def from_bits(radius_bits, angle_bits):
    """What the module makes of these bits, which are 24 of a word."""
    words = np.broadcast_arrays(*(np.asarray(bits, np.uint64) << 8 for bits in (radius_bits, angle_bits)))
    radius_words, angle_words = (each.reshape(1, 1, -1).repeat(2, 0) for each in words)
    return (noise._unit_circle(angle_words) * noise._radius(radius_words))[:, 0, 0]


def test_noise_is_pinned_for_good():
    expected = [
        [-0.14169222, 0.27147552, 0.67600197, 0.27827504, -1.16435766],
        [2.05559039, -1.27805436, -0.70952070, -0.09416633, 1.50948119],
        [-0.11968809, 0.76417339, 1.21438038, 0.64689177, 0.49210256],
        [-0.09867936, -0.41342252, 0.82230330, -0.98527735, 0.89967012],
    ]
    np.testing.assert_allclose(draw(count=5), expected, rtol=0, atol=1e-6)


def test_noise_is_pinned_to_the_last_bit():
    first = [value.hex() for value in draw(count=4)[1].tolist()]
    assert first == ["0x1.071d920000000p+1", "-0x1.472e9e0000000p+0", "-0x1.6b464c0000000p-1", "-0x1.81b4820000000p-4"]
    block = draw(np.arange(2000), 130, seed=3).astype("<f4").tobytes()
    assert hashlib.sha256(block).hexdigest() == "1d765e5fa0ab41d433a082043223490188bc781d82723afaec4e3ac599137868"


def test_noise_is_the_textbook_one():
    positions, count = np.arange(3000) * 987_654_321, 60
    zero = np.zeros((1, 1), np.int64)
    counter = (positions[:, None] & 0xFFFFFFFF, positions[:, None] >> 32, np.arange(count // 4)[None], zero)
    a, b, c, d = (word >> 8 for word in philox(*counter, key=make_key("noise", "latent", 8)))
    expected = np.stack([*textbook(a, b), *textbook(c, d)], -1).reshape(len(positions), count)
    np.testing.assert_allclose(draw(positions, count, seed=8), expected, rtol=0, atol=1e-6)


def test_radii_and_angles_have_the_textbook_values():
    bits = np.arange(0, LARGEST, 251)
    np.testing.assert_allclose(from_bits(bits, 12345), textbook(bits, 12345), rtol=0, atol=1e-9)
    np.testing.assert_allclose(from_bits(12345, bits), textbook(12345, bits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("radius", [0, 1, LARGEST // 2, LARGEST - 1, LARGEST, int(LARGEST * 0.5**0.5)])
def test_the_first_and_last_bits_and_the_quarters_have_the_textbook_values(radius):
    borders = np.array([turn + step for turn in range(0, 5 * QUARTER, QUARTER // 2) for step in (-1, 0, 1)]) % (1 << 24)
    for near in (radius, max(0, radius - 1), min(LARGEST, radius + 1)):
        np.testing.assert_allclose(from_bits(near, borders), textbook(near, borders), rtol=0, atol=1e-9)


def test_the_largest_radius_bits_give_exactly_zero():
    assert not from_bits(LARGEST, np.arange(0, LARGEST, 1 << 16)).any()
    assert np.hypot(*from_bits(0, [0]))[0] == pytest.approx((48 * np.log(2)) ** 0.5)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    whole = draw()
    backwards = draw(POSITIONS[::-1])[::-1]
    one_by_one = np.concatenate([draw(position[None]) for position in POSITIONS])
    micro_batches = np.concatenate([draw(part) for part in (POSITIONS[:3], POSITIONS[3:])])
    for other in (backwards, one_by_one, micro_batches):
        assert np.array_equal(other, whole)


@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
@pytest.mark.parametrize("count", [0, 1, 4, 11, 64])
def test_noise_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch, at_once, count):
    whole = draw(np.arange(30), count)
    assert whole.shape == (30, count)
    assert whole.flags.c_contiguous
    monkeypatch.setattr(noise, "_AT_ONCE", at_once)
    assert np.array_equal(draw(np.arange(30), count), whole)


def test_many_normals_for_few_and_few_for_many_are_drawn_in_parts():
    few = draw(count=4 * noise._AT_ONCE + 7)
    assert np.array_equal(few[:, :50], draw(count=50))
    many = draw(np.arange(noise._AT_ONCE + 3), 5)
    assert np.array_equal(many[-4:], draw(np.arange(noise._AT_ONCE - 1, noise._AT_ONCE + 3), 5))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
def test_any_count_gives_the_first_elements_of_a_larger_one(count):
    assert draw(count=count).shape == (4, count)
    assert np.array_equal(draw(count=count), draw(count=8)[:, :count])


def test_positions_may_be_a_list_or_a_view():
    assert np.array_equal(draw(POSITIONS.tolist()), draw())
    assert np.array_equal(draw(np.stack([POSITIONS, POSITIONS], 1)[:, 0]), draw())


def test_seeds_streams_and_high_bits_of_a_position_give_other_noise():
    draws = [draw(), draw(seed=1), draw(stream="prior"), draw(POSITIONS + (1 << 32))]
    for number, one in enumerate(draws):
        for other in draws[:number]:
            assert not np.isclose(one, other).any()


def test_noise_is_standard_normal():
    drawn = draw(np.arange(4096), count=256)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    values = drawn.astype(np.float64)
    # A million draws: the standard errors are 0.001, 0.0014, 0.0024 and 0.005.
    assert abs(values.mean()) < 0.005
    assert abs(values.var() - 1) < 0.007
    assert abs((values**3).mean()) < 0.012
    assert abs((values**4).mean() - 3) < 0.03
    for place, expected in ((1, 0.841345), (2, 0.977250), (3, 0.998650)):
        assert abs((values < place).mean() - expected) < 0.002
    assert 4.5 < abs(values).max() < 5.78


def test_elements_and_positions_are_not_correlated():
    drawn = draw(np.arange(4096), count=16).astype(np.float64)
    across_elements = np.corrcoef(drawn.T) - np.eye(16)
    across_squares = np.corrcoef(drawn.T**2) - np.eye(16)
    assert abs(across_elements).max() < 0.075  # The standard error is 0.0156.
    assert abs(across_squares).max() < 0.075
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 0.02
    assert abs(((drawn**2 - 1)[1:] * (drawn**2 - 1)[:-1]).mean()) < 0.05


def test_every_column_and_every_row_is_normal_too():
    drawn = draw(np.arange(2048), count=2048).astype(np.float64)
    assert abs(drawn.mean(0)).max() < 0.11  # The standard error is 0.022.
    assert abs(drawn.mean(1)).max() < 0.11
    assert abs(drawn.var(0) - 1).max() < 0.16
    assert abs(drawn.var(1) - 1).max() < 0.16
