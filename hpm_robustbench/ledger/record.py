"""What came out: one verdict per step and row, and the counts that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from hpm_robustbench.ledger.aggregates import Aggregates
from hpm_robustbench.ledger.diagnostics import Diagnostics
from hpm_robustbench.ledger.plan import AUTOATTACK, BasePlan

CLEAN = "clean"
"""Name of the step before all attacks: the images as they are."""


class Verdict(IntEnum):
    """What the judge says of one row after one step."""

    CLEAN_WRONG = 0
    """Misclassified without any attack: the verdict of the clean step alone."""
    STANDING = 1
    """Attacked or corrupted, and classified correctly."""
    BROKEN = 2
    """Misclassified by the true target under a valid perturbation, or under a corruption."""
    INVALID = 3
    """The attack returned something outside the box or the budget, or not finite; it does not count."""
    SKIPPED = 4
    """Not attacked by this step: an earlier one had already won it, or its whole batch."""


@dataclass(frozen=True)
class StepResult:
    """What one step did to the rows of one shard, or of a whole run, in the order of ``rows``.

    ``predicted`` is the true target's label for the judged image; ``distance`` the size of the perturbation in the
    threat model's norm; both are None where nothing was judged. ``fooled`` says whether the attacked surrogate itself
    was wrong on some image that was submitted. ``together`` is, for a coupled target, the verdict in the one
    submission that leaves the fewest rows of the batch right; empty where it is ``verdict``. ``base_predicted`` is
    what the base model took some submitted image of the row for, where that is wrong, although the image was made for
    HPM; empty where HPM was not attacked. ``solo_predicted`` is the same of HPM SOLO; empty where no HPM in
    another batching was attacked. ``forward`` and ``backward`` count images.
    """

    name: str
    rows: tuple[int, ...]
    verdict: tuple[int, ...]
    predicted: tuple[int | None, ...]
    distance: tuple[float | None, ...]
    forward: int = 0
    backward: int = 0
    flags: tuple[str, ...] = ()
    fooled: tuple[bool | None, ...] = ()
    together: tuple[int, ...] = ()
    base_predicted: tuple[int | None, ...] = ()
    solo_predicted: tuple[int | None, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepResult:
        """Rebuild from JSON values, where tuples have become lists."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**fields)

    def fooled_among(self, rows: Sequence[bool]) -> int | None:
        """How many of these rows had the surrogate wrong; None where nobody asked it, as it is the target."""
        if not self.fooled:
            return None
        return sum(bool(fooled) and counts for fooled, counts in zip(self.fooled, rows, strict=True))


