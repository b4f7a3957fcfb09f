"""Who knows no mates moves one row of a batch, the same way whoever they are, and never asks the target."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.errors import BatchCoupled
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel

THREAT = ThreatModel.parse("Linf", "0.1")


def answers_of(view, x, y, active=None, batch_size=4):
    active = torch.ones_like(y, dtype=torch.bool) if active is None else active
    return [*run_attack(Step("world", "alone", "quick", {"steps": 20}), view, x, y, active, THREAT, 0, batch_size)]


def images(n=11, seed=0):
    return torch.rand(n, 1, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_in_each_answer_one_row_of_a_batch_is_moved_and_every_active_row_in_one(worlds):
    world, x = worlds.LinearWorld.random(5, 25, seed=1), images()
    active = torch.arange(11) % 3 != 1
    moved = torch.stack([(a != x).flatten(1).any(1) for a in answers_of(world, x, world.predict(x), active)])
    assert torch.equal(moved.sum(0), active.long()), "each active row once, the others never"
    assert all(rows.sum() <= 1 for answer in moved for rows in answer.split(4))


def test_the_mates_make_no_difference(worlds):
    world, x, other = worlds.LinearWorld.random(5, 25, seed=1), images(), images(seed=7)
    active = torch.arange(11) == 6
    other[active] = x[active]
    first, second = (answers_of(world, each, world.predict(x), active)[0][active] for each in (x, other))
    assert torch.equal(first, second)


def test_the_target_is_not_asked(worlds):
    class Secret(worlds.LinearWorld):
        def target_logits(self, x):
            raise AssertionError("the attacker looked at the answer to his own batch")

    world, x = Secret(torch.rand(5, 25, generator=torch.Generator().manual_seed(1))), images()
    assert answers_of(world, x, world(x).argmax(1))


def test_breaks_what_the_view_lets_it_break(worlds):
    """On a view that is the target, all that can be broken in closed form."""
    world, x = worlds.LinearWorld.random(2, 25, seed=1), images(40)
    y = world.predict(x)
    wrong = torch.stack([world.predict(x_adv) != y for x_adv in answers_of(world, x, y)]).any(0)
    assert torch.equal(wrong, world.reachable_margin(x, y, THREAT) > 0)
    assert 0 < wrong.sum() < 40


def test_a_view_that_knows_the_mates_is_refused(worlds):
    world, x = worlds.CoupledWorld(torch.ones(25), torch.ones(25), 0.0), images()
    with pytest.raises(BatchCoupled, match="alone"):
        answers_of(world, x, torch.zeros(11, dtype=torch.long))
