"""The straight line every model goes: spec -> weights -> wrapped classifier -> plans -> records -> card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from hpm_robustbench.data import (
    CorruptedSource,
    DataSource,
    ExampleSet,
    select,
)
from hpm_robustbench.errors import IntegrityError, UnknownName, UsageProblem
from hpm_robustbench.evaluation.aggregates import aggregate
from hpm_robustbench.evaluation.corruptions import Conditions, run_corruptions
from hpm_robustbench.evaluation.diagnostics import diagnose
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.evaluation.lent import lend
from hpm_robustbench.evaluation.runner import WHOLE, Share, run
from hpm_robustbench.evaluation.verification import Verification, verify
from hpm_robustbench.images import check_budget, check_resolution, open_clean, open_corruptions
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.ledger.card_from_corruptions import build_corruption_card
from hpm_robustbench.ledger.card_from_records import build_card
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.fine_tuning import FineTuning
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.matrix import MATRIX, members
from hpm_robustbench.ledger.model_card import Tuned, check_replaceable, place, write_card
from hpm_robustbench.ledger.plan import (
    QUICK,
    BasePlan,
    CorruptionPlan,
    Plan,
)
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.memory import enough_memory
from hpm_robustbench.planning import Start, environment_of, plan_trials
from hpm_robustbench.run_options import SCREENS, RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching, Corruptions
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.elsewhere import take_finished
from hpm_robustbench.training.features import Features
from hpm_robustbench.training.finetuned import finetune_once, no_training_images, on_trial
from hpm_robustbench.training.kept import Finetuned, Kept
from hpm_robustbench.training.recipe import Control, Tuning
from hpm_robustbench.weights import check_local, load_weights
from hpm_robustbench.zoo.spec import ModelSpec

Ready: TypeAlias = Callable[[torch.device], Wrapped]
"""Brings a model that is wrapped already to a device."""


@dataclass(frozen=True)
class Outcome:
    """A finished trial: the card, where it was written, and the records behind it."""

    card: ModelCard
    card_path: Path
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Screen:
    """What a screen found, for looking around: no card, and never on a board.

    ``in_turn`` are the trials whose steps a matrix has tried one by one, as far as they are finished.
    """

    records: tuple[RunRecord, ...]
    in_turn: tuple[RunRecord, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether it tells what each step did by itself, instead of what stood under all."""
        return any(record.plan.protocol == MATRIX for record in self.records)


@dataclass(frozen=True)
class Case:
    """A model ready for trial: everything that costs something is loaded, nothing is attacked yet.

    ``corrupted`` are the test images under corruptions, on a track of that kind; ``course`` tells of the
    fine-tuning, where there was one. ``controls`` are cases of their own, which go to trial with it and are loaded
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
    course: FineTuning | None = None
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


def evaluate(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | None = None, source: DataSource | None = None
) -> Outcome:
    """Wrap a model, attack it and its base, judge, and write its card.

    Repeating the call continues where an earlier one stopped, and yields the same bytes.

    Args:
        spec: which model, on which track.
        options: how.
        model: the network itself, if the caller has it in memory; otherwise the spec says where it comes from.
        source: the images themselves, likewise.

    Raises:
        HpmBenchError: see ``errors``; whatever was finished before is kept.
    """
    if options.screen is not None:
        raise UsageProblem(
            wanted="a full protocol, since a card is asked for",
            got=f"{options.screen}, which is a screen and never becomes a card",
            next_step="leave it out, or use pipeline.screen",
        )
    case = prepare(spec, options, model=model, source=source)
    attack(case)
    examine(case)
    outcome = conclude(case)
    assert isinstance(outcome, Outcome)
    return outcome


def screen(
    spec: ModelSpec, options: RunOptions, *, model: nn.Module | None = None, source: DataSource | None = None
) -> Screen:
    """Like ``evaluate``, but with the attacks of a screen (``quick`` by default), and without a card."""
    case = prepare(spec, replace(options, screen=options.screen or QUICK), model=model, source=source)
    attack(case)
    outcome = conclude(case)
    assert isinstance(outcome, Screen)
    return outcome


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
    course = None
    if options.tuning is not None:
        finetuned = _finetuned(spec, start, options, options.tuning)
        start, course = replace(start, wrapped=on_trial(start.wrapped, finetuned, options.tuning)), finetuned.course
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
        course=course,
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
    if options.tuning is not None and source.read_train is None:
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
    with enough_memory(options.device, options.batch_size):
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
    """Wrap a model and fine-tune it, each time anew from its own weights; what is finished already is read.

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
    features, compute = Features(), options.compute if train else None
    return [_finetuned(spec, start, options, tuning, compute, features).kept for tuning in tunings]


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


