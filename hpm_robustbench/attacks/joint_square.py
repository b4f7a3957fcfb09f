"""Square (Andriushchenko et al. 2020, arXiv 1912.00049) on the true target, whole batches at a time.

The reference drops rows as it goes, so a batch-coupled target would answer it for another batch at every query. Here
the batch stays whole: each query changes one square of every row, and the target judges the batch as it then is. A row
keeps its change if its own margin grew. What the rows have kept was never judged together, and a margin also moves with
what the mates kept; so every few queries the batch is judged as it stands, and the margins are taken anew.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.attacks.base import Submissions, View, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.attacks.whole_batches import Cover, batchwise
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import Norm, ThreatModel

_FIRST_SHARE = 0.8
"""Share of an image's pixels in the first squares."""
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the budget after which squares have half the area (appendix B of the paper)."""
_REFRESH = 10
"""Queries from one look at the batch as it stands to the next; without such looks a third fewer rows are broken."""


class _Random:
    """Random squares and signs for every image of a batch, all from one generator."""

    def __init__(self, like: Images, generator: torch.Generator) -> None:
        self._like, self._generator = like, generator

    def signs(self, height: int = 1, width: int = 1) -> Images:
        """+1 or -1 for each image, channel and cell."""
        draw = torch.randint(0, 2, (*self._like.shape[:2], height, width), generator=self._generator)
        return (2 * draw - 1).to(self._like)

    def squares(self, side: int) -> Float[Tensor, "N 1 H W"]:
        """One in a square of each image, zero elsewhere."""
        return self.placed(torch.ones(side, side))

    def placed(self, pattern: Float[Tensor, "S S"]) -> Float[Tensor, "N 1 H W"]:
        """The pattern somewhere in each image, upright or on its side, and zero elsewhere."""
        pattern, side = pattern.to(self._like), len(pattern)
        row, column = (self._within_window(length, side) for length in self._like.shape[2:])
        inside = ((row >= 0) & (row < side)).unsqueeze(2) & ((column >= 0) & (column < side)).unsqueeze(1)
        row, column = row.clamp(0, side - 1).unsqueeze(2), column.clamp(0, side - 1).unsqueeze(1)
        upright = torch.randint(0, 2, (len(row), 1, 1), generator=self._generator).to(row) == 1
        return (torch.where(upright, pattern[row, column], pattern[column, row]) * inside).unsqueeze(1)

    def _within_window(self, length: int, side: int) -> Int[Tensor, "N L"]:
        """Each pixel's place along one edge of a window that lies at random."""
        first = torch.randint(0, length - side + 1, (len(self._like), 1), generator=self._generator)
        return (torch.arange(length) - first).to(self._like.device)


class _Corners:
    """Moves among the corners of the Linf ball."""

    def __init__(self, x: Images, threat: ThreatModel, generator: torch.Generator) -> None:
        self._x, self._eps, self._random = x, float(threat.eps), _Random(x, generator)

    def start(self) -> Images:
        """Vertical stripes, one pixel wide."""
        return self._moved(self._random.signs(width=self._x.shape[3]).expand_as(self._x))

    def change(self, current: Images, share: float) -> Images:
        """In one square of each image, which has about this share of its pixels, one sign per channel."""
        side = _side(self._x, share, at_least=1)
        moved = self._moved(self._random.signs().expand_as(self._x))
        return torch.where(self._random.squares(side) > 0, moved, current)

    def _moved(self, signs: Images) -> Images:
        return (self._x + self._eps * signs).clamp(0, 1)


