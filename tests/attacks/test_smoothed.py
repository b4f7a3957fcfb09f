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


def against_its_gradient(logits):
    """The logits themselves, with the gradient of their opposites."""
    return 2 * logits.detach() - logits


def test_near_the_closed_form_optimum(threat, worlds):
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    y = world.predict(x)
    margin = world.reachable_margin(x, y, threat)
    broken = world.predict(attack("smoothed", world, x, y, threat, steps=20, samples=100)) != y
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


@pytest.mark.parametrize(("where", "passes"), [("flat", 1), ("misled", 8)])
def test_where_there_is_a_gradient_nothing_is_spent(where, passes, threat, worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    x = images(6)
    y = world.predict(x)
    world.calls = 0
    assert torch.equal(attack("smoothed", world, x, y, threat, where=where), x)
    assert world.calls == passes


def test_where_the_gradient_leads_astray_labels_are_asked(threat, worlds):
    """The margin falls along its own gradient; that there is one is all that ``flat`` looks at."""
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    astray, y = through(worlds, world, against_its_gradient), world.predict(x)
    assert torch.equal(attack("smoothed", astray, x, y, threat, where="flat"), x)
    led, asked = (attack("smoothed", astray, x, y, threat, where=where) for where in ("misled", "everywhere"))
    assert torch.equal(led, asked)
    assert (world.predict(led) != y).any()


def test_unknown_place(threat, worlds):
    world, x = worlds.LinearWorld.random(3, 25, seed=1), images(6)
    y = world.predict(x)
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
    rounds = 2 * 2 * (1 + 2 * 16)
    assert sum(sizes) == 4 * (1 + 16 + rounds)  # how many classes there are, which of them are met, two targets


def test_rows_that_are_found_cost_no_more_samples(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(3, 25, seed=1))
    x = images(4)
    y = (world.predict(x) + 1) % 3
    world.calls = 0
    attack("smoothed", world, x, y, ThreatModel.parse("Linf", "0.001"), batch_size=10**6)
    assert world.calls == 5


def test_a_class_that_noise_meets_seldom_is_climbed_to_as_well(threat, worlds):
    """The nearest wrong class lies out of reach; another, seen less often, does not."""
    x, y = torch.full((1, 1, 5, 5), 0.5), torch.tensor([0])
    room = float(threat.eps) * (25 if threat.norm.value == "Linf" else 5)  # by so much the sum of pixels can change

    class Crossing(worlds.World):
        def forward(self, x):
            pixels = x.flatten(1) - 0.5
            along, across = pixels.sum(1), (pixels * (1 - 2 * (torch.arange(25) % 2))).sum(1)
            # Class 1 lies near along one way, but needs more than the budget with every other step of the other way.
            return torch.stack([0 * along, along - 1.02 * room, across - 0.6 * room], 1)

    world = Crossing()
    assert world.predict(attack("smoothed", world, x, y, threat, targets=2)).tolist() == [2]


def coupled(worlds, bend=lambda logits: logits):
    """Images whose margins depend on their own pixels, and less on the mean of their batch."""
    slope = torch.rand(25, generator=torch.Generator().manual_seed(1)) - 0.5
    world = worlds.CoupledWorld(slope, slope, offset=0.0)
    seen = through(worlds, world, bend)
    seen.row_independent = False
    return world, seen


@pytest.mark.parametrize(("bend", "where"), [(wall, "flat"), (wall, "misled"), (against_its_gradient, "misled")])
def test_a_whole_batch_whose_gradients_are_no_use_is_found_as_if_they_were(bend, where, worlds):
    """Rows that share a mean: labels alone bring the batch to what is known to be the most that one batch can lose."""
    threat, x = ThreatModel.parse("Linf", "0.1"), images(12)
    world, bent = coupled(worlds, bend)
    x = x[world.predict(x) == 0]
    y = torch.zeros(len(x), dtype=torch.long)
    most = world.most_wrong(x, threat)
    step = Step("world", "joint-smoothed", "test", {"where": where})
    every = torch.ones_like(y, dtype=torch.bool)
    answers = [*run_attack(step, bent, x, y, every, threat, 0, len(x))]
    assert most > 1
    assert (world.predict(x) != y).sum() == 0
    assert max(int((world.predict(x_adv) != y).sum()) for x_adv in answers) == most
    gradients = Step("world", "joint", "test", {"steps": 40})
    (blind,) = run_attack(gradients, bent, x, y, every, threat, 0, len(x))
    assert (world.predict(blind) != y).sum() < most


@pytest.mark.parametrize(("where", "passes"), [("flat", 1), ("misled", 4)])
def test_a_whole_batch_with_gradients_is_spared(where, passes, worlds):
    x = images(6)
    _, world = coupled(worlds)
    counted = worlds.Wrapped(world)
    counted.row_independent = False
    step = Step("world", "joint-smoothed", "test", {"where": where})
    y = counted.predict(x)
    counted.calls = 0
    (x_adv,) = run_attack(
        step, counted, x, y, torch.ones_like(y, dtype=torch.bool), ThreatModel.parse("Linf", "0.1"), 0, 6
    )
    assert torch.equal(x_adv, x)
    assert counted.calls == passes


def test_mates_that_need_nothing_stay_clean(worlds):
    x = images(6)
    _, world = coupled(worlds, wall)
    y, active = world.predict(x), torch.arange(6) % 2 == 0
    step = Step("world", "joint-smoothed", "test", {"steps": 3, "samples": 50})
    answers = [*run_attack(step, world, x, y, active, ThreatModel.parse("Linf", "0.3"), 0, 6)]
    assert any((x_adv[active] != x[active]).any() for x_adv in answers)
    assert all(torch.equal(x_adv[~active], x[~active]) for x_adv in answers)
