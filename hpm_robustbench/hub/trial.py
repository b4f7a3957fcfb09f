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
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hub.found import Found, on_hub
from hpm_robustbench.hub.origin import base_spec
from hpm_robustbench.hub.restore import Means, answer_alone, restore
from hpm_robustbench.load import Wrapped
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.state_dict import read_state_dict
from hpm_robustbench.weights.hub import Hub
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import ModelSpec


class Candidate(NamedTuple):
    """A published model, not loaded yet: its base's spec, the definition of HPM, and what loads it."""

    spec: ModelSpec
    defence: HPMConfig
    ready: Ready


def published(
    model: str, options: RunOptions, knobs: Sequence[str], *, factory: str | None, **asked: object
) -> tuple[ModelSpec, RunOptions, Ready]:
    """A published model as a command names it, options that fit it, and what loads it.

    Args:
        model: ``hf:owner/name@revision``.
        options: for its trial; HPM's definition is replaced by the published one.
        knobs: of HPM that the caller asks for.
        factory: see ``candidate``.
        **asked: what else the caller says of the model.

    Raises:
        UsageProblem: the caller says what the model itself says.
        HpmBenchError: see ``candidate``.
    """
    given = [f"--{key.replace('_', '-')}" for key, value in {**asked, "hpm": knobs}.items() if value]
    if given:
        raise UsageProblem(
            wanted=f"{model} as it was published",
            got=f"{', '.join(given)} beside it",
            next_step="leave that out; to change it, wrap the base model anew with --model NAME",
        )
    found = candidate(model, factory, Means(options.model_dir, trust=options.trust))
    return found.spec, replace(options, defence=found.defence), found.ready


def candidate(text: str, factory: str | None, means: Means) -> Candidate:
    """Find a published model.

    Args:
        text: ``hf:owner/name@revision``.
        factory: ``package.module:function`` of the caller's own that builds the base network, if the catalog does not
            have it.
        means: how the base model is had.

    Raises:
        UsageProblem: it was fine-tuned.
        HpmBenchError: see ``found.find``, ``base_spec`` and ``architectures.build``.
    """
    repo, _, revision = text.removeprefix("hf:").partition("@")
    wanted = "a model on the Hub written as hf:owner/name@revision"
    found = on_hub(HubFile.in_repository(repo, revision, wanted=wanted), Hub())
    if found.description.tuned_by:
        base, recipe = found.description.base.model, shlex.join(found.description.tuned_by)
        raise UsageProblem(
            wanted="a model that was not fine-tuned: without its base and its controls no gain can be credited to HPM",
            got=f"{text}, fine-tuned from {base}",
            next_step=f"fine-tune {base} anew with {recipe} --controls, or load this one from Python",
        )
    spec = base_spec(found.description.base, own=factory is not None)
    if factory is not None:
        spec = replace(spec, factory=f"python:{factory}")
        means = replace(means, network=build(spec))
    return Candidate(spec, found.description.config, lambda device: _wrapped(found, replace(means, device=device)))


def _wrapped(found: Found, means: Means) -> Wrapped:
    restored = restore(found.description, read_state_dict(found.tensors), means, found.where)
    classifier = restored.classifier
    base = nn.Sequential(classifier.backbone, classifier.fc).eval()
    answer_alone(classifier)  # a trial chooses its own batchings
    return Wrapped(classifier, base, restored.origin.prototypes, restored.about, found.where)
