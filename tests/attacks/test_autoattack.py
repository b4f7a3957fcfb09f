"""Our step runner over AutoAttack's components against AutoAttack itself, and the faults fenced in."""

import pytest
import torch

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.robustbench_compat import import_autoattack
from hpm_robustbench.threat import ThreatModel

SAME_BUDGET = {
    ("apgd-t", "targets"): ("apgd_targeted", "n_target_classes"),
    ("fab-t", "targets"): ("fab", "n_target_classes"),
    ("fab-t", "n_iter"): ("fab", "n_iter"),
    ("square", "n_queries"): ("square", "n_queries"),
}
"""Our parameter of a step, and where stock keeps it; APGD's iterations cannot be changed after construction."""


def cascade(net, x, y, threat, seed, batch_size, budget):
    """What the caller does: attack the rows that stand, keep what the target gets wrong."""
    images, labels = x.clone(), net.predict(x)
    standing, counts = labels == y, []
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        step = Step("net", name, "test", budget.get(name, {}))
        x_adv = next(run_attack(step, net, x, y, standing, threat, seed, batch_size))
        predicted = net.predict(x_adv)
        broken = standing & (predicted != y)
        images[broken], labels[broken] = x_adv[broken], predicted[broken]
        standing &= ~broken
        counts.append(int(standing.sum()))
    return images, labels, counts


def stock(net, x, y, threat, seed, batch_size, budget):
    attack = import_autoattack().AutoAttack(
        net, norm=threat.norm.value, eps=float(threat.eps), seed=seed, version="standard"
    )
    for (name, parameter), (component, attribute) in SAME_BUDGET.items():
        if parameter in budget.get(name, {}):
            setattr(getattr(attack, component), attribute, budget[name][parameter])
    return attack.run_standard_evaluation(x, y, batch_size=batch_size)


def assert_same_as_stock(net, x, y, threat, *, seed, batch_size, budget):
    images, labels, counts = cascade(net, x, y, threat, seed, batch_size, budget)
    stock_images, stock_labels = stock(net, x, y, threat, seed, batch_size, budget)
    assert torch.equal(images, stock_images)
    assert torch.equal(labels, stock_labels)
    assert 0 < counts[-1] <= counts[0] < int((net.predict(x) == y).sum()), "every attack must have rows to meet"


@pytest.mark.parametrize(
    ("norm", "eps", "rows", "batch_size"), [("Linf", "0.2", slice(1514, 1538), 8), ("L2", "0.9", slice(1502, 1518), 6)]
)
def test_same_images_and_verdicts_as_stock_at_full_budgets(norm, eps, rows, batch_size, digits, digits_net):
    x, y = digits[0][rows], digits[1][rows]
    assert_same_as_stock(digits_net, x, y, ThreatModel.parse(norm, eps), seed=0, batch_size=batch_size, budget={})


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "0.2"), ("L2", "0.9")])
@pytest.mark.parametrize(("seed", "batch_size"), [(0, 1), (1, 3), (2, 100)])
def test_same_as_stock_for_any_batch_size_and_seed(norm, eps, seed, batch_size, digits, digits_net):
    x, y = digits[0][1514:1522], digits[1][1514:1522]
    quick = {"apgd-t": {"targets": 1}, "fab-t": {"targets": 2, "n_iter": 10}, "square": {"n_queries": 30}}
    threat = ThreatModel.parse(norm, eps)
    assert_same_as_stock(digits_net, x, y, threat, seed=seed, batch_size=batch_size, budget=quick)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_few_classes_are_attacked_where_stock_fails(n_classes, threat, worlds):
    world = worlds.LinearWorld.random(n_classes, 25, seed=1)
    x = torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = world.predict(x)
    with pytest.raises((IndexError, RuntimeError)):
        stock(world, x, y, threat, 0, 20, {"square": {"n_queries": 1}})
    _, labels, _ = cascade(world, x, y, threat, 0, 20, {"square": {"n_queries": 1}})
    margin = world.reachable_margin(x, y, threat)
    assert (labels != y)[margin > 0.02].all()
    assert (labels == y)[margin < -1e-4].all()


@pytest.mark.parametrize("side", [2, 12, 14, 19, 24])
def test_square_l2_pads_images_that_its_tiles_do_not_fit(side, worlds):
    threat = ThreatModel.parse("L2", "0.5")
    world = worlds.LinearWorld.random(3, side * side, seed=1)
    x = torch.rand(6, 1, side, side, generator=torch.Generator().manual_seed(0))
    y = world.predict(x)
    reference = import_autoattack().square.SquareAttack(world, norm="L2", eps=0.5, n_queries=5)
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        reference.perturb(x, y)
    step = Step("world", "square", "test", {"n_queries": 50})
    x_adv = next(run_attack(step, world, x, y, torch.ones(6, dtype=torch.bool), threat, 0, 6))
    assert x_adv.shape == x.shape
    assert ((x_adv - x).flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()


class ImageOnly(torch.nn.Module):
    """Answers the same for every class, and cannot take an empty batch."""

    def forward(self, x):
        return x.view(len(x), -1)[:, :1].expand(-1, 4).clone()


def test_square_survives_ties_on_a_model_that_rejects_empty_batches(threat, worlds):
    view = worlds.Wrapped(ImageOnly())
    x, y = torch.full((3, 1, 5, 5), 0.5), torch.zeros(3, dtype=torch.long)
    with pytest.raises(RuntimeError):
        view(x[:0])
    step = Step("tied", "square", "test", {"n_queries": 5})
    x_adv = next(run_attack(step, view, x, y, torch.ones(3, dtype=torch.bool), threat, 0, 3))
    assert x_adv.isfinite().all()


def test_square_goes_where_the_gradient_misleads_if_it_is_told_so(threat, worlds):
    """Of four linear images two have a gradient that leads away; one standard pass each tells which."""
    world, x = (
        worlds.LinearWorld.random(2, 25, seed=1),
        torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(0)),
    )
    y, astray = world.predict(x), torch.arange(8) % 2 == 0

    class Bent(worlds.World):
        is_target = False

        def forward(self, x):
            logits = world(x)
            if len(x) != 8:
                return logits
            turned = 2 * logits.detach() - logits  # its value, and the opposite of its gradient
            return torch.where(astray[:, None], turned, logits)

    def square(**parameters):
        step = Step("world", "square", "test", {"n_queries": 200, **parameters})
        return next(run_attack(step, Bent(), x, y, torch.ones_like(astray), threat, 0, 8))

    some, every = square(where="misled"), square()
    moved = (some != x).flatten(1).any(1)
    assert torch.equal(moved & ~astray, torch.zeros_like(astray))
    assert (some != x).any()
    assert (world.predict(some) != y).any()
    assert torch.equal(every, square(where="everywhere"))
