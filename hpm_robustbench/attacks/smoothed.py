"""Ascent of a smoothed margin: the slope of the true target itself, where gradients are hidden or the answer jumps.

The margin's mean over Gaussian noise is smooth whatever the target is, and differences of the target's own answers
estimate its gradient (antithetic evolution strategies; Tramer et al. 2020, arXiv 2002.08347, use it against
k-winners-take-all). The ascent is that of Auto-PGD, which needs a loss and a gradient from wherever.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.base import Attack, Parameter, Submissions, View, packed, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import Norm, ThreatModel


class _SmoothedMargin:
    """The true target's margin, with the gradient of its mean over noise for the rows that still stand.

    All rows meet the same noise: what costs most on a small network is to draw it.

    Args:
        view: whose target is asked.
        y: true labels.
        width: standard deviation of the noise in each pixel.
        samples: pairs of points, opposite to each other, that make one gradient.
        at_once: images per forward pass.
        generator: source of the noise.
    """

    def __init__(
        self, view: View, y: Labels, *, width: float, samples: int, at_once: int, generator: torch.Generator
    ) -> None:
        self._view, self._y, self._generator = view, y, generator
        self._width, self._samples, self._at_once = width, samples, at_once
        self._standing: Mask = torch.ones_like(y, dtype=torch.bool)

    def __call__(self, x: Images) -> Losses:
        """Its value at ``x``; derived by ``x``, the estimate."""
        point = x.detach()
        loss = margin(self._view.target_logits(point), self._y)
        self._standing = self._standing & (loss <= 0)
        slope = torch.zeros_like(point)
        rows = self._standing.nonzero().squeeze(1)
        if len(rows):
            slope[rows] = self._slope(point[rows], self._y[rows])
        return loss + ((x - point) * slope).flatten(1).sum(dim=1)

    def observe(self, _: Images, __: Losses) -> bool:
        """Whether the target has had every row wrong at some point."""
        return not self._standing.any()

    def _slope(self, x: Images, y: Labels) -> Images:
        total = torch.zeros_like(x)
        noises_per_pass = max(1, self._at_once // len(x))
        for first in range(0, self._samples, noises_per_pass):
            count = min(noises_per_pass, self._samples - first)
            noise = torch.randn(count, *x.shape[1:], generator=self._generator).to(x) * self._width
            rise = self._margins(x, noise, y) - self._margins(x, -noise, y)
            total += torch.einsum("sn,schw->nchw", rise, noise)
        return total / (2 * self._samples * self._width**2)

    def _margins(self, x: Images, noise: Float[Tensor, "S C H W"], y: Labels) -> Float[Tensor, "S N"]:
        """Margin of every row under every noise."""
        points = (x + noise.unsqueeze(1)).clamp(0, 1).flatten(0, 1)
        return margin(self._view.target_logits(points), y.repeat(len(noise))).view(len(noise), len(x))


def _smoothed(
    view: View,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    seed: int,
    *,
    at_once: int,
    steps: int = 50,
    samples: int = 50,
    sigma: float = 0.5,
) -> Images:
    """``sigma`` is the noise's share of eps: its deviation per pixel in Linf, its usual length in L2."""
    generator = seeded(seed)
    pixels_sharing = 1 if threat.norm is Norm.LINF else x[0].numel()
    width = sigma * float(threat.eps) / math.sqrt(pixels_sharing)
    loss = _SmoothedMargin(view, y, width=width, samples=samples, at_once=at_once, generator=generator)
    return ascend(loss, x, threat, steps=steps, generator=generator, observe=loss.observe).x


def _search(
    view: View,
    x: Images,
    y: Labels,
    active: Mask,
    threat: ThreatModel,
    seed: int,
    batch_size: int,
    **parameters: Parameter,
) -> Submissions:
    """As ``packed``, but the rows left of a batch share each forward pass with several of their noises."""
    attack = packed(partial(_smoothed, at_once=batch_size))
    return attack(view, x, y, active, threat, seed, batch_size, **parameters)


SMOOTHED = Attack(_search, requires_row_independence=True)
