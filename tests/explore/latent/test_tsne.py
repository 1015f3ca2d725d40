from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from explore.latent.tsne import EARLY_STEPS, STEPS, check_perplexity, embed
from pipeline.errors import UserError

QUIET = Console(file=StringIO())


def clusters(size: int = 40) -> np.ndarray:
    """Two clouds [2 * size, 8], far apart."""
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((2, size, 8)).astype(np.float32)
    return (cloud + np.array([-6, 6], np.float32)[:, None, None]).reshape(-1, 8)


def test_clusters_stay_apart_and_equal_seeds_give_equal_bytes():
    draws = clusters()
    points, divergence = embed(draws, 10, 0, QUIET)
    assert points.shape == (80, 2)
    first, second = points[:40], points[40:]
    between = np.linalg.norm(first.mean(0) - second.mean(0))
    within = max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (first, second))
    assert between > 2 * within
    assert 0 < divergence < 2
    again, _ = embed(draws, 10, 0, QUIET)
    assert again.tobytes() == points.tobytes()


def test_the_number_of_cores_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    for name, value in (("_FEW_IMAGES", 0), ("EARLY_STEPS", 20), ("STEPS", 20)):
        monkeypatch.setattr(f"explore.latent.tsne.{name}", value)
    draws = clusters(20)
    found = []
    for cores in (1, 2):
        monkeypatch.setattr("explore.latent.tsne.usable_cores", lambda cores=cores: cores)
        found.append(embed(draws, 5, 3, QUIET)[0].tobytes())
    assert found[0] == found[1]


def test_a_terminal_gets_a_bar_over_all_steps():
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    embed(clusters(20), 5, 0, console)
    assert f"{EARLY_STEPS + STEPS}/{EARLY_STEPS + STEPS}" in screen.getvalue()


@pytest.mark.parametrize(("perplexity", "images"), [(30, 91), (1, 4), (2.5, 10)])
def test_as_many_neighbours_as_there_are_other_images_are_enough(perplexity: float, images: int):
    check_perplexity(perplexity, images)


@pytest.mark.parametrize(
    ("perplexity", "images", "remedy"),
    [(30, 90, "Choose at most 29, or more images."), (1, 3, "Take more images."), (float("inf"), 9, "at most 2")],
)
def test_too_few_images_for_a_perplexity_name_the_largest(perplexity: float, images: int, remedy: str):
    with pytest.raises(UserError, match=remedy):
        check_perplexity(perplexity, images)
