"""The true target's own labels replace the gradient, where there is one and where there is none."""

import pytest
import torch
from torch.nn import functional

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel


def attack(name, world, x, y, threat, batch_size=100, **parameters):
    step = Step("world", name, "test", parameters)
    return next(run_attack(step, world, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, batch_size))


def images(n):
    return torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def through(worlds, world, bend):
    """The same world seen through logits that are bent."""

    class Bent(worlds.World):
        def forward(self, x):
            return bend(world(x))

    return Bent()


def wall(logits):
    """The label and nothing else: a gradient there is, of zero."""
    return functional.one_hot(logits.argmax(1), logits.shape[1]) + 0 * logits


def test_near_the_closed_form_optimum(threat, worlds):
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    y = world.predict(x)
    margin = world.reachable_margin(x, y, threat)
    broken = world.predict(attack("smoothed", world, x, y, threat, steps=20, samples=200)) != y
    assert 10 < broken.sum() < 35
    assert broken[margin > 0.1].all()
    assert not broken[margin < -1e-4].any()


def test_labels_are_all_that_it_sees(threat, worlds):
    """Behind a wall, where a gradient says nothing, it finds the very same images."""
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    walled, y = through(worlds, world, wall), world.predict(x)
    open_, hidden = (attack("smoothed", seen, x, y, threat) for seen in (world, walled))
    assert torch.equal(open_, hidden)
    assert (world.predict(attack("apgd-ce", walled, x, y, threat, n_iter=20)) != y).sum() < (
        world.predict(hidden) != y
    ).sum()


def test_rounded_pixels_do_not_hide_the_way(worlds):
    """All that a step inside the ball meets is flat; noise that leaves it is not, and only what it finds is kept."""
    threat = ThreatModel.parse("Linf", "0.1")
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)

    class Rounded(worlds.World):
        def forward(self, x):
            return world((4 * x).round() / 4)

    rounded = Rounded()
    y = rounded.predict(x)
    low, high = ((4 * side).round() / 4 for side in ((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1)))
    slope = (world.head.weight[1] - world.head.weight[0]).view(1, 1, 5, 5) * (1 - 2 * y).view(-1, 1, 1, 1)
    best = rounded.predict(torch.where(slope > 0, high, low)) != y
    broken = rounded.predict(attack("smoothed", rounded, x, y, threat, where="flat")) != y
    assert 5 < best.sum() < 35
    assert not (broken & ~best).any()
    assert broken.sum() >= 0.9 * best.sum()


def test_where_there_is_a_gradient_nothing_is_spent(threat, worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    x = images(6)
    y = world.predict(x)
    world.calls = 0
    assert torch.equal(attack("smoothed", world, x, y, threat, where="flat"), x)
    assert world.calls == 1
    with pytest.raises(UnknownName, match="flat"):
        attack("smoothed", world, x, y, threat, where="flad")


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_forward_passes_are_full_and_no_larger_than_the_batch(batch_size, threat, worlds):
    world = worlds.LinearWorld.random(3, 25, seed=1)
    world.head.bias += torch.tensor([1e3, 0.0, 0.0])  # nothing to be found, so nothing ends early
    sizes = []
    world.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    attack("smoothed", world, x, y, threat, batch_size=batch_size, steps=2, samples=16)
    assert max(sizes) == {1: 1, 7: 4, 32: 32}[batch_size]
    assert sum(sizes) == 4 * 2 * (1 + 2 * 16)


def test_rows_that_are_found_cost_no_more_samples(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    x = images(4)
    y = (world.predict(x) + 1) % 3
    world.calls = 0
    attack("smoothed", world, x, y, ThreatModel.parse("Linf", "0.001"), batch_size=10**6)
    assert world.calls == 3
