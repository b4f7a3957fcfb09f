"""RayS (Chen & Gu 2020, arXiv 2006.12792): a search that is told nothing but the true target's label.

A direction is a sign per pixel, and its radius is where the label changes along it. Blocks of signs are flipped, large
ones first; a flip stays if the label is wrong at the best radius so far, and bisection then finds the new radius. Every
query asks one point of each row: one row may be bisecting while the next tries a block.

Two things differ from the paper. What lies below eps is of no interest, so eps is the first radius asked of a new
direction, and no bisection goes below it. And in L2, where a pixel that does not matter still uses up the budget, a
block may also be left out of the direction or taken back into it.

While it searches, a row is far outside the ball. So there is no form of it for rows that share a batch: whole batches
of such rows are nothing that an attacker may submit, and what a row learns beside mates that move is out of date at
once. Mates kept clean would be fair, but cost a whole batch per row and query; ``joint-square`` is the black box there.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.attacks.base import View, packed
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import Norm, ThreatModel

_TOLERANCE = 1e-3
"""Share of a radius to which it is bisected."""
_LOOK = 50
"""Queries between looks at whether all is found; a look waits for the device."""


class _Rays:
    """Each row's best direction and the radius at which its label is known to be wrong.

    At first the radius is one that leaves only black and white pixels, whose label nobody has asked.
    """

    def __init__(self, view: View, x: Images, y: Labels, threat: ThreatModel, queries: int) -> None:
        self._view, self._x, self._y = view, x, y
        self._ball, self._eps = Ball(x, threat), float(threat.eps)
        self._kinds = 1 if threat.norm is Norm.LINF else 2
        self._blocks = _blocks(x[0].numel(), -(-queries // self._kinds)).to(x.device)
        self._signs = torch.ones_like(x)
        self._kept = torch.ones_like(x, dtype=torch.bool)
        self._attempt = torch.zeros_like(y)
        self._trying = torch.ones_like(y, dtype=torch.bool)
        reach = 1.0 if threat.norm is Norm.LINF else math.sqrt(x[0].numel())
        self._radius = (~self._wrong(x)).to(x.dtype) * reach
        self._low = torch.zeros_like(self._radius)

    def query(self) -> None:
        """Ask the label of one point per row: the next block at the best radius, or the next radius of a bisection."""
        tried, signs, kept = self._trying, *self._proposal()
        radius = torch.where(tried, self._radius, self._next_radius())
        wrong = self._wrong(self._point(signs, kept, radius))
        self._signs = torch.where(per_image(wrong), signs, self._signs)
        self._kept = torch.where(per_image(wrong), kept, self._kept)
        self._radius = torch.where(wrong, radius, self._radius)
        self._low = torch.where(tried, torch.zeros_like(radius), torch.where(wrong, self._low, radius))
        self._attempt = self._attempt + tried.long()
        self._trying = torch.where(tried, ~wrong, self._low >= (1 - _TOLERANCE) * self._radius)

    def found(self) -> bool:
        """Whether every row's label is wrong within eps; further queries would change nothing."""
        return bool((self._radius <= self._eps).all())

    def within_budget(self) -> Images:
        """Along each row's best direction, the point where the label is wrong, or the last one in the ball."""
        return self._point(self._signs, self._kept, self._radius.clamp(max=self._eps))

    def _next_radius(self) -> Losses:
        middle = (self._low + self._radius) / 2
        return torch.where(self._low < self._eps, self._radius.clamp(max=self._eps), middle)

    def _proposal(self) -> tuple[Images, Bool[Tensor, "N C H W"]]:
        """The direction with the next block changed where a row is trying one, else the direction as it is."""
        first, end = self._blocks[self._attempt // self._kinds].unbind(dim=1)
        pixel = torch.arange(self._x[0].numel(), device=self._x.device).view(self._x[0].shape)
        block = (pixel >= per_image(first)) & (pixel < per_image(end)) & per_image(self._trying)
        flips = block & per_image(self._attempt % self._kinds == 0)
        return torch.where(flips, -self._signs, self._signs), self._kept ^ (block & ~flips)

    def _point(self, signs: Images, kept: Bool[Tensor, "N C H W"], radius: Losses) -> Images:
        return (self._x + per_image(radius) * self._ball.direction(signs * kept)).clamp(0, 1)

    def _wrong(self, x: Images) -> Mask:
        return self._view.target_logits(x).argmax(dim=1) != self._y


def _blocks(n_pixels: int, count: int) -> Int[Tensor, "A 2"]:
    """First pixel and end of ``count`` blocks: all pixels, the halves, ... down to single pixels, and those again."""
    blocks: list[tuple[int, int]] = []
    size = n_pixels
    while len(blocks) < count:
        blocks += [(first, min(first + size, n_pixels)) for first in range(0, n_pixels, size)]
        size = -(-size // 2)
    return torch.tensor(blocks[:count])


def _hard_label(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, queries: int = 1000) -> Images:
    """``queries`` labels of the true target per row; nothing is random, so the seed does not matter."""
    rays = _Rays(view, x, y, threat, queries)
    for query in range(1, queries):  # the clean image was the first
        rays.query()
        if query % _LOOK == 0 and rays.found():
            break
    return rays.within_budget()


HARD_LABEL = packed(_hard_label)
