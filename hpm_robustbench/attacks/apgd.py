"""Auto-PGD (Croce & Hein 2020, Algorithm 1) for any loss that has one value per row.

Rows never meet here: each has its own step size, its own best point and its own ways back to it. Whether they meet in
the loss is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.shapes import Images, Losses, Mask
from hpm_robustbench.threat import ThreatModel

MOMENTUM = 0.75
"""Share of a new iterate that is the gradient step; the rest continues the last move."""
RHO = 0.75
"""A step size that raised the loss in fewer than this share of a period's iterations is too long."""

LossPerRow = Callable[[Images], Losses]
Observer = Callable[[Images, Losses], bool]
"""Sees every iterate with its losses; answers True when nothing is left to look for."""


@dataclass(frozen=True)
class Ascent:
    """Per row, the highest loss met and where; different rows may come from different iterates."""

    x: Images
    loss: Losses


class _StepSizes:
    """One step size per row, halved at a checkpoint where the last period did not earn it."""

    def __init__(self, first: float, loss: Losses) -> None:
        self.size = torch.full_like(loss, first)
        self.rises = torch.zeros_like(loss)
        self._best_loss = loss
        self._halved = torch.zeros_like(loss, dtype=torch.bool)

    def halve(self, period: int, best_loss: Losses) -> Mask:
        """Halve where the loss rose too seldom, or where a full period at one size did not raise its maximum."""
        stalled = ~self._halved & (best_loss <= self._best_loss)
        self._halved = stalled | (self.rises < RHO * period)
        self._best_loss = best_loss
        self.size = torch.where(self._halved, self.size / 2, self.size)
        self.rises = torch.zeros_like(self.rises)
        return self._halved


def _never_done(_: Images, __: Losses) -> bool:
    return False


def ascend(
    loss_per_row: LossPerRow,
    x: Images,
    threat: ThreatModel,
    *,
    steps: int,
    start: torch.Generator | Images,
    free: Mask | None = None,
    observe: Observer = _never_done,
) -> Ascent:
    """Maximise every row's loss over the ball around its image.

    Args:
        loss_per_row: differentiable; called on the whole batch, ``steps`` + 1 times. Its sum is differentiated, so
            a loss in which rows meet gets its cross terms.
        x: images in [0, 1], centers of the balls.
        threat: norm and radius.
        steps: gradient steps.
        start: where to begin, which is projected; or what to draw a random point of the ball from.
        free: rows that may move, all by default; the others stay exactly where they are.
        observe: sees each iterate, the start included, and may end the search.
    """
    ball = Ball(x, threat)
    may_move = torch.ones_like(x, dtype=torch.bool) if free is None else per_image(free)
    first = ball.random_point(start) if isinstance(start, torch.Generator) else ball.project(start)
    now = best = _evaluate(loss_per_row, torch.where(may_move, first, x))
    previous = now.x
    step_sizes = _StepSizes(2 * float(threat.eps), now.loss)
    last_checkpoint, checkpoints = 0, _checkpoints(steps)
    done = observe(now.x, now.loss)
    for step in range(1, steps + 1):
        if done:
            break
        stepped = ball.project(now.x + per_image(step_sizes.size.to(now.x)) * ball.direction(now.gradient))
        inertia = 1 - MOMENTUM if step > 1 else 0.0
        moved = ball.project(now.x + (1 - inertia) * (stepped - now.x) + inertia * (now.x - previous))
        previous, last_loss = now.x, now.loss
        now = _evaluate(loss_per_row, torch.where(may_move, moved, x))
        step_sizes.rises += now.loss > last_loss
        best = _choose(now.loss > best.loss, now, best)
        done = observe(now.x, now.loss)
        if step in checkpoints:
            now = _choose(step_sizes.halve(step - last_checkpoint, best.loss), best, now)
            last_checkpoint = step
    return Ascent(best.x, best.loss)


class _Point(NamedTuple):
    x: Tensor
    loss: Tensor
    gradient: Tensor


def _choose(where: Mask, yes: _Point, no: _Point) -> _Point:
    """Row by row one point or the other."""
    image = per_image(where)
    return _Point(
        torch.where(image, yes.x, no.x),
        torch.where(where, yes.loss, no.loss),
        torch.where(image, yes.gradient, no.gradient),
    )


def _evaluate(loss_per_row: LossPerRow, x: Images) -> _Point:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        loss = loss_per_row(leaf)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return _Point(x, loss.detach(), gradient.nan_to_num())  # a distance of zero may have no gradient


def _checkpoints(steps: int) -> set[int]:
    """Iterations after which step sizes are reviewed: periods of 22 % of the budget, shrinking by 3 % down to 6 %."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(share * steps) for share in shares[1:] if share < 1}
