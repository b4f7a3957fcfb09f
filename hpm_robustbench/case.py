"""A model ready for trial: images read, weights loaded, wrapped, perhaps fine-tuned, its trials planned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from hpm_robustbench.data import CorruptedSource, DataSource, ExampleSet, select
from hpm_robustbench.errors import UnknownName, UsageProblem, first_line
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.images import check_budget, check_resolution, open_clean, open_corruptions
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.ledger.matrix import MATRIX, members
from hpm_robustbench.ledger.model_card import check_replaceable, place
from hpm_robustbench.ledger.plan import BasePlan, Plan
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.memory import enough_memory
from hpm_robustbench.planning import Start, plan_trials
from hpm_robustbench.run_options import SCREENS, RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Corruptions
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.elsewhere import check_made_alike, take_finished
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.finetuned import attacked_under, finetune_once, no_training_images, on_trial
from hpm_robustbench.training.kept import Finetuned, Kept
from hpm_robustbench.training.learner import check_learns
from hpm_robustbench.training.recipe import Control, Tuning
from hpm_robustbench.weights import check_local, load_weights
from hpm_robustbench.zoo.spec import ModelSpec

Ready: TypeAlias = Callable[[torch.device], Wrapped]
"""Brings a model that is wrapped already to a device."""


@dataclass(frozen=True)
class Case:
    """A model ready for trial: everything that costs something is loaded, nothing is attacked yet.

    ``corrupted`` are the test images under corruptions, on a track of that kind; ``kept`` tells of the fine-tuning and
    where it lies, where there was one. ``controls`` are cases of their own, which go to trial with it and are loaded
    when their turn comes: five classifiers need not fit into memory. ``in_turn`` are the trials whose steps a matrix
    tries one by one.
    """

    spec: ModelSpec
    test: ExampleSet
    corrupted: CorruptedSource | None
    trials: Sequence[tuple[BasePlan, Subject]]
    weights_sha256: tuple[str, ...]
    wrapped: Wrapped
    output: Path
    keep_images: bool
    is_screen: bool
    kept: Kept | None = None
    controls: Mapping[Control, Callable[[], Case]] = field(default_factory=dict)
    in_turn: Sequence[Plan] = ()

    def all_cases(self) -> Iterator[Case]:
        """This one first, then its controls, each loaded anew."""
        yield self
        for make in self.controls.values():
            yield make()

    def all_trials(self) -> Iterator[tuple[BasePlan, Subject]]:
        """Its own trials first, then those of its controls that are not among them; the base model's is."""
        met: set[str] = set()
        for case in self.all_cases():
            for plan, subject in case.trials:
                if plan.run_key not in met:
                    met.add(plan.run_key)
                    yield plan, subject


def prepare(
    spec: ModelSpec,
    options: RunOptions,
    *,
    model: nn.Module | Ready | None = None,
    source: DataSource | None = None,
    train: bool = True,
) -> Case:
    """Read the images, load the weights, wrap the model and plan its trials; see ``evaluate``.

    A model that is ``Ready`` is wrapped already, and its spec names the sha256 of its weights. Without ``train``, a
    fine-tuning that is not finished is refused.
    """
    with full_precision_kernels():
        return _prepare(spec, _start(spec, options, model, source), options, train=train)


def _prepare(spec: ModelSpec, start: Start, options: RunOptions, *, train: bool) -> Case:
    beside = _of_controls(options)
    for each in (options, *beside.values()):  # hours of training are no time to wait for a refusal
        _check_card(spec, start, each)
    tunings = [each.tuning for each in (options, *beside.values()) if each.tuning is not None]
    _keep(spec, start, options, tunings, train=train)  # whatever is missing is met before the first attack
    case = _case(spec, start, options)
    controls = {control: partial(_case, spec, start, each) for control, each in beside.items()}
    return replace(case, controls=controls)


def _of_controls(options: RunOptions) -> dict[Control, RunOptions]:
    """What is asked of each control, if controls go to trial too."""
    if not options.controls:
        return {}
    assert options.tuning is not None
    tunings = {control: replace(options.tuning, control=control) for control in Control}
    return {control: replace(options, tuning=tuning, controls=False) for control, tuning in tunings.items()}


def _case(spec: ModelSpec, start: Start, options: RunOptions) -> Case:
    kept = None
    if options.tuning is not None:
        finetuned = _finetuned(spec, start, options, options.tuning)
        tuned = on_trial(start.wrapped, finetuned, options.tuning)
        start, kept = replace(start, wrapped=replace(tuned, published=options.published)), finetuned.kept
    trials, in_turn = _trials(spec, start, options), []
    if options.screen == MATRIX:
        whole = [(plan, subject) for plan, subject in trials if isinstance(plan, Plan) and plan.target == "hpm"]
        trials = [(member, subject) for plan, subject in whole for member in members(plan)]
        in_turn = [plan for plan, _ in whole]
    return Case(
        spec=_tried(spec, options.tuning),
        test=start.test,
        corrupted=start.corrupted,
        trials=trials,
        weights_sha256=start.weights_sha256,
        wrapped=start.wrapped,
        output=options.output,
        keep_images=options.keep_images,
        is_screen=bool(options.screen),
        kept=kept,
        in_turn=in_turn,
    )


