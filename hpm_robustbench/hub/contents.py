"""What a published classifier is made of: its tensors and their description, as files."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from hpm_robustbench.errors import IntegrityError, InvalidInput
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.backbone import OneByOne
from hpm_robustbench.hpm.classifier import HPMClassifier as Defence
from hpm_robustbench.hub.description import (
    CONFIG,
    DESCRIPTION_VERSION,
    LIBRARY,
    Description,
)
from hpm_robustbench.hub.origin import Origin
from hpm_robustbench.hub.restore import BACKBONE, Means, restore
from hpm_robustbench.ledger.card_schema import first_problem
from hpm_robustbench.training.header import RECORD, TENSORS
from hpm_robustbench.training.published import belongs


def contents(
    classifier: Defence, origin: Origin, *, include_backbone: bool, means: Means | None = None
) -> dict[str, bytes]:
    """The files that a classifier amounts to; equal classifiers, equal bytes.

    Args:
        classifier: on any device.
        origin: where it comes from.
        include_backbone: store all of it; otherwise all but the backbone, which is shown to be the base model's own.
        means: how the base model is had for that.

    Raises:
        InvalidInput: it is not in single precision, others could not have its backbone, or no description holds what
            is known of it.
        HpmBenchError: the base model cannot be loaded; see ``restore``.
    """
    _check_precision(classifier)
    state = _state(classifier)
    if origin.training is not None and not belongs(origin.training, state):
        raise InvalidInput(
            wanted="the tensors that the training has left, whose record goes with them",
            got="others, changed since",
            next_step="publish what it has left; or forget the record: replace(origin, training=None)",
        )
    tensors = state if include_backbone else {k: t for k, t in state.items() if not k.startswith(BACKBONE)}
    file = safetensors.torch.save(tensors)
    try:
        description = _describe(classifier, origin, file, "model" if include_backbone else "head")
    except ValidationError as error:
        raise InvalidInput(
            wanted=f"facts about {origin.spec.name} that {CONFIG} can tell",
            got=first_problem(error),
            next_step="check its card, and the names of its weights, its factory and its head",
        ) from error
    if not include_backbone:
        _check_backbone(origin, description, tensors, means or Means())
    files = {CONFIG: description.to_text().encode(), TENSORS: file}
    return files if origin.training is None else {**files, RECORD: origin.training}


def _state(classifier: Defence) -> dict[str, Tensor]:
    """Every tensor, each with memory of its own, as safetensors wants them."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in classifier.state_dict().items()}


def _describe(classifier: Defence, origin: Origin, file: bytes, contains: Literal["head", "model"]) -> Description:
    return Description(
        schema_version=DESCRIPTION_VERSION,
        library_name=LIBRARY,
        base=origin.to_base(),
        n_classes=origin.images.n_classes,
        image_shape=list(origin.images.image_shape),
        defence=classifier.config.to_json(),
        batching=classifier.batching,
        coupled=isinstance(classifier.backbone, OneByOne),
        contains=contains,
        size=len(file),
        sha256=hashlib.sha256(file).hexdigest(),
        state_sha256=state_sha256(classifier),
        prototypes=origin.prototypes,
        **_fine_tuning(origin),
    )


def _fine_tuning(origin: Origin) -> dict[str, Any]:
    """What only the description of a fine-tuned classifier tells."""
    told = {"tuned_by": list(origin.tuned_by)} if origin.tuned_by else {}
    return told if origin.training is None else {**told, "training": hashlib.sha256(origin.training).hexdigest()}


def _check_precision(classifier: Defence) -> None:
    odd = [name for name in ("prototypes", "tau", "beta") if getattr(classifier, name).dtype is not torch.float32]
    if odd:
        raise InvalidInput(
            wanted="a classifier in single precision",
            got=f"another in {', '.join(odd)}",
            next_step="call .float() first",
        )


def _check_backbone(origin: Origin, description: Description, tensors: dict[str, Tensor], means: Means) -> None:
    """See that whoever has the base model and this file has this classifier."""
    if not origin.base_is_published:
        raise InvalidInput(
            wanted="base weights that others can fetch, since the backbone is left out",
            got=f"weights from {origin.spec.weights.public}",
            next_step="include the backbone (--include-backbone)",
        )
    try:
        restore(description, tensors, means, "the files to be saved")
    except IntegrityError as error:
        raise InvalidInput(
            wanted=f"the backbone of {origin.spec.name} as its weights give it, since it is left out",
            got=error.got,
            next_step="include the backbone (--include-backbone); it is needed if it was trained further",
        ) from error
