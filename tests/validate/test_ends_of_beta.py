"""At beta 1 HPM is its FC head, at beta 0 the static l2 head: MSA's rows are AutoAttack's on those plain networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from validation.planted import Digits, Planted, digits, linear, plant
from validation.trial import Tried, attempt

import hpm_robustbench
from hpm_robustbench.ledger.card_evaluation import DOUBT
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

NOISE = 1
"""Images that one search may find and another, no weaker, may not."""


@pytest.fixture(scope="module")
def ordinary() -> Tried:
    """A convolutional network, undefended: HPM at beta 1 over it is the network itself."""
    world = digits(30, n_classes=3)
    unknown = np.zeros(len(world.x), dtype=bool)
    return attempt(Planted("ordinary", "no fault", trained(world), unknown, unknown, {"beta": 1.0}), world)


def trained(world: Digits) -> nn.Module:
    """Some seconds of training on noisy images, so that attacks meet some resistance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(100):
            optimiser.zero_grad()
            noisy = world.train_x + 0.15 * torch.randn_like(world.train_x).sign()
            F.cross_entropy(net(noisy.clamp(0, 1)), world.train_y).backward()
            optimiser.step()
    return net.requires_grad_(False).eval()


@pytest.mark.validate
def test_on_an_undefended_network_msa_is_autoattack(ordinary: Tried) -> None:
    assert 0 < ordinary.msa.sum() < len(ordinary.msa)
    assert (ordinary.msa != ordinary.base_autoattack).sum() <= NOISE


@pytest.mark.validate
def test_an_undefended_network_raises_no_alarm(ordinary: Tried) -> None:
    assert not any(flag.startswith("base: ") and f": {DOUBT}" in flag for flag in ordinary.flags)
    bench = ordinary.outcome.card.hpm_bench
    assert bench is not None
    assert bench.verdict(Batching.SOLO).verdict == "undecided"


@pytest.mark.validate
@pytest.mark.parametrize(("beta", "head"), [("beta-1", "beta-1"), ("beta-0", "none")])
def test_on_linear_heads_the_rows_are_equal(beta: str, head: str) -> None:
    """The nearest class mean of pixels is the plain head that beta 0 amounts to."""
    world = digits(30, n_classes=3)
    msa = attempt(plant(beta, world), world).msa
    assert (msa == attempt(plant(head, world), world).base_autoattack).all()


@pytest.mark.validate
def test_on_deep_features_the_rows_of_beta_0_are_autoattack_s_on_the_static_head() -> None:
    """The embedded network with the nearest class mean as a linear layer, against HPM over the embedded network."""
    world, unknown = digits(30), np.zeros(30, dtype=bool)
    embedded = hpm_robustbench.load_model(DIGITS_MODEL)
    msa = attempt(Planted("static", "no fault", embedded, unknown, unknown, {"beta": 0.0}), world).msa
    plain = attempt(Planted("plain", "no fault", with_l2_head(world), unknown, unknown, {}), world).base_autoattack
    assert 0 < msa.sum() < len(msa)
    assert (msa != plain).sum() <= NOISE


def test_the_truth_at_both_ends_is_that_of_a_plain_head() -> None:
    world = digits(30, n_classes=3)
    assert (plant("beta-0", world).hpm_standing == plant("none", world).base_standing).all()
    one = plant("beta-1", world)
    assert (one.hpm_standing == one.base_standing).all()


def test_the_l2_head_is_hpm_at_beta_0() -> None:
    """On the embedded network's features too, the static l2 classifier is a linear layer (identity P1)."""
    world = digits(50)
    plain = with_l2_head(world)
    hpm = hpm_robustbench.wrap(hpm_robustbench.load_model(DIGITS_MODEL), world.train_x, world.train_y, beta=0.0)
    with torch.no_grad():
        assert torch.equal(plain(world.x).argmax(1), hpm(world.x).argmax(1))


def with_l2_head(world: Digits) -> nn.Module:
    """The embedded network whose head is replaced by the nearest class mean of its features."""
    model = hpm_robustbench.load_model(DIGITS_MODEL)
    classifier = hpm_robustbench.wrap(hpm_robustbench.load_model(DIGITS_MODEL), world.train_x, world.train_y)
    model.fc = linear(2 * classifier.prototypes, -classifier.prototypes.square().sum(1))
    return model.requires_grad_(False).eval()
