"""Noise tries what it says it tries, and keeps the right one."""

import torch

from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import Norm, ThreatModel

LINF = ThreatModel.parse("Linf", "0.1")
GRAY = torch.full((8, 1, 1, 2), 0.5)
ZEROS = torch.zeros(8, dtype=torch.long)


def noise(world, x, y, threat, tries):
    step = Step("world", "noise", "test", {"tries": tries})
    return next(run_attack(step, world, x, y, torch.ones_like(y, dtype=torch.bool), threat, 0, 100))


def ring(worlds, inner, outer):
    """Wrong exactly where every pixel is between ``inner`` and ``outer`` from gray."""

    class Ring(worlds.World):
        def forward(self, x):
            away = (x - 0.5).abs().flatten(1)
            inside = torch.minimum(away.amin(1) - inner, outer - away.amax(1))
            return torch.stack([-inside, inside], 1)

    return Ring()


def test_linf_tries_corners_and_what_lies_between(worlds):
    for world in (ring(worlds, 0.0999, 0.1001), ring(worlds, 0.02, 0.08)):
        assert (world.predict(noise(world, GRAY, ZEROS, LINF, 30)) == 1).all()


def test_l2_tries_the_sphere(worlds):
    world = worlds.LinearWorld.random(2, 25, seed=1)
    x = 0.3 + 0.4 * torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    x_adv = noise(world, x, world.predict(x), ThreatModel.parse("L2", "0.2"), 10)
    torch.testing.assert_close((x_adv - x).flatten(1).norm(dim=1), torch.full((20,), 0.2))


def test_more_tries_only_gain_and_what_is_wrong_rests(threat, worlds):
    world = worlds.LinearWorld.random(3, 25, seed=1)
    x = torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = world.predict(x)
    few, many = noise(world, x, y, threat, 5), noise(world, x, y, threat, 50)
    wrong = world.predict(few) != y
    assert 0 < wrong.sum() < 40
    assert torch.equal(many[wrong], few[wrong])
    before, after = margin(world(few), y)[~wrong], margin(world(many), y)[~wrong]
    assert (after >= before).all()
    assert (after > before).any()


def test_odds_of_a_half_space(worlds):
    """A linear margin at eps noise is nearly normal, so how often one try succeeds is known."""
    n_pixels = 400
    prototypes = torch.stack([torch.full((n_pixels,), 0.45), torch.full((n_pixels,), 0.55)])
    world, x = worlds.LinearWorld(prototypes), torch.full((2000, 1, 20, 20), 0.4975)
    for threat in (LINF, ThreatModel.parse("L2", "1")):
        deviation = 0.1 / 3**0.5 * 20 if threat.norm is Norm.LINF else 1.0
        needed = 0.0025 * n_pixels
        expected = 1 - torch.distributions.Normal(0, deviation).cdf(torch.tensor(needed))
        y = torch.zeros(2000, dtype=torch.long)
        share = (world.predict(noise(world, x, y, threat, 1)) == 1).float().mean()
        assert abs(share - expected) < 0.03


def test_rows_that_share_a_batch_are_tried_together(worlds):
    """Each answer is one of the batches that the target was shown; together they hold every row that ever was wrong."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(10, 1, 4, 4, generator=generator)
    sums = x.flatten(1).sum(1)
    world = worlds.CoupledWorld(torch.ones(16), torch.ones(16), -float(sums.max() + sums.mean()) - 0.2)
    shown = []
    world.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0].clone()))
    y, active = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.bool)
    answers = tuple(run_attack(Step("world", "noise", "test", {"tries": 40}), world, x, y, active, LINF, 0, 10))
    assert len(shown) == 40
    assert all(any(torch.equal(answer, batch) for batch in shown) for answer in answers)
    ever = torch.stack([world.predict(batch) == 1 for batch in shown[:40]])
    held = torch.stack([world.predict(answer) == 1 for answer in answers])
    assert ever.any()
    assert torch.equal(held.any(0), ever.any(0))
    assert held[0].sum() == ever.sum(1).max()
