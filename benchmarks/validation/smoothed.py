"""An attack that asks for labels alone: how often noise around a point turns them tells which way to go.

It sees no gradient, no logit and no margin, so that nothing a defence does to those can mislead it; it proves what an
attack on the decision itself finds. A prototype for the proof, apart from the product's attacks.

Source: the smoothed gradient of Tramer et al. 2020 (arXiv 2002.08347, section on k-winners-take-all) and natural
evolution strategies (Ilyas et al. 2018, arXiv 1804.08598), which rank labels where scores are hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Decide = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] to labels [N]."""

WIDTH = 2.0
"""Standard deviation of the noise in units of eps, halved in the course of the search."""
MOMENTUM = 0.9


def smoothed(
    decide: Decide,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int = 40,
    samples: int = 200,
    targets: int = 3,
    seed: int = 0,
) -> Tensor:
    """Images within Linf ``eps`` of ``x``, the misclassified one where any was met; 2 steps samples targets queries.

    The noise leaves the ball and the box: only what is submitted must keep to them.
    """
    generator = torch.Generator().manual_seed(seed)
    found = x.clone()
    for target in _most_met(decide, x, y, eps, targets, generator).unbind(1):
        point, inertia = x.clone(), torch.zeros_like(x)
        for step in range(steps):
            left = 1 - step / steps
            noise = torch.randn((samples, *x.shape), generator=generator)
            reach = WIDTH * eps * (1 + left) / 2
            rise = _towards(decide, point + reach * noise, y, target) - _towards(
                decide, point - reach * noise, y, target
            )
            direction = torch.einsum("sn,snchw->nchw", rise, noise)
            inertia = MOMENTUM * inertia + F.normalize(direction.flatten(1)).view_as(x)
            point = (point + 2 * eps * left * inertia.sign()).clamp(x - eps, x + eps).clamp(0, 1)
            wrong = decide(point) != y
            found[wrong] = point[wrong]
    return found


def _towards(decide: Decide, images: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """1 where the target is met, -1 where the label still is, 0 elsewhere: [S, N] for images [S, N, C, H, W]."""
    labels = decide(images.flatten(0, 1)).view(images.shape[:2])
    return (labels == target).float() - (labels == y).float()


def _most_met(decide: Decide, x: Tensor, y: Tensor, eps: float, targets: int, generator: torch.Generator) -> Tensor:
    """Other classes that noise turns each image into, the most frequent first: [N, targets]."""
    noisy = x + WIDTH * eps * torch.randn((400, *x.shape), generator=generator)
    labels = decide(noisy.flatten(0, 1)).view(noisy.shape[:2])
    counts = F.one_hot(labels, int(max(labels.max(), y.max())) + 1).sum(0)
    return counts.scatter(1, y[:, None], -1).argsort(dim=1, descending=True, stable=True)[:, :targets]
