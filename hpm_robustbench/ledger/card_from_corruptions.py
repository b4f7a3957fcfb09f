"""The card that a model's finished runs on corrupted images amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from hpm_robustbench.ledger.card_block import Target
from hpm_robustbench.ledger.card_corruptions import (
    CorruptionBench,
    CorruptionEvaluation,
    PublishedCorruptions,
    mean_accuracy,
)
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.card_from_records import (
    batched,
    card_of,
    check_subject,
    in_order,
    origin,
    published_number,
)
from hpm_robustbench.ledger.card_schema import ModelCard, contract_of
from hpm_robustbench.ledger.record import RunRecord, Verdict
from hpm_robustbench.threat import Corruptions
from hpm_robustbench.zoo.spec import ModelSpec, Paper


def build_corruption_card(
    spec: ModelSpec,
    records: Sequence[RunRecord],
    *,
    n_classes: int,
    weights_sha256: Sequence[str] = (),
    notes: Mapping[str, str] | None = None,
) -> ModelCard:
    """Put a model's facts and its finished runs on corrupted images together; see ``build_card``.

    Raises:
        InvalidInput: the runs are of other models or images, or the headline, HPM SOLO, is missing.
    """
    check_subject(spec, records)
    with contract_of(f"the runs of {spec.name}"):
        bench = CorruptionBench(
            **origin(spec, records, weights_sha256, notes),
            published=_published(spec.paper),
            evaluations=[_evaluation(record, n_classes) for record in in_order(records)],
        )
        return card_of(spec, bench)


def _published(paper: Paper) -> PublishedCorruptions:
    keys = ("clean_acc", "corruptions_acc", "corruptions_mce", "reported")
    return PublishedCorruptions(**{key: published_number(getattr(paper, key)) for key in keys})


def _evaluation(record: RunRecord, n_classes: int) -> CorruptionEvaluation:
    plan = record.plan
    right = _right(record)
    return CorruptionEvaluation(
        run_key=plan.run_key,
        target=cast(Target, plan.target),
        dataset=plan.examples.dataset,
        split=plan.examples.split,
        fingerprint=plan.examples.fingerprint,
        state_sha256=plan.state_sha256,
        seed=plan.seed,
        shard_size=plan.shard_size,
        software=dict(plan.software),
        environment=dict(record.environment),
        clean=Metric.of(record.clean_correct),
        corruptions_acc=round(mean_accuracy(right, record.n), 2),
        right=right,
        flags=[f"{step.name}: {flag}" for step in record.steps for flag in step.flags],
        **batched(plan, n_classes),
    )


def _right(record: RunRecord) -> dict[str, list[int]]:
    """Images that are classified correctly, by corruption, severity after severity."""
    right: dict[str, list[int]] = {kind: [0] * len(Corruptions.severities) for kind in Corruptions.kinds}
    for step in record.plan.steps:
        severity = int(step.parameters["severity"])
        right[step.attack][severity - 1] = record[step.name].verdict.count(Verdict.STANDING)
    return right
