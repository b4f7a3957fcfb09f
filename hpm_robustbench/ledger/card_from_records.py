"""The card that a model's finished runs amount to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger import doubts
from hpm_robustbench.ledger.card_bench import SCHEMA_VERSION, HpmBench, Published, Verdict, Weights
from hpm_robustbench.ledger.card_block import Target
from hpm_robustbench.ledger.card_control import Control
from hpm_robustbench.ledger.card_corruptions import CorruptionBench
from hpm_robustbench.ledger.card_evaluation import Evaluation, Metric, StepSummary, Threat
from hpm_robustbench.ledger.card_from_tuning import Tuned
from hpm_robustbench.ledger.card_schema import ModelCard, contract_of, robustbench_view
from hpm_robustbench.ledger.indicators import indicators
from hpm_robustbench.ledger.plan import AUTOATTACK, BasePlan, Step
from hpm_robustbench.ledger.provenance import provenance_of
from hpm_robustbench.ledger.record import CLEAN, RunRecord
from hpm_robustbench.ledger.record import Verdict as RowVerdict
from hpm_robustbench.ledger.transfers import TRANSFER, with_transfers
from hpm_robustbench.threat import Batching, Composition, ThreatModel
from hpm_robustbench.threat import Threat as AnyThreat
from hpm_robustbench.zoo.spec import ModelSpec, Paper, WeightsRef

NOTICE = "HPM and MSA as reconstructed from the abstract of arXiv 2606.01746; not the authors' implementation."


def build_card(
    spec: ModelSpec,
    records: Sequence[RunRecord],
    *,
    n_classes: int,
    weights_sha256: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
    tuned: Tuned | None = None,
) -> ModelCard:
    """Put a model's facts and its finished runs together; the same records in any order give the same card.

    Args:
        spec: the base model.
        records: HPM SOLO with AutoAttack, and optionally the base model and HPM in other batchings.
        n_classes: classes of the dataset, for B/C.
        weights_sha256: what the weights hashed to, where the spec does not say.
        notes: sentences for the card by topic; ``prototypes`` says where the dataset prototypes come from.
        tuned: what there is to tell of its fine-tuning, if it was fine-tuned.

    Raises:
        InvalidInput: the runs are of other models, images or budgets, or the headline is missing.
    """
    check_subject(spec, records)
    _check_headline(records)
    ordered = with_transfers(in_order(records))
    more: dict[str, Any] = tuned.fields(ordered) if tuned else {}
    with contract_of(f"the runs of {spec.name}"):
        bench = HpmBench(
            **origin(spec, records, weights_sha256, notes),
            published=_published(spec.paper),
            evaluations=[_evaluation(record, n_classes) for record in ordered],
            verdicts=_verdicts(ordered, more.get("controls", [])),
            **more,
        )
        return card_of(spec, bench)


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The base model first, then HPM in each batching."""
    return sorted(records, key=lambda record: (record.plan.target, list(Batching).index(record.plan.batching)))