class _Sphere:
    """Moves on the sphere of L2: what is taken from one square goes into another."""

    def __init__(self, x: Images, threat: ThreatModel, generator: torch.Generator) -> None:
        self._x, self._eps, self._random = x, float(threat.eps), _Random(x, generator)
        self._ball = Ball(x, threat)

    def start(self) -> Images:
        """Tiles of a fifth of the height, each a pattern with a sign of its own per channel."""
        height, width = self._x.shape[2:]
        side = max(height // 5, 1)
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        signs = self._random.signs(rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)
        tiles = signs * _pattern(side).repeat(rows, columns).to(self._x)
        return self._moved(tiles[:, :, :height, :width])

    def change(self, current: Images, share: float) -> Images:
        """Into one square of each image goes a pattern, with the length that it, another square and slack have."""
        side, delta = _side(self._x, share, at_least=3), current - self._x
        filled, emptied = self._random.placed(_pattern(side)), self._random.squares(side)
        inside = filled != 0
        slack = (self._eps**2 - delta.square().sum(dim=(1, 2, 3), keepdim=True)).clamp_min(0) / delta.shape[1]
        spent = (delta.square() * (inside | (emptied > 0))).sum(dim=(2, 3), keepdim=True)
        old = delta * inside
        new = _unit_channels(filled * self._random.signs() + _unit_channels(old)) * (slack + spent).sqrt()
        return self._moved(torch.where(inside, new, delta * (emptied == 0)))

    def _moved(self, delta: Images) -> Images:
        return (self._x + self._eps * self._ball.direction(delta)).clamp(0, 1)


def _side(x: Images, share: float, at_least: int) -> int:
    height, width = x.shape[2:]
    return min(max(round(math.sqrt(share * height * width)), at_least), height, width)


def _unit_channels(delta: Images) -> Images:
    """Each channel of unit length, or zero."""
    return functional.normalize(delta.flatten(2), dim=2).view_as(delta)


def _pattern(side: int) -> Float[Tensor, "S S"]:
    """Two bumps of opposite sign, one above the other, of unit length (the paper's eta)."""
    upper = side // 2
    pattern = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    return functional.normalize(pattern.flatten(), dim=0).view_as(pattern)


def _bump(height: int, width: int) -> Float[Tensor, "H W"]:
    """Squares around the center of sides 1, 3, 5, ... on top of each other, the k-th 1/k^2 high; of unit length."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs().unsqueeze(1), columns.abs())
    high = 1 / torch.arange(1, max(height, width) // 2 + 2).square()
    bump = high.flip(0).cumsum(0).flip(0)[ring]
    return functional.normalize(bump.flatten(), dim=0).view_as(bump)


class _Target:
    """The true target, asked for the margins of a whole batch; what it was shown is kept in ``cover``."""

    def __init__(self, view: View, y: Labels, active: Mask) -> None:
        self._view, self._y, self._active = view, y, active
        self.cover, self.beaten = Cover(view, y, active), False

    def losses(self, x: Images) -> Losses:
        """Margins of the active rows; the others, which have no say, share the mean of them."""
        logits = self._view.target_logits(x)
        own = margin(logits, self._y)
        losses = torch.where(self._active, own, own[self._active].mean())
        self.beaten = self.cover.take(x, logits, losses)
        return losses


def _joint_square(
    view: View, x: Images, y: Labels, active: Mask, threat: ThreatModel, seed: int, *, queries: int = 1000
) -> Submissions:
    """``queries`` looks of the true target at the batch; rows that are not to be won move to help those that are."""
    target = _Target(view, y, active)
    moves = (_Corners if threat.norm is Norm.LINF else _Sphere)(x, threat, seeded(seed))
    free = per_image(active if view.row_independent else torch.ones_like(active))
    current = torch.where(free, moves.start(), x)
    loss = target.losses(current)
    for query in range(1, queries):
        if target.beaten:
            break
        if query % _REFRESH == 0 or query == queries - 1:
            loss = target.losses(current)
            continue
        point = torch.where(free, moves.change(current, _share(query / queries)), x)
        changed = target.losses(point)
        current = torch.where(per_image(changed > loss), point, current)
        loss = torch.maximum(changed, loss)
    return target.cover.submissions


def _share(progress: float) -> float:
    """Share of an image's pixels in a square, after this share of the budget."""
    return _FIRST_SHARE * 0.5 ** sum(progress > after for after in _HALVINGS)


JOINT_SQUARE = batchwise(_joint_square)
