"""What an HPM classifier takes from training images without learning: dataset prototypes and one temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import Head
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.hpm.heads import CarriedLogits
from hpm_robustbench.hpm.prototypes import class_means
from hpm_robustbench.shapes import ClassPrototypes, Images, Labels

_TAU_EXAMPLES = 10_000
"""At most so many training images, evenly spaced, choose tau."""


class Fit(NamedTuple):
    """Dataset prototypes [K, D] on the CPU, as computed (``set_prototypes`` normalises), and tau."""

    prototypes: Tensor
    tau: float


def _silent() -> None:
    """Nobody waits to be told."""


def fit(
    classifier: HPMClassifier, images: Images, labels: Labels, batch_size: int, tick: Callable[[], None] = _silent
) -> Fit:
    """Compute a classifier's dataset prototypes and its tau, as its configuration says, and put them in place.

    Args:
        classifier: frozen; its own prototypes and tau are overwritten.
        images: of the training set, on the CPU.
        labels: their classes.
        batch_size: images per forward pass.
        tick: called after each of them.

    Raises:
        InvalidInput: prototypes are to start from the rows of a head that has none.
    """
    embedding = _embed(classifier, images, batch_size, tick)
    prototypes = _initial_prototypes(classifier, embedding, labels)
    classifier.set_prototypes(prototypes.to(classifier.prototypes.device))
    chosen = classifier.config.tau
    tau = _fit_tau(classifier, embedding, labels) if chosen == "fit" else float(chosen)
    classifier.tau.fill_(tau)
    return Fit(prototypes, tau)


def _embed(classifier: HPMClassifier, images: Images, batch_size: int, tick: Callable[[], None]) -> Embedding:
    """Features and FC logits of all images, on the CPU."""
    device, features, logits = classifier.prototypes.device, [], []
    with torch.no_grad():
        for batch in torch.split(images, batch_size):
            part = classifier.embed(batch.to(device))
            features.append(part.features.cpu())
            logits.append(part.logits.cpu())
            tick()
    return Embedding(torch.cat(features), torch.cat(logits))


def _initial_prototypes(classifier: HPMClassifier, embedding: Embedding, labels: Labels) -> ClassPrototypes:
    if classifier.config.init == "fc-rows":
        return _fc_rows(classifier.fc)
    if classifier.config.init == "zeros":
        return embedding.features.new_zeros(classifier.fc.out_features, classifier.fc.in_features)
    return class_means(embedding.features, labels, classifier.fc.out_features)


def _fc_rows(fc: Head) -> ClassPrototypes:
    if isinstance(fc, CarriedLogits):
        raise InvalidInput(
            wanted="one linear head, whose rows prototypes can start from",
            got="a model of several networks, whose features no single layer turns into logits",
            next_step="use --hpm init=class-means",
        )
    return fc.weight.detach().cpu()


def _fit_tau(classifier: HPMClassifier, embedding: Embedding, labels: Labels) -> float:
    """The tau that minimises the cross-entropy of -distance / tau (convex in 1 / tau); argmax does not depend on it.

    Without it, squared distances of tens or hundreds saturate the softmax and blind every cross-entropy attack.
    """
    stride = max(1, -(-len(labels) // _TAU_EXAMPLES))
    device = classifier.prototypes.device
    some = Embedding(embedding.features[::stride].to(device), embedding.logits[::stride].to(device))
    with torch.no_grad():
        distances = classifier.distances(some).double().cpu()
    scale = distances.std().item() or 1.0

    def loss(log_ratio: float) -> float:
        return F.cross_entropy(-distances / (scale * 10**log_ratio), labels[::stride]).item()

    best = minimize_scalar(loss, bounds=(-4.0, 2.0), method="bounded", options={"xatol": 1e-4})
    return float(f"{scale * 10 ** float(best.x):.6g}")
