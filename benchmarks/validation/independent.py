"""An attacker of its own, to see whether the product's attacks missed something: plain PGD, many restarts and steps.

It shares no code with them. Walking along the sign of a gradient, it climbs towards one class per restart: by turns a
random blend of two margins, FC's and the distances', and a soft minimum of all that must be positive. Where both
margins pull in different directions, the sign of a hard minimum's gradient jumps from one to the other and may never
meet the place where both are crossed.

Source: Madry et al. 2018 (arXiv 1706.06083); the blend is that of a Lagrangian with random multipliers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.threat import Batching

SOFTNESS = 0.1
"""Of the minimum, in units of what parts an image's classes."""


def misclassified(
    classifier: HPMClassifier, x: Tensor, y: Tensor, eps: float, *, restarts: int, steps: int, seed: int = 0
) -> Tensor:
    """Images that the classifier gets wrong in some submission within Linf ``eps``: [N], a mask.

    Under JOINT all of ``x`` is one batch, every iterate is a submission, and all images move.
    """
    with torch.no_grad():
        wrong = classifier(x).argmax(1) != y
    every = torch.ones(len(x))
    for point in _walks(classifier, x, y, eps, every, restarts, steps, seed):
        with torch.no_grad():
            wrong |= classifier(point).argmax(1) != y
    return wrong


def misclassified_one_by_one(
    classifier: HPMClassifier, x: Tensor, y: Tensor, eps: float, rows: list[int], *, restarts: int, steps: int
) -> Tensor:
    """As above, of ``rows`` of a JOINT batch, when the whole batch moves for the sake of one of them at a time."""
    wrong = torch.zeros(len(x), dtype=torch.bool)
    for row in rows:
        alone = torch.zeros(len(x)).index_fill(0, torch.tensor([row]), 1.0)
        for point in _walks(classifier, x, y, eps, alone, restarts, steps, seed=row):
            with torch.no_grad():
                wrong[row] |= classifier(point).argmax(1)[row] != y[row]
            if wrong[row]:
                break
    return wrong


def _walks(
    classifier: HPMClassifier, x: Tensor, y: Tensor, eps: float, weight: Tensor, restarts: int, steps: int, seed: int
) -> Iterator[Tensor]:
    """Every point of every walk, on each of which the rows climb by their weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        scales = [scores.std(1, keepdim=True) for scores in _scores(classifier, x)]
        favoured = _others_by_score(_scores(classifier, x)[0], y)
    for restart in range(restarts):
        target = favoured[:, restart // 2 % favoured.shape[1]]
        blend = torch.rand(len(x), generator=generator) if restart % 2 else None
        point = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
        for step in range(steps):
            gradient = _gradient(classifier, point, (y, target), blend, scales, weight)
            length = 2 * eps * (1 - step / steps)
            point = (point + length * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
            yield point


def _gradient(
    classifier: HPMClassifier,
    point: Tensor,
    way: tuple[Tensor, Tensor],
    blend: Tensor | None,
    scales: list[Tensor],
    weight: Tensor,
) -> Tensor:
    """Of what leads from the first class of the way to the second."""
    leaf = point.clone().requires_grad_()
    y, target = way
    with torch.enable_grad():
        fc, near = (scores / scale for scores, scale in zip(_scores(classifier, leaf), scales, strict=True))
        nearer = _discount(classifier) * _of(near, target) - _of(near, y)
        if blend is None:
            others = fc.scatter(1, target[:, None], -1e9)
            needed = torch.cat([_of(fc, target)[:, None] - others, nearer[:, None]], dim=1)
            height = -torch.logsumexp(-needed / SOFTNESS, dim=1)
        else:
            height = blend * (_of(fc, target) - _of(fc, y)) + (1 - blend) * nearer
        (gradient,) = torch.autograd.grad((weight * height).sum(), leaf)
    return gradient


def _scores(classifier: HPMClassifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """FC logits, and how near the prototypes are: under JOINT those that the images themselves take part in."""
    embedding = classifier.embed(x)
    joint = classifier.batching is Batching.JOINT
    distances = classifier.distances(embedding) if joint else classifier.static_distances(embedding.features)
    return embedding.logits, -distances


def _discount(classifier: HPMClassifier) -> float:
    """By which a lone image nears the prototype of the class that FC chooses."""
    return 1.0 if classifier.batching is Batching.JOINT else (1 - classifier.config.beta) ** 2


def _of(scores: Tensor, classes: Tensor) -> Tensor:
    return scores.gather(1, classes[:, None]).squeeze(1)


def _others_by_score(scores: Tensor, y: Tensor) -> Tensor:
    return scores.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
