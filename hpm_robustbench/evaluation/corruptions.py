"""A target on corrupted images: plan + subject + examples -> journal. Nobody attacks, so there is no budget to judge.

It resumes as a trial under attack does: by looking at what is written, one file for each shard under each corruption
and severity. All images of a batch are under the same corruption at the same severity.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hpm_robustbench.data import CorruptedSource, ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.evaluation.runner import WHOLE, Share
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import CorruptionPlan, Step
from hpm_robustbench.ledger.record import CLEAN, StepResult, Verdict
from hpm_robustbench.surrogates.views import Subject


class Conditions(NamedTuple):
    """Test images as they are, and the same ones under every corruption and severity."""

    clean: ExampleSet
    corrupted: CorruptedSource

    def take(self, step: Step | None, rows: Sequence[int]) -> ExampleSet:
        """The given rows as a step wants them; None stands for the clean ones.

        Raises:
            IntegrityError: an image cannot be read.
        """
        if step is None:
            return self.clean.take(rows)
        return self.corrupted.take(step.attack, int(step.parameters["severity"]), rows)


def run_corruptions(
    plan: CorruptionPlan,
    subject: Subject,
    conditions: Conditions,
    runs: Path,
    environment: dict[str, str],
    share: Share = WHOLE,
) -> None:
    """Carry out what of ``plan`` is not yet written; its journal holds the record once every shard is there.

    Args:
        plan: what to do; its run key names the folder under ``runs``.
        subject: the frozen classifier and base model, on the device to use.
        conditions: the images that the plan's fingerprint names.
        runs: folder of all runs.
        environment: versions and device, written beside the results.
        share: which shards to do; the others are somebody else's.

    Raises:
        InvalidInput: the model changed its own weights, or answers clean images with NaN.
        IntegrityError: an image cannot be read.
        StorageProblem: a result could not be written; everything before it is kept.
    """
    journal = Journal(runs, plan).open(environment)
    shards = list(enumerate(plan.shards()))[share.index :: share.of]
    steps = [(CLEAN, None), *((step.name, step) for step in plan.steps)]
    title = f"{plan.model} {plan.target} {plan.batching.value} {plan.threat}"
    with Progress(title, total=len(shards) * len(steps)) as progress:
        for index, rows in shards:
            for name, step in steps:
                progress.begin(f"shard {index + 1}, {name}")
                result = journal.read(index, name)
                if result is None:
                    result = _answer(plan, subject, name, conditions.take(step, rows), rows)
                    check_unchanged(plan, subject, conditions.clean)
                    journal.write(index, result)
                progress.finish(100 * result.verdict.count(Verdict.STANDING) / len(rows), "right")


def _answer(plan: CorruptionPlan, subject: Subject, name: str, examples: ExampleSet, rows: Sequence[int]) -> StepResult:
    """What the target says of each image; an answer of NaN is wrong, and on a clean image a fault of the model."""
    batches = [
        examples.images[start : start + plan.batch_size].to(subject.device)
        for start in range(0, len(examples), plan.batch_size)
    ]
    logits = torch.cat([subject.target_logits(batch).cpu() for batch in batches])
    finite = logits.isfinite().all(dim=1)
    if name == CLEAN and not finite.all():
        raise InvalidInput(
            wanted="finite logits on clean images", got="NaN or Inf", next_step="check the model's weights"
        )
    predicted = logits.argmax(dim=1)
    wrong = Verdict.CLEAN_WRONG if name == CLEAN else Verdict.BROKEN
    right = (predicted == examples.labels) & finite
    return StepResult(
        name=name,
        rows=tuple(rows),
        verdict=tuple(int(Verdict.STANDING if ok else wrong) for ok in right.tolist()),
        predicted=tuple(predicted.tolist()),
        distance=(None,) * len(examples),
        forward=len(examples),
        flags=() if finite.all() else ("the target answered with NaN or Inf; counted as an error",),
    )
