"""The straight line every model goes: spec -> weights -> wrapped classifier -> plans -> records -> card."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from hpm_robustbench.case import Case, prepare
from hpm_robustbench.data import DataSource
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.evaluation.aggregates import aggregate
from hpm_robustbench.evaluation.corruptions import Conditions, run_corruptions
from hpm_robustbench.evaluation.diagnostics import diagnose
from hpm_robustbench.evaluation.lent import lend
from hpm_robustbench.evaluation.runner import WHOLE, Share, run
from hpm_robustbench.evaluation.verification import Verification, verify
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.ledger.card_from_corruptions import build_corruption_card
from hpm_robustbench.ledger.card_from_records import build_card
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.matrix import MATRIX
from hpm_robustbench.ledger.model_card import Tuned, write_card
from hpm_robustbench.ledger.plan import QUICK, BasePlan, CorruptionPlan, Plan
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.memory import enough_memory
from hpm_robustbench.planning import environment_of
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.spec import ModelSpec


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


def attack(case: Case, share: Share = WHOLE) -> None:
    """Do this share of what is not yet written down; on a corruption track nothing is attacked, only evaluated."""
    with full_precision_kernels():
        awaited = any(Journal(case.output / "runs", plan).awaits_images for plan, _ in case.all_trials())
        for plan, subject in case.all_trials():
            with _memory_for(plan):
                _attack(case, plan, subject, share, lends=awaited and plan.target == "base")


def _attack(case: Case, plan: BasePlan, subject: Subject, share: Share, *, lends: bool) -> None:
    runs, environment = case.output / "runs", environment_of(subject.device)
    if isinstance(plan, Plan):
        run(plan, subject, case.test, runs, environment, share, keep_images=case.keep_images, lends=lends)
        return
    assert isinstance(plan, CorruptionPlan) and case.corrupted is not None
    run_corruptions(plan, subject, Conditions(case.test, case.corrupted), runs, environment, share)


def _memory_for(plan: BasePlan) -> AbstractContextManager[None]:
    return enough_memory(plan.batch_size, "--joint-size" if plan.batching is Batching.JOINT else "--batch-size")


def examine(case: Case) -> None:
    """Finish every trial under attack with what needs all of its shards, where nobody has yet.

    HPM is shown what the base model's own trial has found, what broke whole batches is put together, and indicators of
    attack failure are measured.
    """
    with full_precision_kernels():
        for plan, subject in case.all_trials():
            if isinstance(plan, Plan) and not case.is_screen:
                with _memory_for(plan):
                    for finish in (lend, aggregate, diagnose):
                        finish(plan, subject, case.test, case.output / "runs")


def verify_kept(case: Case) -> list[Verification]:
    """Judge again every adversarial image that was kept of a case, which this process has loaded afresh."""
    found = []
    with full_precision_kernels():
        for plan, subject in case.all_trials():
            if isinstance(plan, Plan):
                with _memory_for(plan):
                    found.append(verify(plan, subject, case.test, case.output / "runs"))
    return found


def conclude(case: Case) -> Outcome | Screen:
    """Collect the records of a case whose every shard is written down, and write its card, if they are worth one.

    The controls' cards come first, so that none is missing that the case's own card tells of.
    """
    with full_precision_kernels():
        if case.is_screen:
            return _screened(case)
        records = tuple(_record(Journal(case.output / "runs", plan)) for plan, _ in case.trials)
        beside = {control.value: conclude(make()).records for control, make in case.controls.items()}
    tuned = {} if case.kept is None else {"tuned": Tuned(case.kept.course, beside)}
    build = build_card if case.corrupted is None else build_corruption_card
    card = build(
        case.spec,
        records,
        n_classes=case.test.dataset.n_classes,
        weights_sha256=case.weights_sha256,
        notes={**case.wrapped.notes, **_notes(case.spec)},
        **tuned,
    )
    return Outcome(card, write_card(card, case.output / "model_cards"), records)


def _notes(spec: ModelSpec) -> dict[str, str]:
    """Sentences for a card, by topic: what nobody could know who has the card and not the spec."""
    name, own = spec.preprocessing, spec.factory.startswith("python:")
    images = {"images": f"Preprocessed as {name}, unless they had that size already."} if name else {}
    return {**images, **({"head": spec.head.path} if own and spec.head.path else {})}


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
