"""A card's ``hpm_bench`` block on a corruption track: what a model gets right on corrupted images, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field, model_validator

from hpm_robustbench.ledger.card_batches import Batched
from hpm_robustbench.ledger.card_bench import Bench
from hpm_robustbench.ledger.card_block import Block, Count, Name, Percent, PercentText, Target
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.threat import Batching, Corruptions

RightBySeverity = Annotated[list[Count], Field(min_length=5, max_length=5)]
"""Images that are classified correctly at severity 1, 2, 3, 4 and 5."""


class CorruptionEvaluation(Batched):
    """One finished run on corrupted images: which target answered in which batches, and what it got right.

    ``right`` counts images per corruption and severity; ``corruptions_acc`` is, as in RobustBench, the mean of the
    accuracies of all of them, each over the same ``n`` images. ``fingerprint`` covers the clean and all corrupted
    images.
    """

    run_key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    target: Target
    dataset: Name
    split: str
    fingerprint: str
    state_sha256: str
    seed: int
    software: dict[str, str]
    environment: dict[str, str]
    clean: Metric
    corruptions_acc: Percent
    right: dict[str, RightBySeverity]
    flags: list[str]

    @property
    def text(self) -> str:
        """``corruptions_acc`` as RobustBench writes it."""
        return f"{self.corruptions_acc:.2f}"

    @property
    def all_flags(self) -> list[str]:
        """Every warning."""
        return self.flags

    @property
    def trial(self) -> tuple[object, ...]:
        """What tells this evaluation from others of the same model."""
        return self.target, self.batching, self.batch_size, self.composition, self.seed, None, self.fingerprint

    def percent(self, kind: str, severity: int | None = None) -> float:
        """Accuracy under one corruption, in percent: at one severity, or the mean of all."""
        counts = self.right[kind] if severity is None else self.right[kind][severity - 1 : severity]
        return 100 * sum(counts) / (len(counts) * self.n)

    @model_validator(mode="after")
    def _adds_up(self) -> CorruptionEvaluation:
        if set(self.right) != set(Corruptions.kinds):
            raise ValueError(f"right is not of the {len(Corruptions.kinds)} corruptions that RobustBench averages over")
        if self.clean.n != self.n or any(count > self.n for counts in self.right.values() for count in counts):
            raise ValueError(f"a count is of other than the {self.n} images of the evaluation")
        if not math.isclose(self.corruptions_acc, mean_accuracy(self.right, self.n), abs_tol=0.01):
            raise ValueError("corruptions_acc does not follow from right")
        return self


def mean_accuracy(right: Mapping[str, Sequence[int]], n: int) -> float:
    """Mean accuracy in percent over corruptions and severities, each of ``n`` images."""
    counts = [count for row in right.values() for count in row]
    return 100 * sum(counts) / (len(counts) * n)


class PublishedCorruptions(Block):
    """Figures that others published for the base model, in percent; None where nobody did."""

    clean_acc: PercentText | None
    corruptions_acc: PercentText | None
    corruptions_mce: PercentText | None
    reported: PercentText | None


class CorruptionBench(Bench):
    """Everything RobustBench's format has no key for, on a corruption track."""

    published: PublishedCorruptions
    evaluations: Annotated[list[CorruptionEvaluation], Field(min_length=1)]

    def evaluation(self, target: Target, batching: Batching) -> CorruptionEvaluation | None:
        """The evaluation of a target in a batching, if there is one."""
        return next((e for e in self.evaluations if (e.target, e.batching) == (target, batching)), None)

    @property
    def threat_name(self) -> str:
        """RobustBench's name of the threat model."""
        return Corruptions.name

    @property
    def headline(self) -> CorruptionEvaluation:
        """HPM SOLO; every card has it."""
        solo = self.evaluation("hpm", Batching.SOLO)
        assert solo is not None
        return solo

    @model_validator(mode="after")
    def _evaluations_belong_together(self) -> CorruptionBench:
        if len({(e.target, e.batching) for e in self.evaluations}) != len(self.evaluations):
            raise ValueError("two evaluations of one target in one batching")
        if len({(e.dataset, e.split, e.fingerprint, e.n, e.seed) for e in self.evaluations}) != 1:
            raise ValueError("evaluations of one card share dataset, split, fingerprint, n and seed")
        if self.evaluation("hpm", Batching.SOLO) is None:
            raise ValueError("no SOLO evaluation of HPM, the headline of a card")
        return self