def origin(
    spec: ModelSpec, records: Sequence[RunRecord], weights_sha256: Sequence[str], notes: Mapping[str, str] | None
) -> dict[str, Any]:
    """The fields of ``Bench``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model_id": spec.name,
        "base_model": spec.base_name,
        "factory": spec.factory,
        "license": spec.paper.license,
        "weights": _weights(spec.weights, weights_sha256),
        "defence": dict(next(r.plan.defence for r in records if r.plan.target == "hpm")),
        "notes": dict(sorted((notes or {}).items())),
    }


def check_subject(spec: ModelSpec, records: Sequence[RunRecord]) -> None:
    """See that the runs are of one model, on one set of images, under one threat model, with one HPM.

    Raises:
        InvalidInput: they are not, or there is none.
    """
    subjects = sorted({_subject(record, spec) for record in records})
    if len(subjects) != 1 or not subjects[0].startswith(f"{spec.name} on {spec.dataset},"):
        raise InvalidInput(
            wanted=f"finished runs of {spec.name} on {spec.dataset}, all on the same images and budget",
            got="; ".join(subjects) or "no run",
            next_step="give the runs of one model on one set of images under one threat model",
        )
    defended = [record.plan for record in records if record.plan.target == "hpm"]
    if any(dict(plan.defence) != dict(defended[0].defence) for plan in defended):
        raise InvalidInput(
            wanted="HPM runs of one configuration",
            got=f"{len(defended)} runs with different ones",
            next_step="give the runs of one configuration; each configuration has a card of its own",
        )
    if not any(plan.batching is Batching.SOLO for plan in defended):
        raise _no_headline("a run of HPM SOLO, the headline of a card", records)


def _check_headline(records: Sequence[RunRecord]) -> None:
    solo = [r for r in records if r.plan.target == "hpm" and r.plan.batching is Batching.SOLO]
    if not any(record.has_autoattack for record in solo):
        raise _no_headline("a run of HPM SOLO with AutoAttack, the headline of a card", records)


def _no_headline(wanted: str, records: Sequence[RunRecord]) -> InvalidInput:
    return InvalidInput(
        wanted=wanted,
        got=", ".join(f"{record.plan.target} {record.plan.batching.value}" for record in records),
        next_step="run it too, with --batching solo; what is finished is kept",
    )


def _subject(record: RunRecord, spec: ModelSpec) -> str:
    """What a run is about; the model before a fine-tuning counts, as a base, as the fine-tuned one's own."""
    plan, examples = record.plan, record.plan.examples
    model = spec.name if (plan.target, plan.model) == ("base", spec.untuned_name) else plan.model
    images = f"{examples.n} images of {examples.split} ({examples.fingerprint[:12]})"
    return f"{model} on {examples.dataset}, {images}, {plan.threat}"


def card_of(spec: ModelSpec, bench: HpmBench | CorruptionBench) -> ModelCard:
    """RobustBench's keys on top of a block."""
    paper = spec.paper
    # RobustBench leaves out what does not apply, but for eps.
    mirrors = {key: value for key, value in robustbench_view(bench).items() if value is not None or key == "eps"}
    return ModelCard(
        link=paper.link,
        name=paper.title or spec.name,
        authors=paper.authors,
        additional_data=paper.additional_data,
        number_forward_passes=paper.number_forward_passes,
        venue=paper.venue,
        architecture=paper.architecture,
        reported="",  # nobody has reported a number for the wrapped model; the base model's are in hpm_bench
        footnote=f"{bench.base_model} wrapped with HPM. {NOTICE}",
        hpm_bench=bench,
        **mirrors,
    )


def _weights(weights: WeightsRef, sha256: Sequence[str]) -> Weights:
    return Weights(source=weights.public, sha256=list(weights.sha256 or sha256))


def _published(paper: Paper) -> Published:
    keys = ("clean_acc", "autoattack_acc", "reported", "external")
    return Published(**{key: published_number(getattr(paper, key)) for key in keys})


def published_number(text: str | None) -> str | None:
    """A published figure, or None if there is none."""
    return None if text in ("", "null") else text  # both are RobustBench's spellings of "none"


def _evaluation(record: RunRecord, n_classes: int) -> Evaluation:
    plan = record.plan
    joint = plan.batching is Batching.JOINT
    autoattack = Metric.of(record.standing(AUTOATTACK)) if record.has_autoattack else None
    return Evaluation(
        run_key=record.run_key,
        target=cast(Target, plan.target),
        threat=_threat(plan.threat),
        dataset=plan.examples.dataset,
        split=plan.examples.split,
        fingerprint=plan.examples.fingerprint,
        state_sha256=plan.state_sha256,
        protocol=plan.protocol,
        seed=plan.seed,
        shard_size=plan.shard_size,
        software=dict(plan.software),
        environment=dict(record.environment),
        clean=Metric.of(record.clean_correct),
        autoattack=autoattack,
        robust=Metric.of(record.standing()),
        batch_worst=Metric.from_count(record.batch_worst(), record.n) if joint else None,
        flags=[
            *record[CLEAN].flags,
            *_doubted(record),
            *_aggregated(record),
            *_diagnosed(record),
        ],
        steps=[_step(record, step) for step in plan.steps],
        provenance=provenance_of(record),
        **_found_out(record),
        **batched(plan, n_classes),
    )