def _tried(spec: ModelSpec, tuning: Tuning | None) -> ModelSpec:
    """The model that stands trial, under its own name if it was fine-tuned."""
    return spec if tuning is None else spec.tuned(tuning.name)


def _trials(spec: ModelSpec, start: Start, options: RunOptions) -> Sequence[tuple[BasePlan, Subject]]:
    """Those of the base model and of HPM; C1's own FC head takes the base model's place."""
    if options.screen == MATRIX:
        options = replace(options, screen=None)  # whose steps it tries
    tried = _tried(spec, options.tuning)
    if options.tuning is not None and options.tuning.control is Control.FC:
        spec = tried
        options = replace(options, batchings=())  # C1 is an FC head, whose rows never meet: batches tell nothing
    return plan_trials({"base": spec, "hpm": tried}, start, options)


def _start(spec: ModelSpec, options: RunOptions, model: nn.Module | Ready | None, source: DataSource | None) -> Start:
    device = _device(options.device)
    _check_screen(spec, options)
    if model is None:
        check_local(spec)
    source = source or open_clean(spec, options)
    check_resolution(spec, source.dataset)
    check_budget(spec, source.dataset)
    if options.tuning is not None:
        attacked_under(spec.threat)
        if source.read_train is None:
            raise no_training_images(source.dataset.name)
    corrupted = open_corruptions(spec, source.dataset, options)
    test, training = select(source, options.n_ex)
    test = test if corrupted is None else corrupted.clean_counterpart(test)
    if callable(model) and not isinstance(model, nn.Module):
        wrapped, sha256 = model(device), spec.weights.sha256
    else:
        wrapped, sha256 = _wrapped(spec, options, model, training)
    return Start(test, corrupted, training, wrapped, sha256)


def _wrapped(
    spec: ModelSpec, options: RunOptions, model: nn.Module | None, training: ExampleSet
) -> tuple[Wrapped, tuple[str, ...]]:
    """The wrapped model, and what its weights hash to."""
    if model is None:
        model, sha256 = load_weights(spec, options.model_dir, trust=options.trust)
    else:
        sha256 = (state_sha256(model),)
    with enough_memory(options.batch_size):
        wrapped = wrap(
            model,
            training,
            options.defence,
            head=spec.head,
            device=options.device,
            batch_size=options.batch_size,
            keep=options.output / "prototypes",
        )
    return wrapped, sha256


def fine_tune(spec: ModelSpec, options: RunOptions, tunings: Sequence[Tuning]) -> list[Kept]:
    """Wrap a model and fine-tune it, each time anew from its own weights; what is finished, or brought, is read.

    The classifiers are not returned: they lie on disk, and five of them need not fit into memory.

    Args:
        spec: which model, on which track.
        options: how; ``n_ex`` says which test images a later trial takes, so that none of them is trained on.
        tunings: the recipe, and its controls.

    Raises:
        HpmBenchError: see ``errors``; the same call continues where an earlier one was cut off.
    """
    with full_precision_kernels():
        start = _start(spec, options, None, None)
        return _keep(spec, start, options, tunings, train=True)


def _keep(spec: ModelSpec, start: Start, options: RunOptions, tunings: Sequence[Tuning], *, train: bool) -> list[Kept]:
    """Fine-tune whatever is not finished; features of a fixed backbone are computed once, and dropped in the end."""
    for tuning in tunings:  # a control that cannot learn is told before hours of HPM
        check_learns(start.wrapped.classifier, tuning, start.wrapped.fixed)
    features, compute = Features(), options.compute if train else None
    kept = [_finetuned(spec, start, options, tuning, compute, features).kept for tuning in tunings]
    if options.finetuned is not None:
        check_made_alike(dict(zip(tunings, kept, strict=True)))
    return kept


def _finetuned(
    spec: ModelSpec,
    start: Start,
    options: RunOptions,
    tuning: Tuning,
    compute: Compute | None = None,
    features: Features | None = None,
) -> Finetuned:
    if options.finetuned is not None:
        return take_finished(spec.name, start.wrapped, start.training, spec.threat, tuning, options.finetuned)
    folder = options.output / "finetuned"
    return finetune_once(spec.name, start.wrapped, start.training, spec.threat, tuning, folder, compute, features)


def _check_screen(spec: ModelSpec, options: RunOptions) -> None:
    if options.screen not in (None, *SCREENS):
        raise UnknownName("screen", str(options.screen), SCREENS)
    if options.screen and isinstance(spec.threat, Corruptions):
        raise UsageProblem(
            wanted="an Lp threat model for a screen",
            got="corruptions, where nobody attacks",
            next_step="leave --screen out; --n-ex makes it shorter",
        )


def _check_card(spec: ModelSpec, start: Start, options: RunOptions) -> None:
    """See that the card to come may be written; nothing that it is checked for depends on what is learned."""
    name = _tried(spec, options.tuning).name
    path = place(options.output / "model_cards", spec.dataset, spec.threat.name, name)
    if options.overwrite or options.screen or not path.exists():
        return
    trials = {plan.trial for plan, _ in _trials(spec, start, options)}
    check_replaceable(path, trials, options.defence_facts, start.weights_sha256, controls=options.controls)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageProblem(
            wanted=f"the device {name!r}", got=first_line(error), next_step="use --device cpu, or cuda:0"
        ) from error
    return device
