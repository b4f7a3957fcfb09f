"""At beta 1 HPM is its FC head and at beta 0 the static l2 head: MSA's rows are AutoAttack's on those plain networks.

The network is the embedded one, ordinary and undefended, so this is also the proof that MSA invents nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from validation.planted import Digits, Planted, digits, linear
from validation.trial import Tried, attempt

import hpm_robustbench
from hpm_robustbench.ledger.card_evaluation import DOUBT
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

NOISE = 1
"""Images that one search may find and another, no weaker, may not."""
IMAGES = 60


@dataclass(frozen=True)
class Ends:
    """Trials of the embedded network with its own head, and with the static l2 head written as a linear layer."""

    fc: Tried
    l2: Tried
    beta_0: Tried


@pytest.fixture(scope="module")
def ends() -> Ends:
    world = digits(IMAGES)
    return Ends(
        attempt(undefended(world, 1.0), world),
        attempt(undefended(world, 1.0, with_l2_head(world)), world),
        attempt(undefended(world, 0.0), world),
    )


def undefended(world: Digits, beta: float, model: nn.Module | None = None) -> Planted:
    """The embedded network; nothing is known beforehand."""
    unknown = np.zeros(len(world.x), dtype=bool)
    model = hpm_robustbench.load_model(DIGITS_MODEL) if model is None else model
    return Planted("ordinary", "no fault", model, unknown, unknown, {"beta": beta})


def with_l2_head(world: Digits) -> nn.Module:
    """The embedded network whose head is replaced by the nearest class mean of its features (identity P1)."""
    model = hpm_robustbench.load_model(DIGITS_MODEL)
    classifier = hpm_robustbench.wrap(hpm_robustbench.load_model(DIGITS_MODEL), world.train_x, world.train_y)
    points = classifier.prototypes
    model.fc = linear(2 * points, -points.square().sum(1))
    return model.requires_grad_(False).eval()


def same_but_for_noise(one: np.ndarray, other: np.ndarray) -> bool:
    return int((one != other).sum()) <= NOISE


@pytest.mark.validate
def test_beta_1_is_the_fc_head(ends: Ends) -> None:
    assert 0 < ends.fc.msa.sum() < IMAGES
    assert same_but_for_noise(ends.fc.msa, ends.fc.base_autoattack)
    assert same_but_for_noise(ends.l2.msa, ends.l2.base_autoattack)


@pytest.mark.validate
def test_beta_0_is_the_static_l2_head(ends: Ends) -> None:
    assert same_but_for_noise(ends.beta_0.msa, ends.l2.base_autoattack)
    assert (ends.beta_0.base_autoattack == ends.fc.base_autoattack).all()


@pytest.mark.validate
def test_an_undefended_network_raises_no_alarm(ends: Ends) -> None:
    assert not any(f": {DOUBT}" in flag for flag in ends.fc.flags if flag.startswith("base: "))
    verdict = ends.fc.outcome.card.hpm_bench.verdict(Batching.SOLO)
    assert verdict.verdict == "undecided"


def test_the_l2_head_is_hpm_at_beta_0() -> None:
    world = digits(200)
    plain = with_l2_head(world)
    hpm = hpm_robustbench.wrap(hpm_robustbench.load_model(DIGITS_MODEL), world.train_x, world.train_y, beta=0.0)
    with torch.no_grad():
        assert torch.equal(plain(world.x).argmax(1), hpm(world.x).argmax(1))
