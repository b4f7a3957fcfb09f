"""Ascent of the share of wrong labels around a point: which way the decision lies, where there is no gradient.

How often noise around a point turns its label changes smoothly with the point, whatever the target is, and the labels
at opposite points tell the slope of it (antithetic evolution strategies; Tramer et al. 2020, arXiv 2002.08347, smooth
k-winners-take-all so; Ilyas et al. 2018, arXiv 1804.08598, where scores are hidden). No gradient and no logit is asked
for. The noise leaves the ball, since only what is submitted has to keep to it: where pixels are rounded, what can be
changed within the ball is one jump per pixel, and to wait for the right ones at once is to wait for luck.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from hpm_robustbench.attacks.ball import Ball, per_image
from hpm_robustbench.attacks.base import View, packed, seeded
from hpm_robustbench.attacks.losses import flat, margin, slope_of
from hpm_robustbench.errors import UnknownName
from hpm_robustbench.shapes import Images, Labels, Mask
from hpm_robustbench.threat import Norm, ThreatModel

INERTIA = 0.9
"""Share of the last direction that a new one keeps; few samples are noisy, and so their noise averages out."""
WHERE = ("everywhere", "flat")


def _smoothed(
    view: View,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    seed: int,
    *,
    at_once: int,
    steps: int = 20,
    samples: int = 100,
    sigma: float = 2.0,
    where: str = "everywhere",
) -> Images:
    """Rows that still stand take ``steps`` steps that shrink to nothing, each by 2 ``samples`` labels.

    ``sigma`` is the noise's share of eps, its deviation per pixel in Linf, its usual length in L2, and shrinks to half.
    ``where`` may be ``flat``: only rows are attacked at which the margin has no gradient, which costs the others one.
    """
    if where not in WHERE:
        raise UnknownName("where", where, WHERE)
    standing = flat(slope_of(view, x, y, margin)) if where == "flat" else torch.ones_like(y, dtype=torch.bool)
    ball, eps, generator = Ball(x, threat), float(threat.eps), seeded(seed)
    width = sigma * eps / (1 if threat.norm is Norm.LINF else math.sqrt(x[0].numel()))
    point, direction = x, torch.zeros_like(x)
    for step in range(steps):
        rows = standing.nonzero().squeeze(1)
        if not len(rows):
            break
        left = 1 - step / steps
        noise = torch.randn(samples, *x.shape[1:], generator=generator).to(x) * (width * (1 + left) / 2)
        found = _slope(view, point[rows], y[rows], noise, at_once)
        direction[rows] = INERTIA * direction[rows] + functional.normalize(found.flatten(1)).view_as(found)
        moved = ball.project(point + 2 * eps * left * ball.direction(direction))
        point = torch.where(per_image(standing), moved, point)
        standing[rows] = ~_wrong(view, point[rows], y[rows])
    return point


def _slope(view: View, x: Images, y: Labels, noise: Float[Tensor, "S C H W"], at_once: int) -> Images:
    """Of the share of wrong labels. All rows meet the same noise: what costs most on a small network is to draw it."""
    total = torch.zeros_like(x)
    for part in torch.split(noise, max(1, at_once // len(x))):
        more_wrong = _wrong_under(view, x, y, part).to(x) - _wrong_under(view, x, y, -part).to(x)
        total += torch.einsum("sn,schw->nchw", more_wrong, part)
    return total


def _wrong_under(view: View, x: Images, y: Labels, noise: Float[Tensor, "S C H W"]) -> Tensor:
    """Whether each row is wrong under each noise, [S N]."""
    points = (x + noise.unsqueeze(1)).clamp(0, 1).flatten(0, 1)
    return _wrong(view, points, y.repeat(len(noise))).view(len(noise), len(x))


def _wrong(view: View, x: Images, y: Labels) -> Mask:
    return view.target_logits(x).argmax(dim=1) != y


SMOOTHED = packed(_smoothed, shares_passes=True)
