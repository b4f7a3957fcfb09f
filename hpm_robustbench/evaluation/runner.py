"""Plan + subject + examples -> journal. Resumes by looking at what is written.

A shard is a fixed run of rows and a cascade stays inside it, so a result depends neither on kills nor on the order in
which shards are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hpm_robustbench.attacks.base import ALL, MATES
from hpm_robustbench.attacks.registry import find_attack, run_attack
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.evaluation.aggregates import broken_path
from hpm_robustbench.evaluation.identity import check_unchanged
from hpm_robustbench.evaluation.judge import Judgement, errs, judge, worst_of
from hpm_robustbench.evaluation.kept_images import Keeper, check_repeated, kept_path
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan, Step
from hpm_robustbench.ledger.record import CLEAN, StepResult, Verdict
from hpm_robustbench.shapes import Images, Labels, Mask
from hpm_robustbench.surrogates.views import Cost, Subject, View, make_view
from hpm_robustbench.threat import Batching


@dataclass(frozen=True)
class Share:
    """Every ``of``-th shard, starting with number ``index``."""

    index: int
    of: int


WHOLE = Share(0, 1)
_FREE = Cost()
_NOBODY: Mapping[str, Labels] = MappingProxyType({})
_NOT_WRONG = -1
"""In place of a class that a row was misread as."""
Place: TypeAlias = Callable[[Journal, int, str], Path]
"""Where a file of images lies that a step leaves behind in a shard."""


def run(
    plan: Plan,
    subject: Subject,
    examples: ExampleSet,
    runs: Path,
    environment: dict[str, str],
    share: Share = WHOLE,
    *,
    keep_images: bool = False,
    lends: bool = False,
) -> None:
    """Carry out what of ``plan`` is not yet written; its journal holds the record once every shard is there.

    Args:
        plan: what to do; its run key names the folder under ``runs``.
        subject: the frozen classifier and base model, on the device to use.
        examples: the images that the plan's fingerprint names.
        runs: folder of all runs.
        environment: versions and device, written beside the results.
        share: which shards to do; the others are somebody else's.
        keep_images: whether to keep the adversarial images; a step whose images are not there is done again.
        lends: whether to keep one image of each broken row, for another target to be shown; likewise.

    Raises:
        InvalidInput: the model changed its own weights while it was attacked.
        IntegrityError: a step that was done again for its images came to other verdicts; what was written stays.
        StorageProblem: a result could not be written; everything before it is kept.
    """
    journal = Journal(runs, plan).open(environment)
    shards = list(enumerate(plan.shards()))[share.index :: share.of]
    title = f"{plan.model} {plan.target} {plan.batching.value} {plan.threat}"
    with Progress(title, total=len(shards) * len(journal.step_names)) as progress:
        for index, rows in shards:
            shard = _Shard(plan, subject, examples, index, rows)
            shard.run(journal, progress, keep_images=keep_images, lends=lends)


class _Shard:
    """One shard's cascade: the clean images, then each step on the rows that are still worth attacking."""

    def __init__(self, plan: Plan, subject: Subject, examples: ExampleSet, index: int, rows: Sequence[int]) -> None:
        self.plan, self.subject, self.examples, self.index, self.rows = plan, subject, examples, index, tuple(rows)
        device = subject.device
        chosen = examples.take(self.rows)
        self.x: Images = chosen.images.to(device)
        self.y: Labels = chosen.labels.to(device)
        self.standing = torch.ones_like(self.y, dtype=torch.bool)

    def run(self, journal: Journal, progress: Progress, *, keep_images: bool, lends: bool) -> None:
        wanted = self._wanted_images(journal, keep_images=keep_images, lends=lends)
        for name, step in [(CLEAN, None), *((step.name, step) for step in self.plan.steps)]:
            progress.begin(f"shard {self.index + 1}, {name}")
            written = result = journal.read(self.index, name)
            self.kept = {path(journal, self.index, name): whole for path, whole in wanted}
            if result is None or (self._breaks(result) and not all(path.exists() for path in self.kept)):
                result = self._clean() if step is None else self._attack(step, progress)
                check_unchanged(self.plan, self.subject, self.examples)
                if written is not None:
                    check_repeated(written, result, journal.path(self.index, name))
                if self._breaks(result):
                    for path, keeper in zip(self.kept, self.keepers, strict=True):
                        keeper.write(path)
                if written is None:
                    journal.write(self.index, result)
            self._take_in(result)
            progress.finish(100 * self.standing.float().mean().item())

    def _wanted_images(self, journal: Journal, *, keep_images: bool, lends: bool) -> list[tuple[Place, bool]]:
        """Where the images go by which a step breaks rows, and whether with them the batches that they were part of."""
        asked_for: list[tuple[Place, bool]] = [(kept_path, self.plan.coupled)] if keep_images else []
        return asked_for + ([(broken_path, False)] if journal.awaits_aggregates or lends else [])

    def _breaks(self, result: StepResult) -> bool:
        """Whether a row that stood until now is broken."""
        verdict = torch.tensor(result.verdict, device=self.y.device)
        return bool((self.standing & (verdict == Verdict.BROKEN)).any())

    def _take_in(self, result: StepResult) -> None:
        """Rows that no step has broken still stand."""
        verdict = torch.tensor(result.verdict, device=self.y.device)
        self.standing &= (verdict == Verdict.STANDING) | (verdict == Verdict.INVALID)

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
        return self._result(CLEAN, verdict, predicted, nothing, cost=Cost(forward=len(self.x)))

    def _attack(self, step: Step, progress: Progress) -> StepResult:
        """Attack what stands; a batch of a coupled target is submitted and judged whole, since every mate counts.

        The standing rows are to be won. On a coupled view their mates may move for them; on another they stay clean.
        """
        active = self._with_mates() if self.plan.coupled else self.standing
        if not active.any():
            return self._nothing_left(step)
        view = make_view(step.view, self.subject, self.x)
        view.on_call = progress.tick
        judged, fooled, misread = self._submit(step, view, active)
        return self._result(
            step.name,
            verdict=self._scatter(judged.verdict, active, Verdict.SKIPPED),
            predicted=self._scatter(judged.predicted, active, -1),
            distance=self._scatter(judged.distance, active, -1),
            fooled=None if step.view == self.plan.target else self._scatter(fooled, active, False),
            together=self._scatter(judged.together, active, Verdict.SKIPPED) if self.plan.coupled else None,
            misread={name: self._scatter(labels, active, _NOT_WRONG) for name, labels in misread.items()},
            cost=view.cost,
            flags=judged.flags,
        )

    def _with_mates(self) -> Mask:
        """Every row of the batches in which some row stands."""
        mates = torch.zeros_like(self.standing)
        for batch in self._batches(len(mates)):
            mates[batch] = self.standing[batch].any()
        return mates

    def _submit(self, step: Step, view: View, active: Mask) -> tuple[Judgement, Tensor, dict[str, Tensor]]:
        """Judge everything that the attack proposes for the active rows.

        Returns:
            The judgement; where the view itself was fooled; and as what each bystander misread an image.
        """
        x, y, batches = self.x[active], self.y[active], self._batches(int(active.sum()))
        rows = torch.tensor(self.rows, device=self.y.device)[active]
        self.keepers = [Keeper(rows, batches, coupled=whole) for whole in self.kept.values()]
        judgements, fooled = [], torch.zeros_like(y, dtype=torch.bool)
        plan, bystanders = self.plan, self._bystanders()
        misread = {name: torch.full_like(y, _NOT_WRONG) for name in bystanders}
        question = self.x, self.y, self.standing, plan.threat, plan.seed_of(step), plan.batch_size
        for answer in run_attack(step, view, *question):
            x_adv = answer[active]
            judged = judge(self.subject.target_logits, x, x_adv, y, plan.threat, batches)
            judgements.append(_of_victims(judged, (x_adv != x).flatten(1).any(dim=1), step))
            for name, model in bystanders.items():
                found = _misread_by(model, x_adv, y, judged, batches)
                misread[name] = torch.where(misread[name] == _NOT_WRONG, found, misread[name])
            for keeper in self.keepers:
                keeper.add(x_adv, (judgements[-1].verdict == Verdict.BROKEN) & self.standing[active])
            if step.view != plan.target:
                with torch.no_grad():
                    fooled |= errs(torch.cat([view(x_adv[batch]) for batch in batches]), y)
        return reduce(partial(worst_of, batches=batches), judgements), fooled, misread

    def _bystanders(self) -> dict[str, nn.Module]:
        """Who is shown what is made for HPM: the base model, and HPM SOLO what is made for other batchings.

        By the column that its answers go to.
        """
        if self.plan.target != "hpm":
            return {}
        bystanders: dict[str, nn.Module] = {"base_predicted": self.subject.base}
        if self.plan.batching is not Batching.SOLO:
            bystanders["solo_predicted"] = self.subject.classifier.with_batching(Batching.SOLO)
        return bystanders

    def _scatter(self, values: Tensor, active: Mask, elsewhere: int) -> Tensor:
        """Values of the active rows as values of all rows."""
        everywhere = torch.full_like(self.y, elsewhere, dtype=values.dtype)
        everywhere[active] = values
        return everywhere

    def _nothing_left(self, step: Step) -> StepResult:
        skipped = torch.full_like(self.y, Verdict.SKIPPED)
        return self._result(step.name, skipped, skipped, skipped.double())

    def _result(
        self,
        name: str,
        verdict: Tensor,
        predicted: Tensor,
        distance: Tensor,
        *,
        fooled: Tensor | None = None,
        together: Tensor | None = None,
        misread: Mapping[str, Labels] = _NOBODY,
        cost: Cost = _FREE,
        flags: tuple[str, ...] = (),
    ) -> StepResult:
        judged = (verdict != Verdict.SKIPPED).tolist()

        def where_judged(values: Tensor) -> tuple[Any, ...]:
            return tuple(value if seen else None for value, seen in zip(values.tolist(), judged, strict=True))

        return StepResult(
            name=name,
            rows=self.rows,
            verdict=tuple(verdict.tolist()),
            predicted=where_judged(predicted),
            distance=where_judged(distance),
            fooled=() if fooled is None else where_judged(fooled),
            together=() if together is None else tuple(together.tolist()),
            **{name: _classes(labels) for name, labels in misread.items()},
            forward=cost.forward,
            backward=cost.backward,
            flags=flags,
        )


def _misread_by(model: nn.Module, x_adv: Images, y: Labels, judged: Judgement, batches: Sequence[slice]) -> Labels:
    """What a model takes the legal images for, where it is wrong."""
    with torch.no_grad():
        logits = torch.cat([model(x_adv[batch]) for batch in batches])
    wrong = errs(logits, y) & (judged.verdict != Verdict.INVALID)
    return torch.where(wrong, logits.argmax(dim=1), _NOT_WRONG)


def _classes(predicted: Labels) -> tuple[int | None, ...]:
    return tuple(None if label == _NOT_WRONG else label for label in predicted.tolist())


def _of_victims(judged: Judgement, moved: Mask, step: Step) -> Judgement:
    """Only what the threat allows: a row falls beside clean mates if it moved itself, by its mates if it did not."""
    move = step.parameters.get("move", find_attack(step.attack).move)
    if move == ALL:
        return judged
    beside_the_point = (judged.verdict == Verdict.BROKEN) & (moved if move == MATES else ~moved)
    verdict = judged.verdict.masked_fill(beside_the_point, Verdict.STANDING)
    return judged._replace(verdict=verdict, together=verdict)