def _found_out(record: RunRecord) -> dict[str, Any]:
    """The fields that tell what was measured after the attacks, where it was."""
    found = {"diagnostics": record.diagnostics, "aggregates": record.aggregates}
    return {name: block for name, block in found.items() if block is not None}


def batched(plan: BasePlan, n_classes: int) -> dict[str, Any]:
    """The fields of ``Batched``; a composition goes without saying where images were drawn alike."""
    n, composition = plan.examples.n, plan.composition
    mixed = plan.batching is Batching.JOINT and composition is not Composition.SINGLE_CLASS
    return {
        "batching": plan.batching,
        "batch_size": plan.batch_size,
        "batch_per_class": round(min(plan.batch_size, n) / n_classes, 4) if mixed else None,
        "n": n,
        **({} if composition is Composition.IID else {"composition": composition}),
    }


def _threat(threat: AnyThreat) -> Threat:
    assert isinstance(threat, ThreatModel)
    eps = threat.eps
    return Threat(norm=threat.norm, eps=eps.text, eps_exact=str(eps.value), eps_float=float(eps))


def _step(record: RunRecord, step: Step) -> StepSummary:
    result = record[step.name]
    # Whole batches of a coupled target are judged again and again; a row that fell before is nobody's success now.
    before = _standing_before(record, step)
    met = Counter(v for v, stood in zip(result.verdict, before, strict=True) if stood)
    broken, invalid = met[RowVerdict.BROKEN], met[RowVerdict.INVALID]
    summary = StepSummary(
        name=step.name,
        view=step.view,
        attack=step.attack,
        group=step.group,
        parameters=dict(step.parameters),
        attempted=met[RowVerdict.STANDING] + broken + invalid,
        fooled=result.fooled_among(before),
        broken=broken,
        invalid=invalid,
        robust=Metric.of(record.standing(upto=step.name)),
        forward=round(result.forward / record.n, 2),
        backward=round(result.backward / record.n, 2),
        flags=list(result.flags),
    )
    return summary.model_copy(update={"flags": [*summary.flags, *summary.doubts]})


def _standing_before(record: RunRecord, step: Step) -> list[bool]:
    names = [CLEAN, *(each.name for each in record.plan.steps)]
    return record.standing(upto=names[names.index(step.name) - 1])


def _doubted(record: RunRecord) -> list[str]:
    """What the counts of all steps raise."""
    own = [step for step in record.plan.steps if step.attack != TRANSFER]
    standing = [sum(record.standing(upto=name)) for name in (CLEAN, *(step.name for step in own))]
    autoattack = sum(record.standing(AUTOATTACK)) if record.has_autoattack else None
    return doubts.of_run([step.group for step in own], standing, sum(record.standing()), autoattack, record.n)


def _aggregated(record: RunRecord) -> list[str]:
    """What the composite raises, where there is one."""
    return [record.aggregates.flag] if record.aggregates and record.aggregates.flag else []


def _diagnosed(record: RunRecord) -> list[str]:
    """What the indicators of attack failure raise, where they were measured."""
    if record.diagnostics is None:
        return []
    found = indicators(record.diagnostics, coupled=record.plan.coupled, autoattack=record.has_autoattack)
    return [indicator.flag for indicator in found if indicator.flag]


def _verdicts(records: Sequence[RunRecord], controls: Sequence[Control]) -> list[Verdict]:
    base = next((r for r in records if r.plan.target == "base" and r.has_autoattack), None)
    if base is None:
        return []
    rows = base.standing()
    defended = [record for record in records if record.plan.target == "hpm"]
    tuning = defended[0].plan.defence.get("tuning")
    if tuning and tuning["control"]:
        return []
    fc = {control.batching: control.test for control in controls if control.control == "fc"}
    return [
        Verdict.of(rows, r.standing(), r.plan.batching, fc=fc.get(r.plan.batching), tuned=bool(tuning))
        for r in defended
    ]
