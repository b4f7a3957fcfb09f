"""Which gradients are none, and which lead nowhere: row by row where rows are independent, and by batch where not."""

import pytest
import torch

from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.slope import borrowed, flat, misled_by, rounding, rows_for, slope_of
from hpm_robustbench.threat import ThreatModel

LINF = ThreatModel.parse("Linf", "0.1")
HONEST, SIGNS = torch.ones(4), torch.tensor([1.0, -1.0, 1.0, 1.0])
"""Whose margin follows its own gradient, and whose goes the other way."""


def images():
    return 0.3 + 0.4 * torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def world(worlds, signs, *, shared=0.0, scale=1.0):
    """Margins that are sums of pixels, of their own and of the batch; ``signs`` says which way each really goes."""

    class Signed(worlds.World):
        row_independent = shared == 0

        def lead(self, x):
            sums = x.flatten(1).sum(1)
            return scale * (sums + shared * sums.mean())

        def forward(self, x):
            lead = self.lead(x)
            return self.told(signs * lead.detach() + lead - lead.detach())

        def target_logits(self, x):
            with torch.no_grad():
                return self.told(signs * self.lead(x))

        def told(self, lead):
            return torch.stack([torch.zeros_like(lead), lead], 1)

    return Signed()


def misled(view, threat=LINF, active=None):
    x, y = images(), torch.zeros(4, dtype=torch.long)
    active = torch.ones(4, dtype=torch.bool) if active is None else active
    return misled_by(slope_of(view, x, y, margin, active), view, x, y, active, threat).tolist()


@pytest.mark.parametrize("threat", [LINF, ThreatModel.parse("L2", "0.5")], ids=str)
def test_rows_are_judged_one_by_one(threat, worlds):
    assert misled(world(worlds, HONEST), threat) == [False] * 4
    assert misled(world(worlds, SIGNS), threat) == [False, True, False, False]


def test_the_scale_of_a_mate_hides_nothing(worlds):
    scale = torch.tensor([1e6, 1.0, 1.0, 1.0])
    assert misled(world(worlds, SIGNS, scale=scale)) == [False, True, False, False]


def test_rows_that_move_each_other_are_judged_together_by_those_that_still_stand(worlds):
    assert misled(world(worlds, HONEST, shared=0.5)) == [False] * 4
    assert misled(world(worlds, -SIGNS, shared=0.5)) == [True] * 4
    only_the_astray = SIGNS < 0
    assert misled(world(worlds, SIGNS, shared=0.5), active=only_the_astray) == [True] * 4
    assert misled(world(worlds, SIGNS, shared=0.5), active=~only_the_astray) == [False] * 4


def hidden(worlds, hide, row_independent=True):
    """A linear classifier of three classes whose gradients may go elsewhere, while its answers stay."""
    linear = worlds.LinearWorld.random(3, 9, seed=1)

    class Hidden(worlds.World):
        def forward(self, x):
            logits = linear(x)
            return logits.detach() + hide(logits - logits.detach())

    Hidden.row_independent = row_independent
    return Hidden()


def to_the_next(logits):
    return logits.roll(1, dims=0)


