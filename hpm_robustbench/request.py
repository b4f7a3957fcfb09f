"""From what a person asks for, in words, to a spec and options."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from fractions import Fraction
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpm_robustbench.errors import InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.card_from_records import published_number
from hpm_robustbench.ledger.card_schema import ModelCard, first_problem
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Composition, Norm, Threat, parse_threat, parse_threat_name
from hpm_robustbench.training.recipe import Tuning, find_control, find_recipe
from hpm_robustbench.weights import Trust
from hpm_robustbench.weights.hub import at_commits
from hpm_robustbench.zoo.builtin import DIGITS_MODEL
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.from_file import paper_from_json, spec_from_factory, weights_from_text
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
_NOTHING_TOLD = {
    **dict.fromkeys(("name", "dataset", "link", "authors", "venue", "architecture"), ""),
    "eps": None,
    "clean_acc": "0",
    "reported": None,
}
"""What a card needs, where nobody has told anything about its model."""


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
        paper=None if about is None else _read_facts(about),
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


def run_options(
    *,
    batching: Sequence[str],
    knobs: Sequence[str],
    batches: str = Composition.IID.value,
    checksums: Path | None = None,
    allow_global: Sequence[str] = (),
    recipe: str | None = None,
    control: str | None = None,
    tune: Sequence[str] = (),
    **rest: Any,
) -> RunOptions:
    """Options from their text forms; ``rest`` are RunOptions' own fields.

    Raises:
        UnknownName: no such knob, recipe or control.
        UsageProblem: a value that a knob cannot have, a control or knob of no recipe, or batches that nobody fills.
    """
    composition = Composition(batches)
    if composition is not Composition.IID and Batching.JOINT.value not in batching:
        raise UsageProblem(
            wanted=f"--batching joint beside --batches {batches}",
            got=f"batching {' and '.join(batching)}, where no image has mates that could be chosen",
            next_step="add --batching joint, or leave --batches out",
        )
    return RunOptions(
        batchings=tuple(Batching(b) for b in dict.fromkeys(batching)),
        composition=composition,
        defence=_defence(knobs),
        trust=Trust(checksums, tuple(allow_global)),
        tuning=_tuning(recipe, control, tune, rest.get("seed", RunOptions.seed)),
        **rest,
    )


def tuning_of(options: Sequence[str], seed: int) -> Tuning:
    """The fine-tuning that ``Tuning.options`` ask for, which may be somebody else's words.

    Raises:
        UnknownName: no such recipe, control or knob.
        UsageProblem: other options, or a value that a knob cannot have.
    """
    asked: dict[str, list[str]] = {"--recipe": [], "--control": [], "--tune": []}
    for option, value in zip(options[::2], options[1::2], strict=False):
        asked.get(option, []).append(value)
    recipes, controls, knobs = asked.values()
    tuning = _tuning(recipes[0] if recipes else None, controls[0] if controls else None, knobs, seed)
    if tuning is None or tuning.options != list(options):
        raise UsageProblem(
            wanted="the options of a fine-tuning, as --recipe uniform-v1 --tune epochs=3",
            got=" ".join(options)[:160],
            next_step="ask its publisher to push it again",
        )
    return tuning


def _tuning(recipe: str | None, control: str | None, knobs: Sequence[str], seed: int) -> Tuning | None:
    """A recipe with ``knob=value`` texts in place of its own values, perhaps as a control."""
    if recipe is None:
        if control is not None or knobs:
            raise UsageProblem(
                wanted="a recipe beside --control and --tune", got="none", next_step="add --recipe uniform-v1"
            )
        return None
    changes = {name: text for name, _, text in (knob.partition("=") for knob in knobs)}
    return Tuning(find_recipe(recipe).with_knobs(changes), None if control is None else find_control(control), seed)


def _defence(knobs: Sequence[str]) -> HPMConfig:
    """A configuration from ``knob=value`` texts, each read as the default's type."""
    known = {field.name: field.default for field in fields(HPMConfig)}
    chosen: dict[str, Any] = {}
    for knob in knobs:
        name, _, text = knob.partition("=")
        if name not in known:
            raise UnknownName("knob of HPM", name, known)
        chosen[name] = _read_knob(name, text, known[name])
    return HPMConfig(**chosen)


def _read_knob(name: str, text: str, default: object) -> bool | int | float | str:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.casefold()]
        if isinstance(default, (int, float)):
            return type(default)(text)
        return text if name != "tau" or text == "fit" else float(text)
    except (KeyError, ValueError) as error:
        raise UsageProblem(
            wanted=f"a value for {name} like {default}", got=repr(text), next_step=f"write --hpm {name}={default}"
        ) from error


def _read_facts(path: Path) -> Paper:
    """Facts about a model that its card can hold: a trial takes hours, and its card is made in the end."""
    paper = paper_from_json(_read_object(path), str(path))
    told = {key: fact for key, fact in vars(paper).items() if published_number(fact) is not None}
    try:
        ModelCard.model_validate({**_NOTHING_TOLD, **told})
    except ValidationError as error:
        raise UsageProblem(
            wanted=f"facts that a model card can hold in {path}, the file of --about",
            got=first_problem(error),
            next_step='correct that field; accuracies are text in percent, like "53.08"',
        ) from error
    return paper


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(wanted=f"a JSON file {path}", got=str(error), next_step="correct it") from error
    if not isinstance(content, dict):
        raise InvalidInput(wanted=f"a JSON object in {path}", got=type(content).__name__, next_step="correct it")
    return content
