"""Labels alone lead to the boundary, in worlds where its distance is known."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel


def hard_label(world, x, y, threat, queries):
    step = Step("world", "hard-label", "test", {"queries": queries})
    return next(run_attack(step, world, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, 100))


def images(n, side=5):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


def labels_only(worlds, world):
    """The same decisions, with logits that tell nothing else and no gradient at all."""

    class LabelsOnly(worlds.World):
        def forward(self, x):
            raise AssertionError("asked for more than labels")

        def target_logits(self, x):
            return torch.nn.functional.one_hot(world.predict(x), 3).float()

    return LabelsOnly()


def test_labels_are_all_it_takes(threat, worlds):
    world, x = worlds.LinearWorld.random(3, 25, seed=1), images(12)
    y = world.predict(x)
    found = hard_label(labels_only(worlds, world), x, y, threat, 150)
    assert (world.predict(found) != y).sum() >= 5
    assert torch.equal(found, hard_label(world, x, y, threat, 150))


def test_exact_in_linf_where_two_classes_meet_in_a_plane(worlds):
    """One flip per pixel is enough, so every row is broken whose distance to the plane is below eps."""
    threat = ThreatModel.parse("Linf", "0.1")
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    y = world.predict(x)
    margin = world.reachable_margin(x, y, threat)
    broken = world.predict(hard_label(world, x, y, threat, 600)) != y
    assert 10 < broken.sum() < 35
    assert broken[margin > 0.01].all()
    assert not broken[margin < -1e-4].any()


def test_l2_leaves_out_what_does_not_matter(worlds):
    """Three pixels of 25 decide. Equal weight on all pixels would reach no further than sqrt(3/25) of the way."""
    prototypes = torch.full((2, 25), 0.5)
    prototypes[1, 4:7] += torch.tensor([0.3, -0.3, 0.3])
    world, x = worlds.LinearWorld(prototypes), torch.full((1, 1, 5, 5), 0.5)
    y = world.predict(x)
    distance = 0.3 * 3**0.5 / 2
    for share, broken in ((1.05, True), (0.97, False)):
        x_adv = hard_label(world, x, y, ThreatModel.parse("L2", f"{share * distance:.6f}"), 1000)
        assert (world.predict(x_adv) != y).item() == broken


@pytest.mark.parametrize("queries", [1, 2, 137])
def test_asks_as_often_as_told(queries, threat, worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(2, 25, seed=1))
    x = images(10)
    y = world.predict(x)
    world.calls = 0
    hard_label(world, x, y, threat, queries)
    assert world.calls == queries


def test_ends_once_every_row_is_found(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(2, 25, seed=1))
    x = images(10)
    y = world.predict(x)
    world.calls = 0
    x_adv = hard_label(world, x, y, ThreatModel.parse("Linf", "0.9"), 5000)
    assert world.calls <= 101
    assert (world.predict(x_adv) != y).all()


def test_a_label_that_is_wrong_already_is_left_alone(threat, worlds):
    world, x = worlds.LinearWorld.random(3, 25, seed=1), images(4)
    y = (world.predict(x) + 1) % 3
    assert torch.equal(hard_label(world, x, y, threat, 1), x)
    assert (world.predict(hard_label(world, x, y, threat, 200)) != y).all()


def test_a_target_that_never_errs_is_asked_to_the_end(threat, worlds):
    world = worlds.LinearWorld.random(2, 25, seed=1)
    world.head.bias += torch.tensor([1e6, 0.0])
    x = images(3)
    x_adv = hard_label(world, x, torch.zeros(3, dtype=torch.long), threat, 400)
    assert x_adv.isfinite().all()
    assert (x_adv != x).flatten(1).any(1).all()
