"""The meeting point: a network, its images and a configuration become a frozen classifier, ready for trial."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import InvalidInput, first_line
from hpm_robustbench.fit_store import fit_once
from hpm_robustbench.hpm.backbone import OneByOne, Split, fix_head, split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.composite import split_composite
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.fitting import fit
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.shapes import Logits
from hpm_robustbench.threat import Dataset
from hpm_robustbench.zoo.spec import HeadRule

log = logging.getLogger(__name__)

_ROUNDING = 1e-4
"""Share of the largest logit by which batches of other sizes may change a logit."""
_COUPLED = "The network's answer for an image depends on the others of its batch, so each image is answered alone."


@dataclass(frozen=True)
class Wrapped:
    """A classifier and the model it was made from, both frozen.

    ``prototypes_from`` tells where the prototypes come from, ``about`` what is peculiar about the model, ``published``
    where the classifier was found as it is. ``fixed`` names the parameters, ``backbone.*`` or ``fc.*``, that the
    model's authors do not let learn, as the mean of a normalisation that is kept as one.
    """

    classifier: HPMClassifier
    base: nn.Module
    prototypes_from: str
    about: str
    published: str = ""
    fixed: frozenset[str] = frozenset()

    @property
    def notes(self) -> dict[str, str]:
        """Sentences for its card, by topic."""
        said = {"prototypes": self.prototypes_from, "model": self.about, "published": self.published}
        return {topic: sentence for topic, sentence in said.items() if sentence}


@full_precision_kernels()
def wrap(
    model: nn.Module,
    training: ExampleSet,
    config: HPMConfig | None = None,
    *,
    head: HeadRule | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 250,
    keep: Path | None = None,
) -> Wrapped:
    """Put the HPM reclassifier on a trained model; nothing is learned but class means and one temperature.

    Args:
        model: images [N, C, H, W] in [0, 1] to logits [N, K]; taken over, do not use it afterwards.
        training: images that the dataset prototypes (and tau) come from; never the ones to be evaluated.
        config: the definition of HPM to use.
        head: how the model is taken apart; by default at its only provable linear head.
        device: where to compute.
        batch_size: images per forward pass.
        keep: folder in which prototypes and tau are kept for the next time.

    Raises:
        InvalidInput: the model breaks the contract (see ``check_logits``).
        HeadNotFound: its last linear layer cannot be found.
    """
    config = config or HPMConfig()
    fixed = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    if len(fixed) == len(list(model.parameters())):
        fixed = []  # frozen as a whole, which says nothing of its parts
    parts, about = take_apart(model, training.dataset, training.images[:8].to(device), head or HeadRule())
    zeros = torch.zeros(parts.fc.out_features, parts.fc.in_features)
    classifier = HPMClassifier(parts, zeros, config).to(device).freeze()
    if keep is None:
        fit(classifier, training.images, training.labels, batch_size)
    else:
        fit_once(classifier, training, batch_size, keep)
    known = {id(parameter) for parameter in fixed}
    return Wrapped(
        classifier,
        nn.Sequential(parts.backbone, parts.fc).eval(),
        f"{config.init} of {len(training)} {training.split} images of {training.dataset.name}",
        about,
        fixed=frozenset(name for name, parameter in classifier.named_parameters() if id(parameter) in known),
    )


@full_precision_kernels()
def take_apart(
    model: nn.Module, dataset: Dataset, x: Tensor, rule: HeadRule, *, coupled: bool | None = None
) -> tuple[Split, str]:
    """Freeze a model where the images are and take it apart into features and head; see ``wrap``.

    Args:
        model: taken over.
        dataset: what it classifies.
        x: some images.
        rule: how it is taken apart.
        coupled: whether its answer for an image depends on the others; None means find out.

    Returns:
        Its parts, and what is peculiar about it.
    """
    model = model.to(x.device).eval().requires_grad_(False)
    _prefer_channels_last(model, x)
    parts, about = _split(model, dataset, rule, x), rule.note
    if coupled is None and not rule.one_by_one:
        coupled = _couples_its_batch(nn.Sequential(*parts), x)
    if coupled and not rule.one_by_one:
        about = f"{about} {_COUPLED}".strip()
        log.warning("%s: %s", type(model).__name__, _COUPLED)
    if coupled or rule.one_by_one:
        parts = Split(OneByOne(parts.backbone), parts.fc)
    return parts, about


def _split(model: nn.Module, dataset: Dataset, rule: HeadRule, x: Tensor) -> Split:
    if rule.members:
        parts = split_composite(model, dataset.image_shape, dataset.n_classes, rule.members, rule.output)
        check_logits(nn.Sequential(*parts), dataset, x)
    else:
        check_logits(model, dataset, x)
        if rule.renormalised and rule.path:
            fix_head(model, dataset.image_shape, rule.path)
        parts = split(model, dataset.image_shape, dataset.n_classes, rule.path)
    return parts


def _couples_its_batch(model: nn.Module, x: Tensor) -> bool:
    """Whether the answer for an image depends on the others beyond rounding: AutoAttack would repack such rows."""
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image) for image in torch.split(x, 1)])
    return bool((together - alone).abs().max() > _ROUNDING * together.abs().max())


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
    """Run a model once and see that it returns finite logits [N, K] for the dataset's K classes, with gradients.

    Raises:
        InvalidInput: it fails on the images, or returns NaN, probabilities, another shape, or what knows no gradient.
    """
    wanted = f"logits of shape [N, {dataset.n_classes}] for {dataset.name} images of shape {dataset.image_shape}"
    try:
        with torch.enable_grad():
            answer = model(x.detach().requires_grad_())
    except Exception as error:  # someone else's code
        raise InvalidInput(
            wanted=wanted,
            got=f"{type(error).__name__}: {first_line(error)}",
            next_step="check that the model fits the dataset and takes NCHW images in [0, 1]",
        ) from error
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(x), dataset.n_classes):
        got = f"shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise InvalidInput(wanted=wanted, got=got, next_step="choose the dataset the model was trained for")
    if not answer.requires_grad:
        raise InvalidInput(
            wanted=f"{wanted} that depend on the images in a way that torch can follow",
            got="logits without a gradient",
            next_step="take no_grad, detach and numpy out of forward(); a step that has none needs a stand-in for its "
            "backward pass, or its attacks would fail and its number mean nothing",
        )
    logits = answer.detach()
    if not logits.isfinite().all():
        raise InvalidInput(wanted=wanted, got="NaN or Inf", next_step="check the weights and the input range [0, 1]")
    if (logits >= 0).all() and torch.allclose(logits.sum(dim=1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise InvalidInput(
            wanted=wanted,
            got="probabilities (non-negative, each row sums to 1)",
            next_step="return the values before the softmax: gradients of probabilities vanish and mislead attacks",
        )
    return logits
