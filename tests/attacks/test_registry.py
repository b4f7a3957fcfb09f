"""The sealed call: what it refuses and what it keeps from harm."""

import pytest
import torch

from hpm_robustbench.attacks import registry
from hpm_robustbench.attacks.base import Attack
from hpm_robustbench.attacks.registry import ATTACKS, find_attack, run_attack
from hpm_robustbench.errors import BatchCoupled, UnknownName
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel

THREAT = ThreatModel.parse("Linf", "0.1")
X, Y = torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 1, 0])
ACTIVE = torch.tensor([True, False, True])


def test_unknown_attack_suggests_the_nearest():
    with pytest.raises(UnknownName, match="apgd-ce"):
        find_attack("apgdce")


@pytest.mark.parametrize("name", sorted(name for name, attack in ATTACKS.items() if attack.requires_row_independence))
def test_repacking_attacks_refuse_coupled_views_and_name_those_allowed(name, worlds):
    view = worlds.CoupledWorld(torch.ones(4), torch.ones(4), 0.0)
    with pytest.raises(BatchCoupled, match=r"fc.*l2.*solo.*joint"):
        run_attack(Step("world", name, "test"), view, X, Y, ACTIVE, THREAT, 0, 2)


def test_only_attacks_on_whole_batches_meet_coupled_views():
    coupled = [name for name, attack in ATTACKS.items() if not attack.requires_row_independence]
    assert coupled == ["noise", "joint", "in-turns", "joint-conjunction", "gmsa", "joint-square", "joint-smoothed"]


def test_a_vandal_behind_the_call_harms_nobody(monkeypatch, worlds):
    def vandal(task):
        torch.manual_seed(task.seed)
        task.y.zero_()
        task.active.fill_(True)
        return (task.x.zero_().requires_grad_(),)

    monkeypatch.setitem(registry.ATTACKS, "vandal", Attack(vandal, requires_row_independence=True))
    view = worlds.LinearWorld.random(2, 4, seed=0)
    x, y, active, state = X.clone(), Y.clone(), ACTIVE.clone(), torch.get_rng_state()
    x_adv = next(run_attack(Step("world", "vandal", "test"), view, x, y, active, THREAT, 7, 2))
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert torch.equal(active, ACTIVE)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x_adv[~ACTIVE], X[~ACTIVE])
    assert (x_adv[ACTIVE] == 0).all()
    assert not x_adv.requires_grad


def test_parameters_of_the_step_reach_the_attack(worlds):
    world = worlds.Wrapped(worlds.LinearWorld.random(4, 4, seed=0))
    y = world.predict(X)
    world.calls = 0
    next(run_attack(Step("world", "apgd-ce", "test", {"n_iter": 7}), world, X, y, ACTIVE, THREAT, 0, 3))
    assert world.calls == 1 + 8  # a look at the clean images, and one gradient more than steps
