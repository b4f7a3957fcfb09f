"""From a description and tensors back to the very classifier that was published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpm_robustbench.architectures import build
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.backbone import Split, probes
from hpm_robustbench.hpm.classifier import HPMClassifier as Defence
from hpm_robustbench.hub.description import Description
from hpm_robustbench.hub.origin import Origin, base_spec
from hpm_robustbench.load import take_apart
from hpm_robustbench.state_dict import load_into
from hpm_robustbench.threat import Batching
from hpm_robustbench.weights import STRICT, Trust, load_weights
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

BACKBONE = "backbone."
_REFERENCE = ("reference_features", "reference_memberships")


@dataclass(frozen=True)
class Means:
    """What it takes to have a published classifier.

    Attributes:
        model_dir: where checkpoints of base models lie.
        network: the bare base network, if the catalog does not have it; taken over.
        weights: the base model's, if they lie elsewhere than its publication says.
        device: where to compute.
        trust: what is believed of checkpoints from elsewhere.
    """

    model_dir: Path = Path("models")
    network: nn.Module | None = None
    weights: WeightsRef | None = None
    device: str | torch.device = "cpu"
    trust: Trust = STRICT

    def whole(self, spec: ModelSpec) -> ModelSpec:
        """A base model's spec with the weights that the caller brings."""
        return spec if self.weights is None else replace(spec, weights=self.weights)


class Restored(NamedTuple):
    """A published classifier, where it comes from, and what is peculiar about its base model."""

    classifier: Defence
    origin: Origin
    about: str


def restore(description: Description, state: Mapping[str, Tensor], means: Means, where: str) -> Restored:
    """Rebuild a published classifier, frozen, and see that every tensor is what was published.

    Args:
        description: as ``config.json`` tells.
        state: the tensors of ``model.safetensors``; a backbone in it counts only if it is meant to be there.
        means: what the caller brings.
        where: it comes from, for messages.

    Raises:
        IntegrityError: tensors are missing, left over, of another shape, or not those that were published.
        HpmBenchError: see ``base_spec``, ``load_weights`` and ``load.take_apart``.
    """
    spec = base_spec(description.base, own=means.network is not None)
    network = _network(description, spec, means)
    x = probes(network, description.images.image_shape)[0].to(means.device)
    parts, about = take_apart(network, description.images, x, spec.head, coupled=description.coupled)
    classifier = _empty(parts, description, state, where).to(means.device)
    _fill(classifier, description, state, where)
    origin = Origin(spec, description.images, description.prototypes, tuple(description.tuned_by))
    return Restored(classifier.freeze(), origin, about)


def _network(description: Description, spec: ModelSpec, means: Means) -> nn.Module:
    """The bare network; with the base model's own weights where the published file does not bring them.

    A factory is called only if it is the catalog's: that of a description is somebody else's word.
    """
    network = build(spec) if means.network is None else means.network.eval()
    if description.contains == "model":
        return network
    return load_weights(means.whole(spec), means.model_dir, trust=means.trust, network=network).model


def _empty(parts: Split, description: Description, state: Mapping[str, Tensor], where: str) -> Defence:
    zeros = torch.zeros(parts.fc.out_features, parts.fc.in_features)
    classifier = Defence(parts, zeros, description.config)
    answer_in(classifier, description.batching, state, where)
    return classifier


def answer_in(classifier: Defence, batching: Batching, state: Mapping[str, Tensor], where: str) -> None:
    """Let a classifier answer in another batching; under REFERENCE with room for the reference that ``state`` has.

    Raises:
        IntegrityError: there is none.
    """
    classifier.batching = batching
    for name in _REFERENCE if batching is Batching.REFERENCE else ():
        if name not in state:
            raise IntegrityError(
                wanted=f"{name} in {where}, for answers in batches with fixed images",
                got="no such tensor",
                next_step="ask its publisher to push it again",
            )
        classifier.register_buffer(name, torch.zeros_like(state[name]))


def answer_alone(classifier: Defence) -> None:
    """Let a classifier answer for each image alone, as if it had never had another batching."""
    classifier.batching = Batching.SOLO
    for name in _REFERENCE:
        if hasattr(classifier, name):
            delattr(classifier, name)


def _fill(classifier: Defence, description: Description, state: Mapping[str, Tensor], where: str) -> None:
    own = {name: tensor for name, tensor in classifier.state_dict().items() if name.startswith(BACKBONE)}
    load_into(classifier, {**state, **own} if description.contains == "head" else state, where)
    if state_sha256(classifier) != description.state_sha256:
        raise IntegrityError(
            wanted=f"the classifier that was published in {where}",
            got="tensors that fit, and are not all equal to it",
            next_step="fetch it again, and the base model's checkpoint too; if it still differs, do not use it",
        )
