"""The meeting point: a network, its images and a configuration become a frozen classifier, ready for trial."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.hpm.backbone import split
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import class_means
from hpm_robustbench.shapes import Logits
from hpm_robustbench.threat import Dataset

_TAU_EXAMPLES = 10_000
"""At most so many training images, evenly spaced, choose tau."""


@dataclass(frozen=True)
class Wrapped:
    """A classifier and the model it was made from, both frozen, and how its prototypes came about."""

    classifier: HPMClassifier
    base: nn.Module
    prototypes_from: str


def wrap(
    model: nn.Module,
    training: ExampleSet,
    config: HPMConfig | None = None,
    *,
    head: str | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 250,
) -> Wrapped:
    """Put the HPM reclassifier on a trained model; nothing is learned but class means and one temperature.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K]; taken over, do not use it afterwards.
        training: images that the dataset prototypes (and tau) come from; never the ones to be evaluated.
        config: the definition of HPM to use.
        head: name of the last linear layer, if it cannot be found.
        device: where to compute.
        batch_size: images per forward pass.

    Raises:
        InvalidInput: the model breaks the contract (see ``check_logits``).
        HeadNotFound: its last linear layer cannot be found.
    """
    config = config or HPMConfig()
    model = model.to(device).eval().requires_grad_(False)
    _prefer_channels_last(model, training.images[:8].to(device))
    check_logits(model, training.dataset, training.images[:8].to(device))
    parts = split(model, training.dataset.image_shape, training.dataset.n_classes, head)
    classifier = HPMClassifier(parts, parts.fc.weight, config).to(device).freeze()
    embedding = _embed(classifier, training, batch_size)
    classifier.set_prototypes(_initial_prototypes(embedding, training, parts.fc, config).to(device))
    classifier.tau.fill_(_fit_tau(classifier, embedding, training) if config.tau == "fit" else config.tau)
    return Wrapped(
        classifier,
        nn.Sequential(parts.backbone, parts.fc).eval(),
        f"{config.init} of {len(training)} {training.split} images of {training.dataset.name}",
    )


def _prefer_channels_last(model: nn.Module, x: Tensor) -> None:
    """On a CPU, keep convolution weights channels last: the same sums in another order, up to twice as fast.

    A model that cannot run so (``view`` on features with a height and a width) keeps the usual layout.
    """
    if x.device.type != "cpu":
        return
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            model(x)
    except Exception:  # someone else's code; whatever else is wrong with it is told by check_logits
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def check_logits(model: nn.Module, dataset: Dataset, x: Tensor) -> Logits:
    """Run a model once and see that it returns finite logits [N, K] for the dataset's K classes.

    Raises:
        InvalidInput: it fails on the images, or returns NaN, probabilities, or another shape.
    """
    wanted = f"logits of shape [N, {dataset.n_classes}] for {dataset.name} images of shape {dataset.image_shape}"
    try:
        with torch.no_grad():
            logits = model(x)
    except Exception as error:  # someone else's code
        raise InvalidInput(
            wanted=wanted,
            got=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            next_step="check that the model fits the dataset and takes NCHW images in [0, 1]",
        ) from error
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (len(x), dataset.n_classes):
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput(wanted=wanted, got=got, next_step="choose the dataset the model was trained for")
    if not logits.isfinite().all():
        raise InvalidInput(wanted=wanted, got="NaN or Inf", next_step="check the weights and the input range [0, 1]")
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise InvalidInput(
            wanted=wanted,
            got="probabilities (non-negative, each row sums to 1)",
            next_step="return the values before the softmax: gradients of probabilities vanish and mislead attacks",
        )
    return logits


def _batches(examples: ExampleSet, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, len(examples), batch_size):
        yield examples.images[start : start + batch_size]


def _embed(classifier: HPMClassifier, examples: ExampleSet, batch_size: int) -> Embedding:
    """Features and FC logits of all examples, on the CPU."""
    device = classifier.prototypes.device
    with torch.no_grad():
        parts = [classifier.embed(batch.to(device)) for batch in _batches(examples, batch_size)]
    return Embedding(torch.cat([p.features.cpu() for p in parts]), torch.cat([p.logits.cpu() for p in parts]))


def _initial_prototypes(embedding: Embedding, examples: ExampleSet, fc: nn.Linear, config: HPMConfig) -> Tensor:
    if config.init == "fc-rows":
        return fc.weight.detach()
    if config.init == "zeros":
        return torch.zeros_like(fc.weight)
    return class_means(embedding.features, examples.labels, examples.dataset.n_classes)


def _fit_tau(classifier: HPMClassifier, embedding: Embedding, examples: ExampleSet) -> float:
    """The tau that minimises the cross-entropy of -distance / tau (convex in 1 / tau); argmax does not depend on it.

    Without it, squared distances of tens or hundreds saturate the softmax and blind every cross-entropy attack.
    """
    stride = max(1, -(-len(examples) // _TAU_EXAMPLES))
    device = classifier.prototypes.device
    some = Embedding(embedding.features[::stride].to(device), embedding.logits[::stride].to(device))
    with torch.no_grad():
        distances = classifier.distances(some).double().cpu()
    labels = examples.labels[::stride]
    scale = distances.std().item() or 1.0

    def loss(log_ratio: float) -> float:
        return F.cross_entropy(-distances / (scale * 10**log_ratio), labels).item()

    best = minimize_scalar(loss, bounds=(-4.0, 2.0), method="bounded", options={"xatol": 1e-4})
    return float(f"{scale * 10 ** float(best.x):.6g}")
