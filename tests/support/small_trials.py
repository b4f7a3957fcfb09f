"""Trials of a small network on digits: what is tried, and the record that is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.identity import subject_sha256
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Examples, Plan, Step
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import ThreatModel


def plan_of(subject: Subject, examples: ExampleSet, steps: tuple[Step, ...], **changes: object) -> Plan:
    """Shards and batches of 16 under Linf 0.1, but for the changes."""
    plan = Plan(
        model="Small",
        target=subject.target,
        batching=subject.classifier.batching,
        threat=ThreatModel.parse("Linf", "0.1"),
        protocol="test",
        steps=steps,
        examples=Examples("digits", "test", examples.fingerprint, len(examples)),
        state_sha256=subject_sha256(subject, examples),
        defence={},
        software={},
        batch_size=16,
        shard_size=16,
    )
    return replace(plan, **changes)


def record_of(plan: Plan, runs: Path) -> RunRecord:
    """What a finished run has left."""
    record = Journal(runs, plan).record()
    assert record is not None
    return record
