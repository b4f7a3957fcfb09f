"""The true target's own answers replace the gradient, where there is one and where there is none."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel


def attack(name, world, x, y, threat, batch_size=100, **parameters):
    step = Step("world", name, "test", parameters)
    return next(run_attack(step, world, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, batch_size))


def images(n):
    return torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def staircase(worlds, world, treads_per_unit):
    """The same world seen through rounded logits: flat nearly everywhere, so a gradient says nothing."""

    class Staircase(worlds.World):
        def forward(self, x):
            logits = world(x)
            return (logits * treads_per_unit).round() / treads_per_unit + 0 * logits

    return Staircase()


def test_near_the_closed_form_optimum(threat, worlds):
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    y = world.predict(x)
    margin = world.reachable_margin(x, y, threat)
    broken = world.predict(attack("smoothed", world, x, y, threat, steps=20, samples=200)) != y
    assert 10 < broken.sum() < 35
    assert broken[margin > 0.1].all()
    assert not broken[margin < -1e-4].any()


def test_climbs_a_staircase_on_which_gradients_vanish(threat, worlds):
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    target, y = staircase(worlds, world, 2), world.predict(x)
    y = target.predict(x)
    margin = world.reachable_margin(x, y, threat)
    by_gradient = target.predict(attack("apgd-ce", target, x, y, threat, n_iter=20)) != y
    smoothed = target.predict(attack("smoothed", target, x, y, threat, steps=20, sigma=1.0)) != y
    clearly = margin > 0.5  # a step of the staircase
    assert clearly.sum() >= 10
    assert smoothed[clearly].all()
    assert by_gradient.sum() <= smoothed.sum() / 2


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_forward_passes_are_full_and_no_larger_than_the_batch(batch_size, threat, worlds):
    world = worlds.LinearWorld.random(3, 25, seed=1)
    world.head.bias += torch.tensor([1e3, 0.0, 0.0])  # nothing to be found, so nothing ends early
    sizes = []
    world.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    attack("smoothed", world, x, y, threat, batch_size=batch_size, steps=2, samples=16)
    assert max(sizes) == {1: 1, 7: 4, 32: 32}[batch_size]
    assert sum(sizes) == 4 * 3 * (1 + 2 * 16)


def test_rows_that_are_found_cost_no_more_samples(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    x = images(4)
    y = (world.predict(x) + 1) % 3
    world.calls = 0
    attack("smoothed", world, x, y, ThreatModel.parse("Linf", "0.001"))
    assert world.calls == 1
