"""Whole batches at every query, and no row's progress lost on the way."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import ThreatModel

LINF = ThreatModel.parse("Linf", "0.1")


def answers_of(view, x, y, threat=LINF, active=None, batch_size=100, queries=300):
    active = torch.ones_like(y, dtype=torch.bool) if active is None else active
    step = Step("world", "joint-square", "test", {"queries": queries})
    return tuple(run_attack(step, view, x, y, active, threat, 0, batch_size))


def coupled(worlds, own, shared):
    """Twenty images of label 0, half of which the best whole batch can have wrong, by a fair margin."""
    x = 0.3 + 0.4 * torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sums = x.flatten(1).sum(1)
    scores = (own * sums + shared * sums.mean()).sort().values
    gain = 16 * 0.1 * (own + shared)
    offset = -float(scores[9] + scores[10]) / 2 - gain
    world = worlds.CoupledWorld(torch.full((16,), own), torch.full((16,), shared), offset)
    return world, x, torch.zeros(20, dtype=torch.long)


@pytest.mark.parametrize(("own", "shared"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.0)])
def test_near_the_best_whole_batch(own, shared, worlds):
    world, x, y = coupled(worlds, own, shared)
    assert (world.predict(x) == 0).all()
    best = answers_of(world, x, y, queries=600)[0]
    assert 8 <= (world.predict(best) == 1).sum() <= world.most_wrong(x, LINF) == 10


@pytest.mark.parametrize("threat", [LINF, ThreatModel.parse("L2", "0.4")], ids=str)
def test_as_strong_as_the_reference_where_rows_are_independent(threat, worlds):
    world = worlds.LinearWorld.random(3, 64, seed=1)
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = world.predict(x)
    step, everybody = Step("world", "square", "test", {"n_queries": 300}), torch.ones_like(y, dtype=torch.bool)
    reference = next(run_attack(step, world, x, y, everybody, threat, 0, 100))
    ours = answers_of(world, x, y, threat)[0]
    theirs, ours = (int((world.predict(x_adv) != y).sum()) for x_adv in (reference, ours))
    assert 5 < theirs < 35
    assert ours >= theirs - 3


def test_every_query_is_one_whole_legal_batch(threat, worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    world.offset = -1e3  # nothing to be found
    shown = []
    world.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0].clone()))
    answers = answers_of(world, x, y, threat, queries=60)
    assert len(shown) == 60
    eps = float(threat.eps)
    for batch in shown:
        delta = (batch - x).flatten(1)
        size = delta.abs().amax(1) if threat.name == "Linf" else delta.norm(dim=1)
        assert batch.shape == x.shape
        assert 0 <= batch.min() <= batch.max() <= 1
        assert size.max() <= eps + 1e-6
        assert size.min() > 0.5 * eps
    assert all(any(torch.equal(answer, batch) for batch in shown) for answer in answers)


def test_rows_have_squares_and_signs_of_their_own(threat, worlds):
    world, x = worlds.CoupledWorld(torch.zeros(64), torch.zeros(64), -1.0), torch.full((6, 1, 4, 16), 0.5)
    x_adv = answers_of(world, x, torch.zeros(6, dtype=torch.long), threat, queries=1)[0]
    assert len(x_adv.flatten(1).unique(dim=0)) == 6


def test_mates_move_to_help_the_active_rows(worlds):
    """One row is wanted, and nearly all that moves it is the mean of the batch."""
    world, x, y = coupled(worlds, 0.1, 2.0)
    world.offset = -float(0.1 * x[3].sum() + 2 * x.flatten(1).sum(1).mean()) - 0.5 * 16 * 0.1 * 2.1
    assert world.predict(x)[3] == 0
    x_adv = answers_of(world, x, y, active=torch.arange(20) == 3, queries=1000)[0]
    assert world.predict(x_adv)[3] == 1


def test_a_row_that_was_lucky_beside_its_mates_is_judged_anew(worlds):
    """Margins that jump at random: a row that trusted its best one for ever would rest on chance, not on its image."""

    class Fickle(worlds.World):
        row_independent = False

        def forward(self, x):
            luck = 5 * torch.sin(1e4 * x.mean())
            own = (x.flatten(1) - 0.5).sum(1)
            return torch.stack([own * 0 + 10, own + luck], 1)

    x = torch.full((10, 1, 4, 4), 0.5)
    x_adv = answers_of(Fickle(), x, torch.zeros(10, dtype=torch.long), queries=400)[0]
    assert (x_adv - x).mean() > 0.5 * 0.1


def test_ends_when_every_row_is_wrong(worlds):
    world, x, y = coupled(worlds, 1.0, 1.0)
    world.offset = 100.0
    view = worlds.Wrapped(world)
    view.row_independent = False
    answers_of(view, x, y)
    assert view.calls == 1
