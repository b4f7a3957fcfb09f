"""A published model on its way to a trial: the same road as any other, without being wrapped anew."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from hpm_robustbench.architectures import build
from hpm_robustbench.case import Ready
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.found import Found, on_hub
from hpm_robustbench.hub.origin import base_spec
from hpm_robustbench.hub.restore import Means, answer_alone, restore
from hpm_robustbench.load import Wrapped
from hpm_robustbench.request import tuning_of
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.state_dict import read_state_dict
from hpm_robustbench.training.header import RECORD
from hpm_robustbench.training.published import knobs_before
from hpm_robustbench.weights.hub import Hub, at_commits
from hpm_robustbench.zoo.from_file import weights_from_text
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef


class Candidate(NamedTuple):
    """A published model: its base's spec, options that fit it, and what loads it if it was not fine-tuned."""

    spec: ModelSpec
    options: RunOptions
    ready: Ready | None


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
        weights: the base model's own, where the caller brings the network of one that was fine-tuned.
        knobs: of HPM that the caller asks for.
        **asked: what else the caller says of the model.

    Raises:
        UsageProblem: the caller says what the model itself says, or does not bring what it takes.
        HpmBenchError: see ``found.find``, ``base_spec`` and ``architectures.build``.
    """
    repo, _, revision = model.removeprefix("hf:").partition("@")
    wanted = "a model on the Hub written as hf:owner/name@revision"
    place = HubFile.in_repository(repo, revision, wanted=wanted)
    given = [f"--{key.replace('_', '-')}" for key, value in {**asked, "hpm": knobs}.items() if value]
    if given:
        raise _as_published(model, given)
    found = on_hub(place, Hub())
    tuned = bool(found.description.tuned_by)
    if weights is not None and not (tuned and factory):
        raise _as_published(model, ["--weights"])
    spec = base_spec(found.description.base, own=factory is not None)
    if factory is not None:
        spec = replace(spec, factory=f"python:{factory}")
    if tuned:
        spec = spec if factory is None else replace(spec, weights=_brought(found, weights))
        return Candidate(spec, _as_tuned(found, options), None)
    means = Means(options.model_dir, None if factory is None else build(spec), trust=options.trust)
    options = replace(options, defence=found.description.config)
    return Candidate(spec, options, lambda device: _wrapped(found, replace(means, device=device)))


def _brought(found: Found, weights: str | None) -> WeightsRef:
    """The base model's weights that a caller brings, held to the sha256 of those that it was fine-tuned from."""
    if weights is None:
        raise UsageProblem(
            wanted=f"--weights with the checkpoint of {found.description.base.name}, which stands trial beside it",
            got="--factory alone",
            next_step=f"add the file that its makers publish, {found.description.base.weights}",
        )
    return replace(at_commits(weights_from_text(weights)), sha256=tuple(found.description.base.sha256))


def _as_tuned(found: Found, options: RunOptions) -> RunOptions:
    description = found.description
    if description.training is None:
        raise UsageProblem(
            wanted=f"{RECORD}, which tells how a fine-tuned model was made",
            got=f"{found.where}, which is without it",
            next_step="ask its publisher to push it again with hpm-bench; or fine-tune "
            f"{description.base.model} anew with {shlex.join(description.tuned_by)}",
        )
    return replace(
        options,
        defence=knobs_before(found.folder),
        tuning=tuning_of(description.tuned_by, options.seed),
        finetuned=found.folder,
        published=found.where,
    )


def _as_published(model: str, given: Sequence[str]) -> UsageProblem:
    return UsageProblem(
        wanted=f"{model} as it was published",
        got=f"{', '.join(given)} beside it",
        next_step="leave that out; to change it, wrap the base model anew with --model NAME",
    )


def _wrapped(found: Found, means: Means) -> Wrapped:
    restored = restore(found.description, read_state_dict(found.tensors), means, found.where)
    classifier = restored.classifier
    base = nn.Sequential(classifier.backbone, classifier.fc).eval()
    answer_alone(classifier)  # a trial chooses its own batchings
    return Wrapped(classifier, base, restored.origin.prototypes, restored.about, found.where)
