"""GMSA beats a defence whose model moves out of the way of every single batch."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel

THREAT = ThreatModel.parse("Linf", "0.1")


def gmsa(view, x, y, **parameters):
    active = torch.ones_like(y, dtype=torch.bool)
    return next(run_attack(Step("world", "gmsa", "msa", parameters), view, x, y, active, THREAT, 0, 100))


def dodger(worlds):
    """Two classes along two pixels; class 1 moves away along the pixel that the batch leans to."""

    class Dodger(worlds.World):
        row_independent = False

        def shared_prototypes(self, x):
            lean = (x.flatten(1) - 0.5).mean(0)
            away = torch.where((lean >= lean.amax()) & (lean > 0), 0.25, 0.1)
            return torch.stack([torch.full((2,), 0.5), 0.5 + away])

        def logits_against(self, x, prototypes):
            return [-(x.flatten(1).unsqueeze(1) - constants).square().sum(2) for constants in prototypes]

        def forward(self, x):
            return self.logits_against(x, [self.shared_prototypes(x.detach())])[0]

    return Dodger()


@pytest.mark.parametrize("space", ["min", "avg"])
def test_attacks_every_model_met_so_far(worlds, space):
    world, met = dodger(worlds), []
    original = world.logits_against
    world.logits_against = lambda x, prototypes: met.append(len(prototypes)) or original(x, prototypes)
    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.long)
    x_adv = gmsa(world, x, y, space=space, rounds=3, steps=4)
    assert sorted(set(met)) == [1, 2, 3]
    assert (x_adv - x).abs().amax() <= 0.1 + 1e-6
    assert not torch.equal(x_adv, x)


def test_the_least_margin_is_raised_not_that_of_the_last_model(worlds):
    """Two models pull an image in opposite directions; only the middle is wrong under both."""

    class Pair(worlds.World):
        row_independent = False
        round = 0

        def shared_prototypes(self, x):
            self.round += 1
            side = 0.06 if self.round % 2 else -0.06
            return torch.tensor([[0.5, 0.40], [0.5 + side, 0.56]])

        def logits_against(self, x, prototypes):
            return [-(x.flatten(1).unsqueeze(1) - constants).square().sum(2) for constants in prototypes]

        def forward(self, x):
            both = [torch.tensor([[0.5, 0.40], [0.5 + side, 0.56]]) for side in (0.06, -0.06)]
            logits = torch.stack(self.logits_against(x, both))
            worst = (logits[:, :, 1] - logits[:, :, 0]).amin(0)
            return torch.stack([-worst, worst], 1)

    x, y = torch.tensor([[[[0.5, 0.42]]]]), torch.zeros(1, dtype=torch.long)
    assert Pair().predict(x).item() == 0
    assert Pair().predict(gmsa(Pair(), x, y, rounds=4, steps=10)).item() == 1


def test_unknown_space(worlds):
    world = dodger(worlds)
    with pytest.raises(UnknownName, match="avg"):
        gmsa(world, torch.full((2, 1, 1, 2), 0.5), torch.zeros(2, dtype=torch.long), space="max")
