"""What decides the answer for one image while its batch mates stay as they are.

HPM's answer jumps where the FC decision changes, so its own gradient sees one side of each jump. Here both sides are
shown at once: how far each class would be if FC chose it, and how far it is otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import distances, hard_assignment, squared_distances
from hpm_robustbench.shapes import ClassPrototypes, Features, Images, Logits
from hpm_robustbench.threat import Batching

_TINY = 1e-12


class Region(NamedTuple):
    """FC logits, and the distance of each class if FC chooses it (``chosen``) and if not (``distances``). All [N, K].

    Class k = argmax ``fc`` counts with ``chosen``, every other with ``distances``; the least one is the answer, where
    the region is exact (``is_exact``). Under SOLO ``chosen`` is ``distances`` times the discount of identity P2.
    """

    fc: Tensor
    distances: Tensor
    chosen: Tensor


def is_exact(config: HPMConfig) -> bool:
    """Whether the region decides as the classifier does: hard, and nothing normalised, dropped or carried."""
    return config.assignment == "hard" and not config.normalize and config.absent == "dataset"


class _Mates(NamedTuple):
    """Summed features of a class's members without the image itself, [.. D], and their number, [.. 1]; dataset side."""

    sums: Tensor
    counts: Tensor
    dataset: Tensor
    beta: Tensor


def region_of(classifier: HPMClassifier, x: Images) -> Region:
    """The region of every row of ``x``, differentiable towards the row itself; its mates are constants."""
    z, fc = classifier.embed(x)
    with torch.autocast(z.device.type, enabled=False):
        mates = _mates(classifier, z, fc)
        apart, chosen = _squared(z, mates, classifier.config)
        if classifier.batching is Batching.JOINT:
            apart, chosen = _without_itself(z, fc, mates, classifier.config, apart, chosen)
        n_features = z.shape[1]
        return Region(fc, *(distances(squared, n_features, classifier.config) for squared in (apart, chosen)))


def region_of_head(logits: Logits) -> Region:
    """The region of a plain head: its highest logit is the answer, and discounts nothing."""
    return Region(logits, -logits, -logits)


def shared_prototypes(classifier: HPMClassifier, x: Images) -> ClassPrototypes:
    """The mixed prototypes that all of ``x`` are compared with, as constants: of this batch under JOINT."""
    with torch.no_grad():
        z, fc = classifier.embed(x)
        return _apart(_mates(classifier, z, fc), classifier.config)


def _mates(classifier: HPMClassifier, z: Features, fc: Logits) -> _Mates:
    """Per class, [K ..]: what the whole batch (JOINT) or the fixed reference (REFERENCE) adds up to; nothing alone."""
    dataset, beta = classifier.prototypes, classifier.beta.detach().unsqueeze(1)
    if classifier.batching is Batching.JOINT:
        features, weights = z.detach(), hard_assignment(fc.detach())
    elif classifier.reference is not None:
        features, weights = classifier.reference
    else:
        return _Mates(torch.zeros_like(dataset), torch.zeros_like(beta), dataset, beta)
    return _Mates(weights.T @ features, weights.sum(dim=0).unsqueeze(1), dataset, beta)


def _apart(mates: _Mates, config: HPMConfig) -> Tensor:
    """The prototypes that an image meets where it is no member: dataset and mates, mixed."""
    present = mates.counts > 0
    n = torch.where(present, mates.counts, 1.0)
    share = torch.where(present, mates.beta * n / (n + config.kappa), 0.0)
    return mates.dataset + share * (mates.sums / n - mates.dataset)


def _joined(mates: _Mates, config: HPMConfig) -> tuple[Tensor, Tensor]:
    """Where an image z is a member, z - P = pull * (z - center): its own part of the prototype moves with it."""
    n = mates.counts + 1
    share = mates.beta * n / (n + config.kappa)
    pull = 1 - share / n
    return pull, ((1 - share) * mates.dataset + share * mates.sums / n) / pull.clamp_min(_TINY)


def _squared(z: Features, mates: _Mates, config: HPMConfig) -> tuple[Logits, Logits]:
    apart = squared_distances(z, _apart(mates, config))
    if not config.include_self:
        return apart, apart
    pull, center = _joined(mates, config)
    return apart, squared_distances(z, center) * pull.square().squeeze(1)


def _without_itself(
    z: Features, fc: Logits, mates: _Mates, config: HPMConfig, apart: Logits, chosen: Logits
) -> tuple[Logits, Logits]:
    """Correct each row's column of the class that FC chose: the sums over the batch hold the row itself there."""
    own = hard_assignment(fc.detach()).argmax(dim=1)
    others = _Mates(mates.sums[own] - z.detach(), mates.counts[own] - 1, mates.dataset[own], mates.beta[own])
    own_apart = (z - _apart(others, config)).square().sum(dim=1, keepdim=True)
    if config.include_self:
        pull, center = _joined(others, config)
        own_chosen = (z - center).square().sum(dim=1, keepdim=True) * pull.square()
    else:
        own_chosen = own_apart
    column = own.unsqueeze(1)
    return apart.scatter(1, column, own_apart), chosen.scatter(1, column, own_chosen)
