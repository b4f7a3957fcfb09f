"""A published model on its way to a trial: the same road as any other, without being wrapped or trained anew."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from hpm_robustbench.architectures import build
from hpm_robustbench.case import Ready
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.backbone import probes
from hpm_robustbench.hub.description import CONFIG
from hpm_robustbench.hub.found import Found, on_hub
from hpm_robustbench.hub.origin import base_spec
from hpm_robustbench.hub.restore import Means, Restored, answer_alone, restore
from hpm_robustbench.load import Wrapped, take_apart
from hpm_robustbench.request.models import find_beside_caller
from hpm_robustbench.request.options import tuning_of
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.state_dict import read_state_dict
from hpm_robustbench.training.header import RECORD
from hpm_robustbench.training.published import asked_of
from hpm_robustbench.weights import load_weights
from hpm_robustbench.weights.hub import Hub, at_commits
from hpm_robustbench.zoo.from_file import factory_from_text, weights_from_text
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

_UNSEEN = "The base model is the publication's own word: its checkpoint is not published, so nobody has compared them."


class Candidate(NamedTuple):
    """A published model: its base's spec, options that fit it, what loads it if it was not fine-tuned, and where it is.

    ``where`` names the commit: ``hf:owner/name@commit``.
    """

    spec: ModelSpec
    options: RunOptions
    ready: Ready | None
    where: str


def published(
    model: str,
    options: RunOptions,
    *,
    factory: str | None,
    weights: str | None = None,
    knobs: Sequence[str] = (),
    **asked: object,
) -> Candidate:
    """A published model as a command names it.

    One that was fine-tuned goes the road of a fine-tuning that was brought: its base model stands trial beside it.

    Args:
        model: ``hf:owner/name@revision``.
        options: for its trial; what the model says itself is replaced.
        factory: ``package.module:function`` of the caller's own that builds the base network, if the catalog does not
            have it.
        weights: the base model's own, where the caller brings the network; needed of one that was fine-tuned.
        knobs: of HPM that the caller asks for.
        **asked: what else the caller says of the model.

    Raises:
        UsageProblem: the caller says what the model itself says, or does not bring what it takes.
        IntegrityError: what it says of itself does not hold together.
        HpmBenchError: see ``found.find``, ``base_spec`` and ``architectures.build``.
    """
    repo, _, revision = model.removeprefix("hf:").partition("@")
    place = HubFile.in_repository(repo, revision, wanted="a model on the Hub written as hf:owner/name@revision")
    own = None if factory is None else factory_from_text(factory)
    alone = {} if own is not None else {"weights": weights}
    given = [f"--{key.replace('_', '-')}" for key, value in {**asked, **alone, "hpm": knobs}.items() if value]
    if given:
        raise UsageProblem(
            wanted=f"{model} as it was published",
            got=f"{', '.join(given)} beside it",
            next_step="leave that out; to change it, wrap the base model anew with --model NAME",
        )
    found = on_hub(place, Hub())
    spec = base_spec(found.description.base, own=own is not None)
    means = Means(options.model_dir, trust=options.trust)
    if own is not None:
        find_beside_caller()
        spec = replace(spec, factory=own)
        means = replace(means, network=build(spec), weights=None if weights is None else _brought(found, weights))
    if found.description.tuned_by:
        if own is not None and weights is None:
            raise _without_its_base(found)
        return Candidate(means.whole(spec), _as_tuned(found, options, means), None, found.where)
    options = replace(options, defence=found.description.config)
    return Candidate(spec, options, lambda device: _wrapped(found, spec, replace(means, device=device)), found.where)


def _without_its_base(found: Found) -> UsageProblem:
    base = found.description.base
    return UsageProblem(
        wanted=f"--weights with the checkpoint of {base.name}, which stands trial beside it",
        got="--factory alone",
        next_step=f"add what it was fine-tuned from: {len(base.sha256)} file(s), sha256 {', '.join(base.sha256)}",
    )


def _brought(found: Found, weights: str) -> WeightsRef:
    """The base model's weights that a caller brings, held to the published sha256."""
    base = found.description.base
    brought = at_commits(weights_from_text(weights))
    if len(brought.locators) != len(base.sha256):
        raise UsageProblem(
            wanted=f"the checkpoint of {base.name} in as many files as it has: {len(base.sha256)}",
            got=f"{len(brought.locators)} in --weights",
            next_step="name all of them, separated by commas",
        )
    return replace(brought, sha256=tuple(base.sha256))


def _as_tuned(found: Found, options: RunOptions, means: Means) -> RunOptions:
    """Options that bring the fine-tuning along, once all that ``config.json`` says of it is seen to be true."""
    description = found.description
    if description.training is None:
        raise UsageProblem(
            wanted=f"{RECORD}, which tells how a fine-tuned model was made",
            got=f"{found.where}, which is without it",
            next_step="ask its publisher to push it again with hpm-bench; or fine-tune "
            f"{description.base.model} anew with {shlex.join(description.tuned_by)}",
        )
    asked = asked_of(found.folder)
    tuning = tuning_of(description.tuned_by, asked.seed)
    if tuning.defence(asked.defence) != description.config:
        raise IntegrityError(
            wanted=f"one definition of HPM in {found.where}",
            got=f"two: that of {CONFIG}, and another in {RECORD}",
            next_step="ask its publisher to push it again",
        )
    restore(description, read_state_dict(found.tensors), means, found.where)
    return replace(options, defence=asked.defence, tuning=tuning, finetuned=found.folder, published=found.where)


def _wrapped(found: Found, spec: ModelSpec, means: Means) -> Wrapped:
    restored = restore(found.description, read_state_dict(found.tensors), means, found.where)
    classifier = restored.classifier
    seen = restored.origin.base_is_published or means.weights is not None
    if seen:
        _check_base(found, restored, spec, means)
    base = nn.Sequential(classifier.backbone, classifier.fc).eval()
    answer_alone(classifier)  # a trial chooses its own batchings
    about = restored.about if seen else f"{restored.about} {_UNSEEN}".strip()
    return Wrapped(classifier, base, restored.origin.prototypes, about, found.where)


def _check_base(found: Found, restored: Restored, spec: ModelSpec, means: Means) -> None:
    """See that what stands trial as the base model is the checkpoint that the card will name."""
    description, classifier = found.description, restored.classifier
    whole = replace(means.whole(restored.origin.spec), factory=spec.factory)
    network = load_weights(whole, means.model_dir, trust=means.trust).model
    x = probes(network, description.images.image_shape)[0].to(means.device)
    parts, _ = take_apart(network, description.images, x, spec.head, coupled=description.coupled)
    if state_sha256(*parts) != state_sha256(classifier.backbone, classifier.fc):
        raise IntegrityError(
            wanted=f"the base model of {found.where} as its checkpoint gives it, {description.base.weights}",
            got="another backbone or FC head",
            next_step=f"do not use it; wrap the base model anew with --model {description.base.model}",
        )