@dataclass(frozen=True)
class RunRecord:
    """A finished plan: per-step verdicts over all rows, in dataset order, and where they were computed.

    ``diagnostics`` tell whether its attacks can be trusted, ``aggregates`` what its images do in other submissions,
    and ``lent`` what images of the base model do to it, each where that was measured. ``run_key`` names the journal,
    also where steps were added that are none of its own.
    """

    plan: BasePlan
    steps: tuple[StepResult, ...]
    environment: Mapping[str, str]
    diagnostics: Diagnostics | None = None
    aggregates: Aggregates | None = None
    lent: StepResult | None = None
    run_key: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_key", self.run_key or self.plan.run_key)

    def __getitem__(self, name: str) -> StepResult:
        return next(step for step in self.steps if step.name == name)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.plan.examples.n

    @property
    def passes(self) -> int:
        """Images sent forward and backward through the network, by all steps."""
        return sum(step.forward + step.backward for step in self.steps)

    @property
    def clean_correct(self) -> list[bool]:
        """Per row: right without any attack."""
        return [verdict != Verdict.CLEAN_WRONG for verdict in self[CLEAN].verdict]

    def standing(self, group: str | None = None, upto: str | None = None) -> list[bool]:
        """Per row: right on clean input and unbroken by every step of ``group`` (all by default).

        This is the sample-worst rule: a row is lost as soon as one attack breaks it. ``upto`` ends after that step.
        """
        alive = self.clean_correct
        groups = {step.name: step.group for step in self.plan.steps}
        for step in self.steps:
            if step.name != CLEAN and (group is None or groups[step.name] == group):
                alive = [a and v != Verdict.BROKEN for a, v in zip(alive, step.verdict, strict=True)]
            if step.name == upto:
                break
        return alive

    @property
    def lost_to(self) -> list[str | None]:
        """Per row: the first step that had it wrong, be it the clean one; None where it still stands."""
        lost: list[str | None] = [None] * self.n
        for step in self.steps:
            for row, verdict in enumerate(step.verdict):
                if lost[row] is None and verdict in (Verdict.CLEAN_WRONG, Verdict.BROKEN):
                    lost[row] = step.name
        return lost

    @property
    def base_predicted(self) -> tuple[int | None, ...]:
        """Per row: what the base model wrongly took an image for that was made for HPM; empty if nobody asked it."""
        return self._misread("base_predicted")

    @property
    def solo_predicted(self) -> tuple[int | None, ...]:
        """Per row: what HPM SOLO wrongly took an image for that was made for another batching; empty if not asked."""
        return self._misread("solo_predicted")

    def _misread(self, column: str) -> tuple[int | None, ...]:
        asked = [answers for step in self.steps if (answers := getattr(step, column))]
        by_row = zip(*asked, strict=True)
        return tuple(next((label for label in labels if label is not None), None) for labels in by_row)

    @property
    def has_autoattack(self) -> bool:
        """Whether the plan holds standard AutoAttack on the target itself."""
        return any(step.group == AUTOATTACK for step in self.plan.steps)

    def batch_worst(self) -> int:
        """Rows standing when each batch meets only the one submission that hurts that batch most.

        Only a plan whose steps submit whole batches (JOINT) has this number. The composite, once it was judged, is a
        submission like those of the steps; but for what it alone breaks, the number is at least ``standing``.
        """
        position = {row: i for i, row in enumerate(self[CLEAN].rows)}
        batches = [[position[row] for row in rows] for rows in self.plan.batches()]
        composite = (self.aggregates and self.aggregates.composite_by_batch) or [len(batch) for batch in batches]
        return sum(
            min(in_composite, *(right for step in self.steps if (right := _right(step, batch)) is not None))
            for batch, in_composite in zip(batches, composite, strict=True)
        )


def _right(step: StepResult, batch: Sequence[int]) -> int | None:
    """How many rows of the batch are right in the step's worst submission; None if it submitted none of it."""
    verdict = [(step.together or step.verdict)[i] for i in batch]
    if all(one == Verdict.SKIPPED for one in verdict):
        return None
    return sum(one in (Verdict.STANDING, Verdict.INVALID) for one in verdict)


_COLUMNS = ("rows", "verdict", "predicted", "distance", "fooled", "together", "base_predicted", "solo_predicted")
_ASKED = frozenset({"fooled", "together", "base_predicted", "solo_predicted"})
"""Columns that a shard lacks where nothing was left to attack."""


def _column(shard: StepResult, name: str) -> tuple[Any, ...]:
    """One column of a shard; where nothing was left to attack, no surrogate was asked and nothing submitted."""
    column: tuple[Any, ...] = getattr(shard, name)
    if column or name not in _ASKED:
        return column
    return shard.verdict if name == "together" else (None,) * len(shard.rows)


def merge_shards(shards: Sequence[StepResult]) -> StepResult:
    """Put the results of one step over all shards together, in dataset order."""
    has = {name for name in _COLUMNS if any(getattr(shard, name) for shard in shards)}
    merged: dict[str, tuple[Any, ...]] = {name: sum((_column(s, name) for s in shards), ()) for name in has}
    order = sorted(range(len(merged["rows"])), key=merged["rows"].__getitem__)
    columns = {name: tuple(values[i] for i in order) for name, values in merged.items()}
    return StepResult(
        name=shards[0].name,
        **columns,
        forward=sum(shard.forward for shard in shards),
        backward=sum(shard.backward for shard in shards),
        flags=tuple(dict.fromkeys(flag for shard in shards for flag in shard.flags)),
    )
