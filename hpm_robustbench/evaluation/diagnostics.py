"""Can the attacks of a run be trusted? Measured on a few of its images; the rules are in ``ledger.diagnostics``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch

from hpm_robustbench.attacks.losses import cross_entropy, margin
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.probes import (
    dead_gradients,
    logit_gap,
    misled,
    probabilities,
    regrouped,
    reordered,
    repeated,
    saturated,
)
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.evaluation.sample import Sample, draw_sample
from hpm_robustbench.evaluation.stress import broken_by_gradients, broken_by_noise, multiples
from hpm_robustbench.ledger.diagnostics import AtBudget, AtSteps, Diagnostics
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.shapes import Mask
from hpm_robustbench.surrogates.views import Subject

_ITERATIONS = (25, 50, 100, 200)
_BUDGET_STEPS = 50
"""Steps of the attack whose budget grows; one of ``_ITERATIONS``, so that the budget itself is met once."""


def diagnose(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> None:
    """Measure the indicators of a run and write them down beside it, unless they are there or the run is unfinished.

    Args:
        plan: of the run.
        subject: what stood trial, on the device to use.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.

    Raises:
        InvalidInput: the model changed its own weights or answers while it was looked at.
        StorageProblem: the result could not be written.
    """
    journal = Journal(runs, plan)
    record = journal.record()
    if record is None or record.diagnostics is not None:
        return
    title = f"{plan.model} {plan.target} {plan.batching.value} {plan.threat}"
    with Progress(title, total=1) as progress:
        progress.begin("indicators of attack failure")
        sample = draw_sample(record, subject, examples, progress.tick)
        if sample is None:
            return
        found = measure(sample)
    check_unchanged(plan, subject, examples)
    journal.write_diagnostics(found)


def measure(sample: Sample) -> Diagnostics:
    """All indicators of a sample."""
    with torch.no_grad():
        logits = torch.cat([batch.view.target_logits(batch.x) for batch in sample.batches()])
        by_steps = {steps: broken_by_gradients(sample, steps) for steps in _ITERATIONS}
        noise = broken_by_noise(sample)
        by_any = torch.stack(list(by_steps.values())).any(dim=0)
        return Diagnostics(
            n=sample.n,
            dead_cross_entropy=sample.count(dead_gradients(sample, cross_entropy)),
            dead_margin=sample.count(dead_gradients(sample, margin)),
            misled=sample.count(misled(sample)) if sample.view.row_independent else None,
            repeated=sample.count(repeated(sample)),
            reordered=sample.count(reordered(sample)),
            regrouped=sample.count(regrouped(sample)),
            probabilities=sample.count(probabilities(logits)),
            saturated=sample.count(saturated(sample, logits)),
            logit_gap=float(f"{logit_gap(sample, logits):.4g}"),
            budgets=_budgets(sample, by_steps[_BUDGET_STEPS]),
            iterations=[AtSteps(steps=s, standing=sample.count(~rows)) for s, rows in by_steps.items()],
            noise=sample.count(noise),
            noise_alone=sample.count(noise & ~by_any),
            forward=sample.view.cost.forward,
            backward=sample.view.cost.backward,
        )


def _budgets(sample: Sample, at_the_budget: Mask) -> list[AtBudget]:
    curve = []
    for multiple in multiples(sample.threat, sample.x[0].numel()):
        rows = at_the_budget if multiple == Fraction(1) else broken_by_gradients(sample, _BUDGET_STEPS, multiple)
        curve.append(AtBudget(multiple=float(f"{float(multiple):.6g}"), standing=sample.count(~rows)))
    return curve
