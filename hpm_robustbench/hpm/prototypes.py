"""The mathematics of Hybrid Prototype Mixing, as pure functions (a reconstruction from arXiv 2606.01746's abstract).

Notation: features z [N, D]; FC logits a [N, K]; memberships w [N, K]; dataset prototypes mD [K, D]. Batch prototypes
mBt are weighted means of features; they are mixed into P = mD + mix (mBt - mD); the answer is -distance(z, P) / tau.

Three hazards are ruled out: absent classes are masked *before* dividing (a small constant in the denominator would
give them an enormous straight-through gradient, and a where() after the division lets NaN gradients through); an
unsquared distance of zero has gradient zero, not NaN; distances are computed from differences, because
||z||^2 - 2 zP + ||P||^2 cancels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.shapes import ClassPrototypes, Features, Labels, Logits, RowPrototypes
from hpm_robustbench.threat import Batching

_DIFFERENCES_AT_ONCE = 2**24
"""Elements of the [N, k, D] differences held at a time while distances are computed."""


class Reference(NamedTuple):
    """A fixed clean set that every image joins under REFERENCE: features [R, D] and memberships [R, K]."""

    features: Tensor
    weights: Tensor


class Batch(NamedTuple):
    """What a row's batch adds up to, per class: shared by all rows ([K, D], [K], [K]) or per row ([N, K, D], ...).

    ``sums`` are weighted features, ``counts`` summed memberships, ``present`` in [0, 1] whether there is a member.
    """

    sums: Tensor
    counts: Tensor
    present: Tensor


def hard_assignment(logits: Logits) -> Logits:
    """One-hot of the largest logit per row; ties go to the lowest index."""
    largest = logits == logits.amax(dim=1, keepdim=True)
    return (largest & (largest.cumsum(dim=1) == 1)).to(logits.dtype)


def memberships(logits: Logits, config: HPMConfig) -> Logits:
    """Weight w of each image in each class, from the FC classifier's own prediction.

    ``hard`` is one-hot forward and softmax backward: w = h + q - stop_gradient(q) (Bengio et al. 2013).
    """
    q = F.softmax(logits / config.temperature, dim=1)
    if config.assignment == "soft":
        return q
    if config.assignment == "top-k":
        best = logits.argsort(dim=1, descending=True, stable=True)[:, : config.k]
        kept = torch.zeros_like(q).scatter(1, best, q.gather(1, best))
        return kept / kept.sum(dim=1, keepdim=True)
    w = hard_assignment(logits) + (q - q.detach())  # in this order the forward pass is h without rounding
    if config.assignment == "threshold":
        w = w * (q.amax(dim=1, keepdim=True) >= config.confidence)
    return w


def is_hard(config: HPMConfig) -> bool:
    """Whether memberships are 0 or 1 in the forward pass."""
    return config.assignment in ("hard", "threshold")


def gather(z: Features, w: Logits, config: HPMConfig, batching: Batching, reference: Reference | None) -> Batch:
    """Add up the batch that each row sees.

    Presence is 0 or 1 and carries no gradient for hard memberships. For soft ones it is the probability
    1 - prod_i (1 - w_i) that at least one image is a member, which tends to the hard answer as the temperature
    falls, for every batch size (a plain soft mean does not: in a batch of one it is the image itself, for every
    class).
    """
    weights = w if config.gradient in ("full", "weights") else w.detach()
    features = z if config.gradient in ("full", "features") else z.detach()
    if batching is Batching.JOINT:
        sums, counts, lacking = _joint(features, weights, config.include_self)
    else:
        sums, counts, lacking = _per_row(features, weights, config.include_self, reference)
    present = (counts > 0.5).to(z.dtype) if is_hard(config) else 1 - lacking
    return Batch(sums, counts, present.detach() if is_hard(config) else present)


def _joint(z: Tensor, w: Tensor, include_self: bool) -> tuple[Tensor, Tensor, Tensor]:
    sums, counts = w.T @ z, w.sum(dim=0)
    if include_self:
        return sums, counts, (1 - w).prod(dim=0)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    lacking = (1 - w).unsqueeze(0).masked_fill(own.unsqueeze(2), 1).prod(dim=1)
    counts_of_others = (~own).to(w.dtype) @ w  # counts - w may round to 0 beside a soft member who is still present
    return sums - w.unsqueeze(2) * z.unsqueeze(1), counts_of_others, lacking


def _per_row(z: Tensor, w: Tensor, include_self: bool, reference: Reference | None) -> tuple[Tensor, Tensor, Tensor]:
    own = w if include_self else torch.zeros_like(w)
    sums, counts, lacking = own.unsqueeze(2) * z.unsqueeze(1), own, 1 - own
    if reference is not None:
        sums = sums + reference.weights.T @ reference.features
        counts = counts + reference.weights.sum(dim=0)
        lacking = lacking * (1 - reference.weights).prod(dim=0)
    return sums, counts, lacking


def mix(dataset: ClassPrototypes, batch: Batch, beta: Tensor, config: HPMConfig, carried: ClassPrototypes) -> Tensor:
    """The prototypes P that rows are compared with: [K, D] if the batch is shared, else [N, K, D].

    P_c = mD_c + beta_c present_c (mBt_c - mD_c); an absent class keeps mD_c, or is mixed with its carried prototype,
    to the degree that it is absent.
    """
    exists = batch.present > 0
    counts = torch.where(exists, batch.counts, 1.0)
    means = torch.where(exists.unsqueeze(-1), batch.sums, 0.0) / counts.unsqueeze(-1)
    n = counts.detach() if is_hard(config) else counts  # the formula's n_c is an integer without gradient
    weight = beta * n / (n + config.kappa) * batch.present
    prototypes = dataset + weight.unsqueeze(-1) * (means - dataset)
    if config.absent == "carry":
        prototypes = prototypes + (beta * (1 - batch.present)).unsqueeze(-1) * (carried - dataset)
    return F.normalize(prototypes, dim=-1) if config.normalize else prototypes


def squared_distances(z: Features, prototypes: ClassPrototypes | RowPrototypes) -> Logits:
    """||z_i - P_c||^2 for every row and class, from differences, a bounded number of classes at a time."""
    per_row = prototypes if prototypes.dim() == 3 else prototypes.unsqueeze(0)
    step = max(1, _DIFFERENCES_AT_ONCE // max(1, z.numel()))
    blocks = [
        (z.unsqueeze(1) - per_row[:, start : start + step]).square().sum(dim=2)
        for start in range(0, per_row.shape[1], step)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def distances(squared: Logits, n_features: int, config: HPMConfig) -> Logits:
    """The configured distance from squared ones; its gradient at zero is zero."""
    if config.distance == "squared":
        return squared
    positive = squared > 0
    root = torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
    return root / n_features**0.5 if config.distance == "scaled-l2" else root


def hpm_distances(
    z: Features,
    logits: Logits,
    dataset: ClassPrototypes,
    beta: Tensor,
    config: HPMConfig,
    batching: Batching,
    *,
    reference: Reference | None = None,
    carried: ClassPrototypes | None = None,
) -> Logits:
    """Distance of each row to each class's mixed prototype (method: P above), as ``config`` and ``batching`` say.

    ``beta`` is [K]. A dropped class is farther than every other class by a constant.
    """
    w = memberships(logits, config)
    if batching is Batching.SOLO and _discountable(config):
        discount = solo_discount(w, beta, config)
        squared, present = discount * squared_distances(z, dataset), (w.detach() > 0.5)
    else:
        batch = gather(z, w, config, batching, reference)
        fallback = dataset if carried is None else carried
        squared, present = squared_distances(z, mix(dataset, batch, beta, config, fallback)), batch.present > 0
    distance = distances(squared, z.shape[1], config)
    return _drop_absent(distance, present) if config.absent == "drop" else distance


def _discountable(config: HPMConfig) -> bool:
    return (
        config.include_self
        and not config.normalize
        and config.absent != "carry"
        and config.gradient in ("full", "features")
        and is_hard(config)
    )


def solo_discount(w: Logits, beta: Tensor, config: HPMConfig) -> Logits:
    """Factor on the squared distance to mD that a batch of one amounts to: (1 - beta)^2 for the FC class, else 1.

    A lone image is its own batch prototype, so z - P_k = (1 - beta) (z - mD_k) and no other class changes
    (identity P2): a whole batch of images is answered at once without [N, K, D] prototypes. Left out of its own batch,
    a lone image meets the dataset prototypes.
    """
    if not config.include_self:
        return torch.ones_like(w)
    member = (w.detach() > 0.5).to(w.dtype)
    return (1 - beta / (1 + config.kappa) * member).square()


def _drop_absent(distance: Logits, present: Tensor) -> Logits:
    present = present.expand_as(distance)
    droppable = ~present & present.any(dim=1, keepdim=True)
    farthest = distance.detach().amax(dim=1, keepdim=True) + 1e4
    return torch.where(droppable, farthest, distance)


def class_means(z: Features, labels: Labels, n_classes: int) -> ClassPrototypes:
    """Mean feature of each class, accumulated in float64; a class without examples gets the mean of all features."""
    one_hot = F.one_hot(labels, n_classes).to(torch.float64)
    counts = one_hot.sum(dim=0).unsqueeze(1)
    means = one_hot.T @ z.to(torch.float64) / counts.clamp(min=1)
    return torch.where(counts > 0, means, z.to(torch.float64).mean(dim=0)).to(z.dtype)


def ema_update(dataset: ClassPrototypes, z: Features, labels: Labels, momentum: float) -> ClassPrototypes:
    """mD_c <- m mD_c + (1 - m) mean of the detached features labelled c, for the classes that occur."""
    occurs = F.one_hot(labels, len(dataset)).any(dim=0).unsqueeze(1)
    means = class_means(z.detach(), labels, len(dataset))
    return torch.where(occurs, momentum * dataset + (1 - momentum) * means, dataset)
