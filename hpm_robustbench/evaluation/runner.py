"""Plan + subject + examples -> journal. Resumes by looking at what is written.

A shard is a fixed run of rows and a cascade stays inside it, so a result depends neither on kills nor on the order in
which shards are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.judge import judge
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.hpm.views import Subject, make_view
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan, Step
from hpm_robustbench.ledger.record import CLEAN, StepResult, Verdict
from hpm_robustbench.shapes import Images, Labels


@dataclass(frozen=True)
class Share:
    """Every ``of``-th shard, starting with number ``index``."""

    index: int
    of: int


WHOLE = Share(0, 1)


def run(
    plan: Plan,
    subject: Subject,
    examples: ExampleSet,
    runs: Path,
    environment: dict[str, str],
    share: Share = WHOLE,
) -> None:
    """Carry out what of ``plan`` is not yet written; its journal holds the record once every shard is there.

    Args:
        plan: what to do; its run key names the folder under ``runs``.
        subject: the frozen classifier and base model, on the device to use.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.
        environment: versions and device, written beside the results.
        share: which shards to do; the others are somebody else's.

    Raises:
        InvalidInput: the model changed its own weights while it was attacked.
        StorageProblem: a result could not be written; everything before it is kept.
    """
    journal = Journal(runs, plan).open(environment)
    shards = list(enumerate(plan.shards()))[share.index :: share.of]
    title = f"{plan.model} {plan.target} {plan.batching.value} {plan.threat}"
    with Progress(title, total=len(shards) * len(journal.step_names)) as progress:
        for index, rows in shards:
            _Shard(plan, subject, examples, index, rows).run(journal, progress)


class _Shard:
    """One shard's cascade: the clean images, then each step on the rows that are still worth attacking."""

    def __init__(self, plan: Plan, subject: Subject, examples: ExampleSet, index: int, rows: Sequence[int]) -> None:
        self.plan, self.subject, self.examples, self.index, self.rows = plan, subject, examples, index, tuple(rows)
        device = subject.device
        chosen = examples.take(self.rows)
        self.x: Images = chosen.images.to(device)
        self.y: Labels = chosen.labels.to(device)
        self.standing = torch.ones_like(self.y, dtype=torch.bool)
        self.open = torch.ones_like(self.y, dtype=torch.bool)
        self.coupled = plan.target == "hpm" and not plan.batching.row_independent

    def run(self, journal: Journal, progress: Progress) -> None:
        for name, step in [(CLEAN, None), *((step.name, step) for step in self.plan.steps)]:
            progress.begin(f"shard {self.index + 1}, {name}")
            result = journal.read(self.index, name)
            if result is None:
                result = self._clean() if step is None else self._attack(step, progress)
                check_unchanged(self.plan, self.subject, self.examples)
                journal.write(self.index, result)
            self._take_in(result)
            progress.finish(100 * self.standing.float().mean().item())

    def _take_in(self, result: StepResult) -> None:
        """Rows that no step has broken still stand; batches in which one step left nothing right are closed."""
        verdict = torch.tensor(result.verdict, device=self.y.device)
        self.standing &= (verdict != Verdict.CLEAN_WRONG) & (verdict != Verdict.BROKEN) & (verdict != Verdict.SKIPPED)
        for batch in self._batches(len(verdict)):
            right = (verdict[batch] == Verdict.STANDING) | (verdict[batch] == Verdict.INVALID)
            self.open[batch] &= right.any()

    def _batches(self, n: int) -> list[slice]:
        return [slice(start, start + self.plan.batch_size) for start in range(0, n, self.plan.batch_size)]

    def _clean(self) -> StepResult:
        logits = torch.cat([self.subject.target_logits(self.x[batch]) for batch in self._batches(len(self.x))])
        if not logits.isfinite().all():
            raise InvalidInput(
                wanted="finite logits on clean images",
                got=f"NaN or Inf in shard {self.index}",
                next_step="check the model's weights and input range",
            )
        predicted = logits.argmax(dim=1)
        verdict = torch.where(predicted == self.y, Verdict.STANDING, Verdict.CLEAN_WRONG)
        nothing = torch.zeros(len(self.x), dtype=torch.float64)
        return self._result(CLEAN, verdict, predicted, nothing, cost=(len(self.x), 0))

    def _attack(self, step: Step, progress: Progress) -> StepResult:
        """Attack what stands; a coupled batch is always submitted and judged whole, since every mate counts.

        On a coupled view all rows may move and the standing ones are to be won; on another every row of an open
        batch is attacked for itself.
        """
        active = self.open if self.coupled else self.standing
        if not active.any():
            return self._nothing_left(step)
        view = make_view(step.view, self.subject)
        view.on_call = progress.tick
        wanted = active if view.row_independent else active & self.standing
        x_adv = run_attack(step, view, self.x, self.y, wanted, self.plan.threat, self.plan.seed, self.plan.batch_size)
        judged = judge(
            self.subject.target_logits,
            self.x[active],
            x_adv[active],
            self.y[active],
            self.plan.threat,
            self._batches(int(active.sum())),
        )
        verdict = torch.full_like(self.y, Verdict.SKIPPED)
        predicted, distance = torch.full_like(self.y, -1), torch.full_like(self.y, -1, dtype=torch.float64)
        verdict[active], predicted[active], distance[active] = judged.verdict, judged.predicted, judged.distance
        cost = (view.cost.forward, view.cost.backward)
        return self._result(step.name, verdict, predicted, distance, cost, judged.flags)

    def _nothing_left(self, step: Step) -> StepResult:
        none = torch.full_like(self.y, -1)
        return self._result(step.name, torch.full_like(self.y, Verdict.SKIPPED), none, none.double(), cost=(0, 0))

    def _result(
        self,
        name: str,
        verdict: Tensor,
        predicted: Tensor,
        distance: Tensor,
        cost: tuple[int, int],
        flags: tuple[str, ...] = (),
    ) -> StepResult:
        judged = [v != Verdict.SKIPPED for v in verdict.tolist()]
        return StepResult(
            name=name,
            rows=self.rows,
            verdict=tuple(verdict.tolist()),
            predicted=tuple(p if seen else None for p, seen in zip(predicted.tolist(), judged, strict=True)),
            distance=tuple(d if seen else None for d, seen in zip(distance.tolist(), judged, strict=True)),
            forward=cost[0],
            backward=cost[1],
            flags=flags,
        )