def attack(case: Case, share: Share = WHOLE) -> None:
    """Do this share of what is not yet written down; on a corruption track nothing is attacked, only evaluated."""
    with full_precision_kernels():
        awaited = any(_borrows(case, plan) for plan, _ in case.all_trials())
        for plan, subject in case.all_trials():
            with _memory_for(plan, subject):
                _attack(case, plan, subject, share, lends=awaited and plan.target == "base")


def _attack(case: Case, plan: BasePlan, subject: Subject, share: Share, *, lends: bool) -> None:
    runs, environment = case.output / "runs", environment_of(subject.device)
    if isinstance(plan, Plan):
        run(plan, subject, case.test, runs, environment, share, keep_images=case.keep_images, lends=lends)
        return
    assert isinstance(plan, CorruptionPlan) and case.corrupted is not None
    run_corruptions(plan, subject, Conditions(case.test, case.corrupted), runs, environment, share)


def _memory_for(plan: BasePlan, subject: Subject) -> AbstractContextManager[None]:
    option = "--joint-size" if plan.batching is Batching.JOINT else "--batch-size"
    return enough_memory(subject.device, plan.batch_size, option)


def _borrows(case: Case, plan: BasePlan) -> bool:
    """Whether a trial of HPM still waits for what the base model's leaves behind."""
    journal = Journal(case.output / "runs", plan)
    return bool(plan.lender) and (journal.awaits_aggregates or journal.read_lent() is None)


def examine(case: Case) -> None:
    """Finish every trial under attack with what needs all of its shards, where nobody has yet.

    HPM is shown what the base model's own trial has found, what broke whole batches is put together, and indicators of
    attack failure are measured.
    """
    with full_precision_kernels():
        for plan, subject in case.all_trials():
            if isinstance(plan, Plan) and not case.is_screen:
                with _memory_for(plan, subject):
                    for finish in (lend, aggregate, diagnose):
                        finish(plan, subject, case.test, case.output / "runs")


def verify_kept(case: Case) -> list[Verification]:
    """Judge again every adversarial image that was kept of a case, which this process has loaded afresh."""
    with full_precision_kernels():
        return [
            verify(plan, subject, case.test, case.output / "runs")
            for plan, subject in case.all_trials()
            if isinstance(plan, Plan)
        ]


def conclude(case: Case) -> Outcome | Screen:
    """Collect the records of a case whose every shard is written down, and write its card, if they are worth one.

    The controls' cards come first, so that none is missing that the case's own card tells of.
    """
    with full_precision_kernels():
        if case.is_screen:
            return _screened(case)
        records = tuple(_record(Journal(case.output / "runs", plan)) for plan, _ in case.trials)
        beside = {control.value: conclude(make()).records for control, make in case.controls.items()}
    tuned = {} if case.course is None else {"tuned": Tuned(case.course, beside)}
    name = case.spec.preprocessing
    about_images = {"images": f"Preprocessed as {name}, unless they had that size already."} if name else {}
    build = build_card if case.corrupted is None else build_corruption_card
    card = build(
        case.spec,
        records,
        n_classes=case.test.dataset.n_classes,
        weights_sha256=case.weights_sha256,
        notes={**case.wrapped.notes, **about_images},
        **tuned,
    )
    return Outcome(card, write_card(card, case.output / "model_cards"), records)


def _screened(case: Case) -> Screen:
    """Of a case and its controls, each loaded once."""
    records: dict[str, RunRecord] = {}
    in_turn: list[RunRecord | None] = []
    for each in case.all_cases():
        records |= {plan.run_key: _record(Journal(case.output / "runs", plan)) for plan, _ in each.trials}
        in_turn += [Journal(case.output / "runs", plan).record() for plan in each.in_turn]
    finished = (record for record in in_turn if record is not None and (record.lent or not record.plan.lender))
    return Screen(tuple(records.values()), tuple(finished))


def _record(journal: Journal) -> RunRecord:
    record = journal.record()
    if record is None:  # written, and gone or damaged since
        raise IntegrityError(
            wanted=f"every step of the run {journal.folder}",
            got="a file that is missing or not whole any more",
            next_step="run the same command again; it does what is missing",
        )
    return record


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageProblem(
            wanted=f"the device {name!r}", got=str(error).splitlines()[0], next_step="use --device cpu, or cuda:0"
        ) from error
    return device
