import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explore.encode import latents_of
from explore.latent import directions as module
from explore.latent.directions import DIRECTIONS_FILE, Directions, auc_error, load_directions, solve
from explore.latent.moments import Moments
from explore.model import Trained
from pipeline.errors import UserError
from pipeline.format import ShardSet
from tests.explore.untrained import SIZE, trained
from tests.helpers import make_shard_set

NAMES = ("Smiling", "Young", "Eyeglasses", "Bald")
"""The bits 0 to 3 of a sample's number."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("sets") / "faces"
    return make_shard_set(folder, samples={"train": 40, "val": 12}, size=SIZE, attributes=NAMES)


def made(tmp_path: Path, **samples: int) -> Trained:
    return trained(tmp_path / "model", make_shard_set(tmp_path / "set", samples=samples, size=SIZE, attributes=NAMES))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_moments_are_those_of_all_batches_together(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = 3 + torch.randn(sum(sizes), 4, generator=generator)
    labels = torch.randint(2, (sum(sizes), 3), generator=generator, dtype=torch.int8)
    moments = Moments(4, 3)
    for one, other in zip(latents.split(sizes), labels.split(sizes), strict=True):
        moments.add(one, other)
    expected = np.cov(np.hstack([latents.double().numpy(), labels.numpy()]).T, bias=True)
    found = moments.covariances()
    for part, rows, columns in zip(found, ((0, 4), (4, 7), (4, 7)), ((0, 4), (4, 7), (0, 4)), strict=True):
        assert np.allclose(part.numpy(), expected[slice(*rows), slice(*columns)])
    assert np.allclose(moments.shares.numpy(), labels.double().mean(0).numpy())


def test_adjusted_directions_take_out_what_comes_with_other_attributes() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(2, 8, generator=generator)
    first = torch.rand(20_000, generator=generator) < 0.5
    # Four in five of those who have the first have the second too, and one in five of the others.
    second = torch.rand(20_000, generator=generator) < torch.where(first, 0.8, 0.2)
    labels = torch.stack([first, second], 1).to(torch.int8)
    moments = Moments(8, 2)
    moments.add(labels.float() @ true + 0.5 * torch.randn(20_000, 8, generator=generator), labels)
    plain, adjusted, discriminant = solve(moments, [0, 1])
    assert torch.allclose(plain[0].float(), true[0] + 0.6 * true[1], atol=0.06)
    own, other = discriminant @ plain.T, discriminant @ adjusted.T
    assert torch.allclose(own.diagonal(), other.diagonal())
    for number in range(2):
        likeness = torch.nn.functional.cosine_similarity(
            true[number].double(), torch.stack([adjusted, plain])[:, number]
        )
        assert likeness[0] > likeness[1]
        assert other[1 - number, number].abs() < 0.7 * own[1 - number, number].abs()


def test_latents_that_tell_nothing_give_directions_of_no_length() -> None:
    moments = Moments(4, 2)
    moments.add(torch.zeros(8, 4), torch.tensor([[0, 1], [1, 0]] * 4))
    for rows in solve(moments, [0, 1]):
        assert torch.equal(rows, torch.zeros(2, 4, dtype=torch.float64))


def test_one_draw_among_several_attributes_has_directions_too() -> None:
    kinds = torch.arange(600) % 3
    labels = torch.nn.functional.one_hot(kinds, 3).to(torch.int8)
    moments = Moments(3, 3)
    moments.add(torch.eye(3)[kinds], labels)
    _, adjusted, _ = solve(moments, [0, 1, 2])
    assert bool((adjusted.argmax(1) == torch.arange(3)).all())
    assert float(adjusted.sum(0).abs().max()) < 1e-6


def test_streamed_directions_and_areas_are_those_of_all_latents(shards: ShardSet, tmp_path: Path) -> None:
    model = trained(tmp_path, shards)
    found = load_directions(model)
    train, val = (latents_of(model, split, 100, 0) for split in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    assert found.names == NAMES
    assert (found.images, found.held_out, found.held_out_from) == (40, 12, "val")
    for number, name in enumerate(NAMES):
        having = train.labels[:, number] == 1
        assert found.shares[name] == pytest.approx(having.mean())
        difference = train.mean[having].mean(0) - train.mean[~having].mean(0)
        assert np.allclose(found.plain[number].numpy(), difference, atol=1e-5)
        truth = val.labels[:, number] == 1
        assert found.held_out_with[number] == truth.sum()
        for vectors, areas in ((found.plain, found.auc_plain), (found.vectors, found.auc_adjusted)):
            scores = val.mean @ vectors[number].numpy()
            over = scores[truth][:, None] - scores[~truth][None]
            assert areas[number] == pytest.approx((over > 0).mean() + (over == 0).mean() / 2)


def test_what_is_stored_is_not_computed_again(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path, shards)
    first = load_directions(model)
    monkeypatch.setattr(module, "encoded", None)
    for other in (model, dataclasses.replace(model, shards=None)):
        again = load_directions(other)
        assert torch.equal(again.vectors, first.vectors)
        assert torch.equal(again.plain, first.plain)
        assert {k: v for k, v in vars(again).items() if k not in ("vectors", "plain")} == {
            k: v for k, v in vars(first).items() if k not in ("vectors", "plain")
        }
    assert load_directions(model, images=1000).images == 40
    with pytest.raises(TypeError):
        load_directions(model, images=20)


@pytest.mark.parametrize("change", ["weights", "set", "file", "cut"])
def test_what_is_stale_or_damaged_is_computed_again(change: str, shards: ShardSet, tmp_path: Path) -> None:
    model = trained(tmp_path, shards)
    stale = load_directions(model).plain
    path = tmp_path / DIRECTIONS_FILE
    if change == "weights":
        head = list(model.model.encoder.modules())[-1]
        assert isinstance(head, torch.nn.Linear)
        torch.nn.init.normal_(head.weight)
    elif change == "set":
        other = make_shard_set(tmp_path / "other", size=SIZE, attributes=NAMES, seed=1)
        model = dataclasses.replace(model, shards=other)
    elif change == "file":
        path.write_bytes(b"no tensors")
    else:
        path.write_bytes(path.read_bytes()[:-4])
    fresh = load_directions(model)
    assert torch.equal(fresh.plain, stale) == (change in ("file", "cut"))
    assert torch.equal(load_directions(model).plain, fresh.plain)


def test_another_number_of_images_gives_other_directions(shards: ShardSet, tmp_path: Path) -> None:
    model = trained(tmp_path, shards)
    assert load_directions(model, images=20).images == 20
    assert load_directions(model).images == 20
    assert load_directions(model, images=30).images == 30


def test_without_a_held_out_split_the_last_tenth_of_train_is_held_out(tmp_path: Path) -> None:
    found = load_directions(made(tmp_path, train=100))
    assert (found.images, found.held_out, found.held_out_from) == (90, 10, "train")


def test_an_attribute_that_all_images_share_has_no_direction(tmp_path: Path) -> None:
    found = load_directions(made(tmp_path, train=6, val=4))  # Numbers up to 5: nobody has bit 3.
    assert found.names == NAMES[:3]
    assert found.shares["Bald"] == 0
    with pytest.raises(UserError, match="Bald must be 1 for some training images and 0 for others; got 0 of 6"):
        found.moved(torch.zeros(1, found.vectors.shape[1]), {"Bald": 1})
    # Numbers 0 to 3 have bits 0 and 1; with bit 2 of no held-out image there is no area.
    assert math.isnan(found.auc[2])
    assert math.isnan(found.auc_errors[2])


def test_where_all_attributes_are_the_same_there_are_no_directions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="attributes must differ between images; got all 4 the same in 1 training"):
        load_directions(made(tmp_path, train=1, val=4))


def test_a_set_without_attributes_says_so(tmp_path: Path) -> None:
    bare = make_shard_set(tmp_path / "set", size=SIZE, attributes=())
    with pytest.raises(UserError, match="the shard set must have attributes; got none in"):
        load_directions(trained(tmp_path, bare))
    with pytest.raises(UserError, match="Add --shards"):
        load_directions(trained(tmp_path))


def some() -> Directions:
    eye = torch.eye(3)
    half = (0.5, 0.5, 0.5)
    shares = {"Smiling": 0.5, "Wearing_Hat": 0.5, "Young": 0.5, "Bald": 0.0}
    return Directions(
        ("Smiling", "Wearing_Hat", "Young"), eye, 2 * eye, half, half, half, half, (1, 1, 1), shares, 10, 2, "val"
    )


def test_latents_move_by_units_of_each_attribute() -> None:
    latents = torch.full((2, 3), 5.0)
    moved = some().moved(latents, {"Smiling": 2, "Young": -1.5})
    assert torch.equal(moved, torch.tensor([[7.0, 5.0, 3.5]] * 2))
    assert torch.equal(some().moved(latents, {"Smiling": 2}, plain=True)[0], torch.tensor([9.0, 5.0, 5.0]))
    assert torch.equal(latents, torch.full((2, 3), 5.0))


@pytest.mark.parametrize(("name", "near"), [("smiling", "Smiling"), ("wearing hat", "Wearing_Hat"), ("Yuong", "Young")])
def test_an_unknown_attribute_is_answered_with_the_nearest_names(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"got '{name}'. Did you mean: {near}"):
        some().number(name)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UserError, match=r"Did you mean: Smiling, Wearing_Hat, Young\?"):
        some().number("qqqqq")


def test_the_error_of_an_area_shrinks_with_more_faces() -> None:
    # Hanley and McNeil's own example: 51 with, 58 without, area 0.893, error about 0.03.
    assert auc_error(0.893, 51, 58) == pytest.approx(0.0325, abs=0.001)
    assert auc_error(0.893, 5100, 5800) < auc_error(0.893, 51, 58)
    assert auc_error(1.0, 5, 5) == 0
    assert math.isnan(auc_error(math.nan, 0, 5))