def of_each_class(n):
    return torch.rand(n, 1, 3, 3, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 3


def led_by_mates(view, x, y):
    every = torch.ones_like(y, dtype=torch.bool)
    return borrowed(slope_of(view, x, y, margin, every), view, x, y, every)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_gradient_that_belongs_to_a_mate_is_another_alone(n, worlds):
    assert led_by_mates(hidden(worlds, to_the_next), *of_each_class(n)).all()


def test_a_gradient_that_keeps_its_promise_by_accident_is_found_out_too(worlds):
    """Where to go from one class may be where to go from another, more or less."""
    view, (x, y) = hidden(worlds, to_the_next), of_each_class(30)
    every = torch.ones_like(y, dtype=torch.bool)
    by_promise = misled_by(slope_of(view, x, y, margin, every), view, x, y, every, LINF)
    assert not by_promise.all()
    assert rows_for("misled", view, x, y, every, LINF).all()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("row_independent", [True, False])
def test_a_gradient_of_its_own_stays_in_any_company(row_independent, n, worlds):
    assert not led_by_mates(hidden(worlds, lambda logits: logits, row_independent), *of_each_class(n)).any()


def to_the_mirrored(logits):
    return logits.flip(0)


def to_the_first(logits):
    return logits[:1] + 0 * logits


def to_one_half_a_batch_away(logits):
    return logits.roll(len(logits) // 2, dims=0)


def to_both_neighbours(logits):
    return (logits.roll(1, dims=0) + logits.roll(-1, dims=0)) / 2


PLACES = [to_the_next, to_the_mirrored, to_the_first, to_one_half_a_batch_away, to_both_neighbours]


@pytest.mark.parametrize("n", [4, 7, 32])
@pytest.mark.parametrize("hide", PLACES)
def test_a_shared_gradient_may_not_belong_to_a_place_in_the_batch(hide, n, worlds):
    x, y = of_each_class(n)
    assert led_by_mates(hidden(worlds, hide, row_independent=False), x, y).all()


@pytest.mark.parametrize("n", [1, 2, 4, 7, 32])
def test_a_shared_gradient_may_belong_to_all(n, worlds):
    everyones = hidden(worlds, lambda logits: logits + logits.mean(dim=0), row_independent=False)
    assert not led_by_mates(everyones, *of_each_class(n)).any()


def test_only_the_rows_in_question_are_asked_alone(worlds):
    view, (x, y) = worlds.Wrapped(hidden(worlds, to_the_next)), of_each_class(6)
    active = torch.tensor([True, False, True, False, False, True])
    slope = slope_of(view, x, y, margin, active)
    view.calls = 0
    assert not borrowed(slope, view, x, y, active)[~active].any()
    assert view.calls == active.sum()


@pytest.mark.parametrize("hide", [to_the_mirrored, None])
def test_of_a_shared_gradient_the_rows_that_still_stand_are_asked(hide, worlds):
    """All or none of them, and nobody else."""
    (x, y), active = of_each_class(6), torch.tensor([True, False, True, False, False, True])
    view = hidden(worlds, hide or (lambda logits: logits + logits.mean(dim=0)), row_independent=False)
    assert rows_for("misled", view, x, y, active, LINF).tolist() == (active & (hide is not None)).tolist()


@pytest.mark.parametrize("row_independent", [True, False])
def test_what_is_no_number_is_nobody_else_s(row_independent, worlds):
    def broken_in_the_first(logits):
        bad = torch.zeros_like(logits).index_fill(0, torch.tensor([0]), torch.nan)
        return logits + logits.detach() * 0 + torch.where(bad.isnan(), (logits - logits.detach()).sqrt(), 0)

    view, (x, y) = hidden(worlds, broken_in_the_first, row_independent), of_each_class(4)
    every = torch.ones_like(y, dtype=torch.bool)
    assert not slope_of(view, x, y, margin, every)[0].isfinite().any()
    assert not led_by_mates(view, x, y)[0]


def test_what_is_no_number_leads_nowhere(worlds):
    class Nowhere(worlds.World):
        row_independent = False

        def forward(self, x):
            sums = x.flatten(1).sum(1)
            bent = torch.cat([(sums - sums)[:1].sqrt(), sums[1:]])  # an infinite slope, times zero
            return torch.stack([torch.zeros_like(sums), bent], 1)

        def target_logits(self, x):
            sums = x.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(sums), torch.full_like(sums, float("nan"))], 1)

    view, x, y = Nowhere(), images(), torch.zeros(4, dtype=torch.long)
    assert flat(slope_of(view, x, y, margin)).tolist() == [True, False, False, False]
    assert misled(view) == [True] * 4


def test_the_slope_of_some_rows_leaves_the_others_alone(worlds):
    active = torch.tensor([True, False, False, True])
    slope = slope_of(world(worlds, HONEST), images(), torch.zeros(4, dtype=torch.long), margin, active)
    assert flat(slope).tolist() == [False, True, True, False]


def test_rounding_is_that_of_each_row_and_knows_no_common_constant():
    logits = torch.tensor([[0.0, 1.0], [0.0, 1e6]])
    assert rounding(logits)[0] < 1e-3 < rounding(logits)[1]
    assert torch.allclose(rounding(logits)[:1], rounding(logits[:1] + 1.0), atol=1e-5)
