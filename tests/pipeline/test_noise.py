import pytest
import torch

from pipeline.noise import normal

POSITIONS = torch.tensor([0, 1, 77, (1 << 40) + 3])


def draw(positions=POSITIONS, count=8, seed=0, stream="latent"):
    return normal(positions, count, seed=seed, stream=stream)


def test_noise_is_pinned_for_good():
    expected = torch.tensor(
        [
            [-0.14169222, 0.27147552, 0.67600197, 0.27827504, -1.16435766],
            [2.05559039, -1.27805436, -0.70952070, -0.09416633, 1.50948119],
            [-0.11968809, 0.76417339, 1.21438038, 0.64689177, 0.49210256],
            [-0.09867936, -0.41342252, 0.82230330, -0.98527735, 0.89967012],
        ]
    )
    torch.testing.assert_close(draw(count=5), expected, rtol=0, atol=1e-6)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    whole = draw()
    backwards = draw(POSITIONS.flip(0)).flip(0)
    one_by_one = torch.cat([draw(position[None]) for position in POSITIONS])
    micro_batches = torch.cat([draw(part) for part in POSITIONS.split(3)])
    for other in (backwards, one_by_one, micro_batches):
        assert torch.equal(other, whole)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7])
def test_any_count_gives_the_first_elements_of_a_larger_one(count):
    assert draw(count=count).shape == (4, count)
    assert torch.equal(draw(count=count), draw(count=8)[:, :count])


def test_seeds_streams_and_high_bits_of_a_position_give_other_noise():
    draws = [draw(), draw(seed=1), draw(stream="prior"), draw(POSITIONS + (1 << 32))]
    for number, one in enumerate(draws):
        for other in draws[:number]:
            assert not torch.isclose(one, other).any()


def test_noise_is_standard_normal():
    noise = draw(torch.arange(4096), count=256)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    values = noise.double()
    # A million draws: the standard errors are 0.001, 0.0014, 0.0024 and 0.005.
    assert abs(values.mean()) < 0.005
    assert abs(values.var() - 1) < 0.007
    assert abs((values**3).mean()) < 0.012
    assert abs((values**4).mean() - 3) < 0.03
    for place, expected in ((1, 0.841345), (2, 0.977250), (3, 0.998650)):
        assert abs((values < place).double().mean() - expected) < 0.002
    assert 4.5 < values.abs().max() < 5.78


def test_elements_and_positions_are_not_correlated():
    noise = draw(torch.arange(4096), count=16).double()
    across_elements = torch.corrcoef(noise.T) - torch.eye(16)
    across_squares = torch.corrcoef(noise.T**2) - torch.eye(16)
    assert across_elements.abs().max() < 0.075  # The standard error is 0.0156.
    assert across_squares.abs().max() < 0.075
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.02
    assert abs((noise**2 - 1)[1:].mul((noise**2 - 1)[:-1]).mean()) < 0.05


def test_every_column_and_every_row_is_normal_too():
    noise = draw(torch.arange(2048), count=2048).double()
    assert noise.mean(0).abs().max() < 0.11  # The standard error is 0.022.
    assert noise.mean(1).abs().max() < 0.11
    assert (noise.var(0) - 1).abs().max() < 0.16
    assert (noise.var(1) - 1).abs().max() < 0.16
