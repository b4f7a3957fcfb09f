"""From the name of a model, or the caller's own in words, to a spec."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.request.facts import read_facts
from hpm_robustbench.threat import Norm, Threat, parse_threat, parse_threat_name
from hpm_robustbench.weights.hub import at_commits
from hpm_robustbench.zoo.builtin import DIGITS_MODEL
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.from_file import spec_from_factory, weights_from_text
from hpm_robustbench.zoo.spec import ModelSpec, Paper

_OF_ONE_THREAT = (
    "autoattack_acc",
    "reported",
    "external",
    "unreliable",
    "corruptions_acc",
    "corruptions_mce",
    "corruptions_acc_3d",
    "corruptions_mce_3d",
)
"""Published figures that say nothing about another threat model."""

_OF_ONE_CHECKPOINT = ("clean_acc", *_OF_ONE_THREAT)
"""Published figures that say nothing about other weights."""

_LARGEST_DENOMINATOR = 1000
"""Of fractions that people mean when they give a float: multiples of 1/255 for most, halves of them for some."""


def find_spec(
    model: str, dataset: str | None = None, threat_model: str | None = None, weights: str | None = None
) -> ModelSpec:
    """A known model on its own track (see ``Catalog.find``), with its own weights or others.

    Weights from elsewhere take the published figures away: nobody has seen that these were measured on them. ``rb:``
    is RobustBench's own source, from which its models come by default.

    Raises:
        UnknownName: no such model or threat model; the message shows the nearest names.
        UsageProblem: it is not on that track, or weights are not written as ``weights_from_text`` reads them.
        DownloadFailed: weights on the Hub cannot be found.
    """
    spec = catalog().find(model, dataset, None if threat_model is None else parse_threat_name(threat_model))
    return _with_weights(spec, weights)


def spec_to_run(
    model: str, dataset: str | None, threat_model: str | None, eps: str | None, weights: str | None = None
) -> ModelSpec:
    """A known model under the threat model it was made for, or under another one that is asked for in full.

    Raises:
        UnknownName: no such model or threat model.
        UsageProblem: the model is of another dataset, or the budget is missing, no number, or has no meaning; or
            weights are not written as ``weights_from_text`` reads them.
        DownloadFailed: weights on the Hub cannot be found.
    """
    threat_name = None if threat_model is None else parse_threat_name(threat_model)
    at_home = any(spec.name == model for spec in catalog().specs(dataset, threat_name))
    spec = _with_weights(catalog().find(model, dataset, threat_name if at_home else None), weights)
    if at_home and eps is None:
        return spec
    return under(spec, parse_threat(threat_name or spec.threat.name, eps))


def _with_weights(spec: ModelSpec, weights: str | None) -> ModelSpec:
    if weights is None:
        return spec
    if weights.startswith("rb:"):
        return _from_robustbench(spec, weights)
    other = at_commits(weights_from_text(weights)).read_like(spec.weights)
    return replace(spec, weights=other, paper=_without(spec.paper, _OF_ONE_CHECKPOINT))


def _from_robustbench(spec: ModelSpec, weights: str) -> ModelSpec:
    """The model as it is: ``rb:`` says in so many words where a model of RobustBench comes from anyway."""
    if weights != "rb:":
        raise UsageProblem(
            wanted="rb: alone, since RobustBench itself says which files are a model's",
            got=repr(weights[:160]),
            next_step="write --weights rb:, or leave it out",
        )
    if not spec.factory.startswith("robustbench:"):
        raise UsageProblem(
            wanted="a model of RobustBench's for --weights rb:",
            got=f"{spec.name}, whose weights are {spec.weights}",
            next_step="leave --weights out, or choose a model of RobustBench's; see `hpm-bench list`",
        )
    return spec


def _without(paper: Paper, figures: Sequence[str]) -> Paper:
    return replace(paper, **{key: getattr(Paper(), key) for key in figures})


def chosen_spec(model: str | None, *, factory: str | None, **asked: Any) -> ModelSpec:
    """The model that a command names: a known one, the embedded one by default, or the caller's own with a factory.

    Args:
        model: its name.
        factory: of the caller's own.
        **asked: as ``own_spec`` takes them; ``weights`` alone may go with a known model.

    Raises:
        UsageProblem: a name beside a factory, options of the caller's own model without one, or the name is left out
            and the embedded model is of another dataset; or see ``spec_to_run`` and ``own_spec``.
        HpmBenchError: see there.
    """
    if factory is not None:
        if model is not None:
            raise UsageProblem(
                wanted="--model for a known model, or --factory for your own",
                got=f"--model {model} with --factory {factory}",
                next_step="leave one of the two out; --name names your own model",
            )
        find_beside_caller()
        return own_spec(factory, **asked)
    name, head, about = asked.pop("name"), asked.pop("head"), asked.pop("about")
    own = {"name": name, "head": head, "about": about, "weights": None if model else asked["weights"]}
    given = [f"--{key}" for key, value in own.items() if value]
    if given:
        raise UsageProblem(
            wanted=f"--factory beside {', '.join(given)}", got="none", next_step="add it, or leave those out"
        )
    default = catalog().find(DIGITS_MODEL)
    if model is None and asked["dataset"] not in (None, default.dataset):
        raise UsageProblem(
            wanted=f"a model of {asked['dataset']}, named with --model",
            got=f"none; the default, {default.name}, is a model of {default.dataset}",
            next_step=f"choose one of those that `hpm-bench list --dataset {asked['dataset']}` shows",
        )
    return spec_to_run(model or default.name, **asked)


def find_beside_caller() -> None:
    """Let a factory be found in the caller's folder, as for python -m."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def own_spec(
    factory: str,
    weights: str | None,
    *,
    name: str | None,
    head: str | None,
    about: Path | None,
    dataset: str | None,
    threat_model: str | None,
    eps: str | None,
) -> ModelSpec:
    """A model of the caller's own: a function that builds the network, and a checkpoint.

    Raises:
        UsageProblem: something that only the caller can know is missing, or no card can hold a fact in ``about``.
        InvalidInput: ``about`` is not a JSON object.
        DownloadFailed: weights on the Hub cannot be found.
    """
    if weights is None or dataset is None:
        raise UsageProblem(
            wanted="--weights and --dataset beside --factory",
            got=f"weights {weights}, dataset {dataset}",
            next_step="add what is missing; --threat-model is Linf unless you say otherwise",
        )
    spec = spec_from_factory(
        name=name or factory.rsplit(":", 1)[-1],
        factory=factory,
        weights=weights,
        dataset=dataset,
        threat=parse_threat(threat_model or Norm.LINF.value, eps),
        head=head,
        paper=None if about is None else read_facts(about),
    )
    return replace(spec, weights=at_commits(spec.weights))


def eps_text(eps: str | float | None) -> str | None:
    """A budget as text, of a number the shortest one that means it: ``8/255`` of 8 / 255, ``0.3`` of 0.3.

    What is no number is left to ``parse_threat``.
    """
    if eps is None or isinstance(eps, str):
        return eps
    if not isinstance(eps, Real) or not isfinite(eps):
        return repr(eps)
    text = repr(float(eps)).removesuffix(".0")
    near = Fraction(text).limit_denominator(_LARGEST_DENOMINATOR)
    return text if near == Fraction(text) or float(near) != eps else str(near)


def under(spec: ModelSpec, threat: Threat) -> ModelSpec:
    """The same model under another threat model: without the figures published for its own one.

    A budget becomes part of the name, so that no card of another budget has the same place.
    """
    if threat == spec.threat:
        return spec
    suffix = f"_eps{threat.budget.replace('/', '-')}" if threat.budget else ""
    return replace(spec, name=f"{spec.name}{suffix}", threat=threat, paper=_without(spec.paper, _OF_ONE_THREAT))
