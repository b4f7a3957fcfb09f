"""An attacker of its own, to see whether the product's attacks missed something: plain PGD, many restarts and steps.

It shares no code with them and no idea but the oldest one: walk along the sign of a gradient. What it climbs is, anew
in every restart, a random blend of two margins towards a class, that of the FC logits and that of the distances, so
that points where both are crossed are met without knowing how HPM decides.

Source: Madry et al. 2018 (arXiv 1706.06083); the blend is that of a Lagrangian with random multipliers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.threat import Batching


def misclassified(
    classifier: HPMClassifier, x: Tensor, y: Tensor, eps: float, *, restarts: int, steps: int, seed: int = 0
) -> Tensor:
    """Images that the classifier gets wrong in some submission within Linf ``eps``: [N], a mask.

    Under JOINT all of ``x`` is one batch, every iterate is a submission, and all images move.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        wrong = classifier(x).argmax(1) != y
        scales = [scores.std(1, keepdim=True) for scores in _scores(classifier, x)]
        favoured = _others_by_score(_scores(classifier, x)[0], y)
    for restart in range(restarts):
        target = favoured[:, restart % favoured.shape[1]]
        blend = torch.rand(len(x), generator=generator)
        point = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        for step in range(steps):
            gradient = _gradient(classifier, point, y, target, blend, scales)
            length = 2 * eps * (1 - step / steps)
            point = (point + length * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
            with torch.no_grad():
                wrong |= classifier(point).argmax(1) != y
    return wrong


def _gradient(
    classifier: HPMClassifier, point: Tensor, y: Tensor, target: Tensor, blend: Tensor, scales: list[Tensor]
) -> Tensor:
    leaf = point.clone().requires_grad_()
    with torch.enable_grad():
        tables = zip(_scores(classifier, leaf), scales, strict=True)
        fc, near = (_margin(scores / scale, y, target) for scores, scale in tables)
        (gradient,) = torch.autograd.grad((blend * fc + (1 - blend) * near).sum(), leaf)
    return gradient


def _scores(classifier: HPMClassifier, x: Tensor) -> list[Tensor]:
    """FC logits, and how near the prototypes are that the images themselves take part in under JOINT."""
    embedding = classifier.embed(x)
    joint = classifier.batching is Batching.JOINT
    near = -classifier.distances(embedding) if joint else -classifier.static_distances(embedding.features)
    return [embedding.logits, near]


def _margin(scores: Tensor, y: Tensor, target: Tensor) -> Tensor:
    return (scores.gather(1, target[:, None]) - scores.gather(1, y[:, None])).squeeze(1)


def _others_by_score(scores: Tensor, y: Tensor) -> Tensor:
    return scores.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
