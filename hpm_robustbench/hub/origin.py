"""Where a published classifier comes from, and the way back to its base model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.hub.description import Base
from hpm_robustbench.request.models import spec_to_run
from hpm_robustbench.threat import Dataset
from hpm_robustbench.zoo.from_file import weights_from_text
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec, WeightsRef

_NOBODY_ELSE_S = ("file", "memory")
"""Sources of weights that others cannot reach."""


@dataclass(frozen=True)
class Origin:
    """Where a classifier comes from.

    Attributes:
        spec: its base model; the sha256 of every file of its weights is known.
        images: what it takes and answers.
        prototypes: where its dataset prototypes come from, in words.
        tuned_by: the options that ask for its fine-tuning, if it was fine-tuned.
        training: the record of how that went, if it is known, see ``training.published``.
    """

    spec: ModelSpec
    images: Dataset
    prototypes: str
    tuned_by: tuple[str, ...] = ()
    training: bytes | None = None

    @property
    def base_is_published(self) -> bool:
        """Whether others can fetch the very weights of the base model."""
        weights = self.spec.weights
        return weights.source not in _NOBODY_ELSE_S and len(weights.sha256) == len(weights.locators)

    def to_base(self) -> Base:
        """The base model as a description tells it."""
        spec = self.spec
        return Base(
            name=spec.name,
            model=spec.base_name,
            dataset=spec.dataset,
            threat_model=spec.threat.name,
            eps=spec.threat.budget,
            factory=spec.factory,
            head=spec.head.path,
            weights=spec.weights.public,
            sha256=list(spec.weights.sha256),
        )


def base_spec(base: Base, *, own: bool) -> ModelSpec:
    """The spec of a published model's base: looked up in the catalog, its weights held to the published sha256.

    Args:
        base: as a stranger has described it.
        own: the caller brings the network, so the catalog need not have it.

    Raises:
        UnknownName: the catalog has no such model.
        UsageProblem: it has another one under that name.
        InvalidInput: the weights are described as nobody describes weights.
    """
    described = _described_weights(base)
    if own:
        return ModelSpec(base.name, base.dataset, base.threat, base.factory, described, HeadRule(base.head))
    spec = spec_to_run(base.model, base.dataset, base.threat_model, base.eps)
    if described.source == "hf" and described.locators != spec.weights.locators:
        # The catalog's published figures say nothing of other weights.
        spec = spec_to_run(base.model, base.dataset, base.threat_model, base.eps, base.weights)
    if spec.factory != base.factory or spec.name != base.name:
        raise UsageProblem(
            wanted=f"{base.name} as this package knows it, {spec.factory}",
            got=f"one that {base.factory} builds",
            next_step="give that network yourself: network= in Python, --factory for hpm-bench run",
        )
    return replace(spec, weights=_held_to_sums(spec.weights, base))


def _described_weights(base: Base) -> WeightsRef:
    """Weights to be followed are files on the Hub at a commit; all others are told, and not followed."""
    source, _, _ = base.weights.partition(":")
    if source != "hf":
        return WeightsRef("memory", (base.weights,), tuple(base.sha256))
    weights = weights_from_text(base.weights)
    if not all(HubFile.parse(locator).is_pinned for locator in weights.locators):
        raise _odd(base, "a branch or tag")
    return _held_to_sums(weights, base)


def _held_to_sums(weights: WeightsRef, base: Base) -> WeightsRef:
    if len(base.sha256) != len(weights.locators):
        raise _odd(base, f"{len(base.sha256)} sha256")
    return replace(weights, sha256=tuple(base.sha256))


def _odd(base: Base, got: str) -> InvalidInput:
    return InvalidInput(
        wanted=f"a commit and a sha256 for each file of the weights of {base.name}, {base.weights[:160]}",
        got=got,
        next_step="ask its publisher to push it again",
    )
