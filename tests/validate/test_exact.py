"""The truth itself: closed forms and branch and bound against plain enumeration, and against the real classifier."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from validation.exact import PixelHPM, linear_margin
from validation.planted import digits, pixel_hpm, plant
from validation.trial import wrapped


def world(n_classes: int, n_pixels: int, beta: float, seed: int) -> PixelHPM:
    """Points in the image cube, and a head that agrees with them roughly, as a trained one does."""
    random = np.random.default_rng(seed)
    points = random.random((n_classes, n_pixels))
    weight = points - 0.5 + 0.3 * random.standard_normal(points.shape)
    return PixelHPM(weight, -(weight**2).sum(1) / 2 - weight.sum(1) / 2, points, beta)


def grid(low: np.ndarray, high: np.ndarray, per_side: int) -> np.ndarray:
    sides = [np.linspace(*ends, per_side) for ends in zip(low, high, strict=True)]
    return np.array(list(itertools.product(*sides)))


@given(n_classes=st.integers(2, 5), n_pixels=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_the_linear_margin_is_that_of_the_best_corner(n_classes: int, n_pixels: int, seed: int) -> None:
    hpm = world(n_classes, n_pixels, 0.0, seed)
    low, high = np.full(n_pixels, 0.3), np.full(n_pixels, 0.6)
    logits = grid(low, high, 2) @ hpm.weight.T + hpm.bias
    for y in range(n_classes):
        best = np.delete(logits - logits[:, y : y + 1], y, axis=1).max()
        margin = linear_margin(hpm.weight, hpm.bias, low[None], high[None], np.array([y]))
        np.testing.assert_allclose(margin, best, atol=1e-12)


@settings(max_examples=15)
@given(
    n_classes=st.integers(2, 5),
    beta=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]),
    eps=st.sampled_from([0.02, 0.1, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_a_box_is_called_breakable_where_a_fine_grid_is_wrong(
    n_classes: int, beta: float, eps: float, seed: int
) -> None:
    """Either may miss a sliver: the grid steps over it, and the exact answer leaves the very boundary out."""
    hpm = world(n_classes, 2, beta, seed)
    centre = np.random.default_rng(seed).random(2)
    low, high = np.clip(centre - eps, 0, 1), np.clip(centre + eps, 0, 1)
    answers = hpm.predict(grid(low, high, 101))
    y = int(hpm.predict(centre[None])[0])
    share = (answers != y).mean()
    witness = hpm.witness(low, high, y)
    if share > 0.002:
        assert witness is not None
    if witness is not None:
        assert (low <= witness).all() and (witness <= high).all()
        assert hpm.predict(witness[None])[0] != y


@settings(max_examples=8)
@given(beta=st.sampled_from([0.05, 0.3, 0.6]), seed=st.integers(0, 2**32))
def test_in_more_pixels_no_random_image_contradicts_it(beta: float, seed: int) -> None:
    hpm, random = world(4, 8, beta, seed), np.random.default_rng(seed)
    centre = random.random(8)
    low, high = np.clip(centre - 0.15, 0, 1), np.clip(centre + 0.15, 0, 1)
    corners = np.where(random.random((4000, 8)) < 0.5, low, high)
    inside = low + (high - low) * random.random((4000, 8))
    y = int(hpm.predict(centre[None])[0])
    met = (hpm.predict(np.concatenate([corners, inside])) != y).any()
    assert hpm.breakable(low, high, y) or not met


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 1.0])
def test_the_real_classifier_is_wrong_on_every_witness(beta: float) -> None:
    """So what is called breakable is broken, in float32, by an image that no attack had to find."""
    world = digits(25, n_classes=4)
    low, high = world.box()
    hpm = pixel_hpm(world, beta)
    found = {i: hpm.witness(low[i], high[i], int(y)) for i, y in enumerate(world.y)}
    broken = {i: z for i, z in found.items() if z is not None}
    assert 3 < len(broken) < 25
    x = torch.from_numpy(np.stack(list(broken.values()))).float().view(-1, 1, 8, 8)
    classifier = wrapped(plant(f"beta-{beta:g}", world), world)
    assert (classifier(x).argmax(1) != world.y[list(broken)]).all()
