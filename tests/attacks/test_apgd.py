"""The core: projections, step sizes, masks, early end, and strength against the reference on a real net."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.attacks.base import seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.threat import Norm, ThreatModel


def size(delta, norm):
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm is Norm.LINF else flat.norm(dim=1)


@given(
    norm=st.sampled_from(list(Norm)),
    eps=st.floats(1e-3, 5),
    reach=st.floats(0, 1e6),
    seed=st.integers(0, 2**32),
)
def test_projection_stays_in_ball_and_box_and_keeps_what_is_there(norm, eps, reach, seed):
    center, move = torch.rand(2, 4, 3, 5, 5, generator=seeded(seed))
    ball = Ball(center, ThreatModel.parse(norm.value, str(eps)))
    projected = ball.project(center + reach * (move - 0.5))
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (size(projected - center, norm) <= eps * (1 + 1e-6) + 1e-6).all()
    torch.testing.assert_close(ball.project(projected), projected, rtol=1e-5, atol=1e-6)
    assert torch.equal(ball.project(center), center)


@given(exponent=st.integers(-30, 30))
def test_direction_has_unit_length_for_gradients_of_any_scale(exponent):
    gradient = torch.randn(3, 1, 4, 4, generator=seeded(0)) * 10.0**exponent
    ball = Ball(torch.zeros_like(gradient), ThreatModel.parse("L2", "1"))
    torch.testing.assert_close(size(ball.direction(gradient), Norm.L2), torch.ones(3, dtype=torch.float64))
    assert torch.equal(ball.direction(torch.zeros_like(gradient)), torch.zeros_like(gradient))


def test_random_points_fill_the_cube_and_the_sphere():
    center = torch.full((200, 1, 4, 4), 0.5)
    cube = Ball(center, ThreatModel.parse("Linf", "0.2")).random_point(seeded(0)) - center
    assert cube.abs().amax() <= 0.2 + 1e-6
    assert cube.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.05)
    sphere = Ball(center, ThreatModel.parse("L2", "0.2")).random_point(seeded(0)) - center
    torch.testing.assert_close(size(sphere, Norm.L2), torch.full((200,), 0.2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_finds_the_closed_form_optimum(threat, worlds):
    world, x = worlds.LinearWorld.random(2, 25, seed=2), torch.rand(20, 1, 5, 5, generator=seeded(1))
    y = world.predict(x)
    found = ascend(lambda z: margin(world(z), y), x, threat, steps=100, start=seeded(0))
    best = world.reachable_margin(x, y, threat)
    torch.testing.assert_close(found.loss.double(), best, atol=5e-3, rtol=0)
    torch.testing.assert_close(margin(world(found.x), y), found.loss, atol=1e-5, rtol=0)


def test_rows_have_step_sizes_of_their_own(threat, worlds):
    """A row's path is the same alone and beside a row whose loss is on another scale."""
    world, x = worlds.LinearWorld.random(3, 25, seed=2), torch.rand(2, 1, 5, 5, generator=seeded(1))
    y = world.predict(x)
    scale = torch.tensor([1.0, 1e3])
    start = x.clone()
    together = ascend(lambda z: scale * margin(world(z), y), x, threat, steps=40, start=start)
    alone = ascend(lambda z: margin(world(z), y[:1]), x[:1], threat, steps=40, start=start[:1])
    torch.testing.assert_close(together.x[:1], alone.x, atol=1e-6, rtol=0)


def test_masked_rows_never_move(threat, worlds):
    world, x = worlds.LinearWorld.random(3, 25, seed=2), torch.rand(4, 1, 5, 5, generator=seeded(1))
    y = world.predict(x)
    free = torch.tensor([True, False, True, False])
    seen = []
    found = ascend(
        lambda z: margin(world(z), y),
        x,
        threat,
        steps=10,
        start=seeded(0),
        free=free,
        observe=lambda z, losses: seen.append(z) or False,
    )
    assert all(torch.equal(z[~free], x[~free]) for z in seen)
    assert torch.equal(found.x[~free], x[~free])
    assert (found.x[free] != x[free]).any()


@pytest.mark.parametrize(("steps", "stop_at"), [(7, None), (7, 1), (7, 4), (0, None), (1, None)])
def test_observer_sees_every_evaluated_iterate_and_may_end_the_search(steps, stop_at, threat, worlds):
    world, x = worlds.LinearWorld.random(3, 25, seed=2), torch.rand(4, 1, 5, 5, generator=seeded(1))
    y = world.predict(x)
    evaluated, seen = [], []

    def loss(z):
        evaluated.append(z.detach().clone())
        return margin(world(z), y)

    def observe(z, losses):
        seen.append(z.clone())
        return len(seen) == stop_at

    ascend(loss, x, threat, steps=steps, start=seeded(0), observe=observe)
    assert len(seen) == (stop_at or steps + 1)
    assert all(torch.equal(a, b) for a, b in zip(evaluated, seen, strict=True))


def test_a_kink_without_gradient_does_not_spoil_the_row(threat):
    x = torch.full((2, 1, 3, 3), 0.5)
    found = ascend(lambda z: (z - x).flatten(1).norm(dim=1), x, threat, steps=5, start=x.clone())
    assert found.x.isfinite().all()
    noisy = ascend(lambda z: (z - x).square().flatten(1).sum(1).sqrt(), x, threat, steps=5, start=x.clone())
    assert noisy.x.isfinite().all()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "0.15"), ("L2", "0.8")])
def test_as_strong_as_the_reference_on_a_real_net(norm, eps, digits, digits_net):
    threat = ThreatModel.parse(norm, eps)
    x, y = digits[0][1500:], digits[1][1500:]
    active = digits_net.predict(x) == y
    step = Step("net", "apgd-ce", "test")
    reference = digits_net.predict(next(run_attack(step, digits_net, x, y, active, threat, 0, 300)))

    def cross_entropy(z):
        return torch.nn.functional.cross_entropy(digits_net(z), y, reduction="none")

    ours = digits_net.predict(ascend(cross_entropy, x, threat, steps=100, start=seeded(0)).x)
    theirs_standing, ours_standing = (reference == y)[active].sum(), (ours == y)[active].sum()
    assert 0.2 * active.sum() < theirs_standing < 0.8 * active.sum()
    assert abs(int(ours_standing) - int(theirs_standing)) <= 3
