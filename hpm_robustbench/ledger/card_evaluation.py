"""One evaluation in a model card: metrics, threat model and steps, which check themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from hpm_robustbench.ledger import doubts
from hpm_robustbench.ledger.aggregates import Aggregates
from hpm_robustbench.ledger.card_batches import Batched
from hpm_robustbench.ledger.card_block import DOUBT, Block, Count, EpsText, Images, Name, Percent, Target
from hpm_robustbench.ledger.diagnostics import Diagnostics
from hpm_robustbench.ledger.indicators import Indicator, indicators, of_black_boxes, of_transfers
from hpm_robustbench.ledger.plan import AUTOATTACK, BLACK_BOXES, COMPONENTS, MSA, STANDARD, Step
from hpm_robustbench.ledger.provenance import Provenance, fates
from hpm_robustbench.ledger.record import CLEAN
from hpm_robustbench.ledger.statistics import proportion
from hpm_robustbench.ledger.transfers import TRANSFER
from hpm_robustbench.threat import Batching, Norm


class Metric(Block):
    """``count`` of ``n`` images in percent with the 95 % Wilson interval, rounded to two decimals."""

    value: Percent
    count: Count
    n: Images
    low: Percent
    high: Percent

    @classmethod
    def of(cls, rows: Sequence[bool]) -> Metric:
        """Count the rows that are true."""
        return cls.from_count(sum(rows), len(rows))

    @classmethod
    def from_count(cls, count: int, n: int) -> Metric:
        """The metric that ``count`` of ``n`` amounts to."""
        share = proportion(count, n)
        low, high = round(share.low, 2), round(share.high, 2)
        return cls(value=round(share.percent, 2), count=count, n=n, low=low, high=high)

    @property
    def text(self) -> str:
        """The percentage as RobustBench writes it."""
        return f"{self.value:.2f}"

    @model_validator(mode="after")
    def _follows_from_the_count(self) -> Metric:
        if self.count > self.n:
            raise ValueError(f"count {self.count} is above n {self.n}")
        share = proportion(self.count, self.n)
        written, computed = (self.value, self.low, self.high), (share.percent, share.low, share.high)
        if not all(math.isclose(w, c, abs_tol=0.01) for w, c in zip(written, computed, strict=True)):
            raise ValueError(f"{self.value} ({self.low} to {self.high}) does not follow from {self.count} of {self.n}")
        return self


class Threat(Block):
    """The Lp ball: eps as a person wrote it, as an exact fraction, and as the number attacks compute with."""

    norm: Norm
    eps: EpsText
    eps_exact: EpsText
    eps_float: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _one_number(self) -> Threat:
        try:
            written, exact = Fraction(self.eps), Fraction(self.eps_exact)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"eps {self.eps!r} or eps_exact {self.eps_exact!r} is no number") from error
        if written != exact or float(exact) != self.eps_float:
            raise ValueError(f"eps {self.eps}, eps_exact {self.eps_exact} and eps_float {self.eps_float} differ")
        return self


class StepSummary(Block):
    """One attack on one view: what it met, what it broke, and what stood after it and every step before it.

    ``fooled`` of the attempted images had the surrogate itself wrong; how many of these are not ``broken`` is how
    often the attack failed to transfer. It is None where the view is the target, and was not counted before cards
    told of it.
    ``forward`` and ``backward`` are images sent through the network by this step per image of the evaluation.
    """

    name: str
    view: str
    attack: str
    group: str
    parameters: dict[str, int | float | str]
    attempted: Count
    fooled: Count | None = None
    broken: Count
    invalid: Count
    robust: Metric
    forward: Annotated[float, Field(ge=0)]
    backward: Annotated[float, Field(ge=0)]
    flags: list[str]

    @property
    def black_box(self) -> bool:
        """Whether it attacked without gradients."""
        return self.attack in BLACK_BOXES

    @property
    def doubts(self) -> list[str]:
        """The flags that its own counts raise."""
        of_autoattack = self.group == AUTOATTACK
        return doubts.of_step(self.attack, self.broken, self.invalid, self.robust.n, of_autoattack=of_autoattack)

    @model_validator(mode="after")
    def _within_the_attempted(self) -> StepSummary:
        most = max(self.broken + self.invalid, self.fooled or 0)
        if most > self.attempted or self.attempted > self.robust.n:
            raise ValueError(f"{self.broken} broken and {self.invalid} invalid of {self.attempted} attempted images")
        return self


class Evaluation(Batched):
    """One finished run: which target answered in which batches, who attacked it, and what stood.

    ``robust`` is sample-worst over all steps; ``autoattack`` over the steps of standard AutoAttack alone;
    ``batch_worst`` lets each batch meet only the one submission that hurts it most. ``flags`` were raised about the
    whole run, those of a step stand with it. ``diagnostics`` tell how far the attacks can be trusted; what they raise
    is among the flags. ``aggregates`` tell what images of JOINT do in other submissions.
    ``provenance`` tells which row fell to which step, and as which class; cards from before it was told have none.
    """

    run_key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    target: Target
    threat: Threat
    dataset: Name
    split: str
    fingerprint: str
    state_sha256: str
    protocol: str
    seed: int
    software: dict[str, str]
    environment: dict[str, str]
    clean: Metric
    autoattack: Metric | None
    robust: Metric
    batch_worst: Metric | None
    flags: list[str]
    steps: list[StepSummary]
    diagnostics: Diagnostics | None = None
    aggregates: Aggregates | None = None
    provenance: Provenance | None = None

    @property
    def trial(self) -> tuple[object, ...]:
        """What tells this evaluation from others of the same model."""
        budget, images = self.threat.eps_exact, self.fingerprint
        return self.target, self.batching, self.batch_size, self.composition, self.seed, budget, images

    @property
    def composite(self) -> Metric | None:
        """What is right in the composite, where there is one."""
        return Metric.from_count(self.aggregates.composite, self.n) if self.aggregates else None

    @property
    def spreads(self) -> dict[str, str]:
        """Least and greatest accuracy in other batches, in percent: of clean images, and of those of the composite."""
        if self.aggregates is None:
            return {}
        ends = {"clean": self.aggregates.clean, "composite": self.aggregates.regrouped}
        told = {name: pair for name, pair in ends.items() if pair}
        return {name: " to ".join(Metric.from_count(end, self.n).text for end in pair) for name, pair in told.items()}

    @property
    def passes(self) -> float:
        """Forward and backward passes of all steps, per image."""
        return sum(step.forward + step.backward for step in self.steps)

    def passes_of(self, group: str) -> float:
        """Those of the steps of a group."""
        return sum(step.forward + step.backward for step in self.steps if step.group == group)

    @property
    def _own(self) -> list[StepSummary]:
        """The steps without what was made for others."""
        return [step for step in self.steps if step.attack != TRANSFER]

    @property
    def indicators(self) -> list[Indicator]:
        """Indicators of attack failure, where they were measured; at the end, what the steps themselves show."""
        if self.diagnostics is None:
            return []
        without_gradients = [(step.name, step.broken) for step in self.steps if step.black_box]
        transferred = [(step.fooled, step.broken) for step in self.steps if step.fooled is not None]
        direct = any(step.view == self.target for step in self.steps)
        of_steps = [of_transfers(transferred, direct=direct), of_black_boxes(without_gradients, self.n)]
        return [*self._measured, *of_steps]

    @property
    def _measured(self) -> list[Indicator]:
        if self.diagnostics is None:
            return []
        coupled = self.target == "hpm" and not self.batching.row_independent
        return indicators(self.diagnostics, coupled=coupled, autoattack=self.autoattack is not None)

    @property
    def fallen(self) -> set[int] | None:
        """Rows that some step has wrong, the clean one included, where the card tells of rows."""
        return None if self.provenance is None else {*fates(self.provenance)}

    @property
    def highest_class(self) -> int:
        """The highest class that a fallen row was taken for, where the card tells of rows."""
        return max((taken_for for _, taken_for in fates(self.provenance or {}).values()), default=0)

    @property
    def all_flags(self) -> list[str]:
        """Every warning, with the step that raised it."""
        return [*self.flags, *(f"{step.name}: {flag}" for step in self.steps for flag in step.flags)]

    @property
    def autoattack_flagged(self) -> bool:
        """Whether a warning says that AutoAttack's number may be wrong."""
        of_steps = (flag for step in self.steps if step.group == AUTOATTACK for flag in step.flags)
        return any(flag.startswith(DOUBT) for flag in (*self.flags, *of_steps))

    @model_validator(mode="after")
    def _adds_up(self) -> Evaluation:
        cascade = [self.clean, *(step.robust for step in self.steps)]
        metrics = [*cascade, self.robust, *(m for m in (self.autoattack, self.batch_worst) if m)]
        if any(metric.n != self.n for metric in metrics):
            raise ValueError(f"a metric counts other than the {self.n} images of the evaluation")
        if any(later.count > earlier.count for earlier, later in pairwise(cascade)):
            raise ValueError("more images stand after a step than before it")
        if self.robust != cascade[-1]:
            raise ValueError("robust is not what stands after the last step")
        by_composite = self.aggregates.composite_alone if self.aggregates else 0  # batch-worst counts it, no other does
        least = [self.robust.count - (by_composite if m is self.batch_worst else 0) for m in metrics]
        if any(not low <= m.count <= self.clean.count for low, m in zip(least, metrics, strict=True)):
            raise ValueError("a metric lies outside what stands after all steps and what is right on clean images")
        if (self.batching is Batching.JOINT) != (self.batch_worst is not None):
            raise ValueError("batch_worst belongs to JOINT evaluations, and only to them")
        if self.largest_batch == 1 and self.batch_worst != self.robust:
            raise ValueError("batch_worst is other than robust, though each batch is of one image")
        met_msa = any(step.group == MSA for step in self._own)  # as a base model did not, before MSA had steps for one
        if self.protocol != (MSA if self.target == "hpm" or met_msa else STANDARD):
            raise ValueError(f"the protocol of {self.target} is other than that of every card")
        met = zip(cascade[:-1], self.steps, strict=True)
        # Before there was provenance, a step of JOINT counted rows anew that had fallen before it.
        counted_once = self.batching.row_independent or self.provenance is not None
        if counted_once and any(
            (step.attempted, step.broken) != (before.count, before.count - step.robust.count) for before, step in met
        ):
            raise ValueError("a step met other images than stood before it, or broke others than fell to it")
        if any(indicator.flag not in (None, *self.flags) for indicator in self._measured):
            raise ValueError("diagnostics raise a flag that is not among the flags")
        return self

    @model_validator(mode="after")
    def _autoattack_comes_first(self) -> Evaluation:
        counted = [step for step in self.steps if step.group == AUTOATTACK]
        first = [Step(step.view, step.attack, step.group, step.parameters) for step in self.steps[: len(counted)]]
        standard = [Step(self.target, attack, AUTOATTACK) for attack in COMPONENTS]
        if counted and (first != standard or not self.batching.row_independent):
            raise ValueError("AutoAttack is its four attacks on the target itself, before all others, each row alone")
        if self.autoattack != (counted[-1].robust if counted else None):
            raise ValueError("autoattack is not what stands after the steps of AutoAttack")
        return self

    @model_validator(mode="after")
    def _flags_follow(self) -> Evaluation:
        standing = [self.clean.count, *(step.robust.count for step in self._own)]
        autoattack = self.autoattack.count if self.autoattack else None
        groups = [step.group for step in self._own]
        if not set(doubts.of_run(groups, standing, self.robust.count, autoattack, self.n)) <= set(self.flags):
            raise ValueError("the counts of the steps raise a flag that is not among the flags")
        if any(not self._asked_of(step) <= set(step.flags) for step in self.steps):
            raise ValueError("the counts of a step raise a flag that is not among its flags")
        return self

    def _asked_of(self, step: StepSummary) -> set[str]:
        """Flags without which a step is refused; before there was provenance, only AutoAttack's steps had any."""
        return set(step.doubts) if self.provenance is not None or step.group == AUTOATTACK else set()

    @model_validator(mode="after")
    def _aggregates_fit(self) -> Evaluation:
        found = self.aggregates
        if found is None:
            return self
        if self.batching is not Batching.JOINT:
            raise ValueError("aggregates belong to JOINT evaluations, and only to them")
        if max(found.composite_by_batch or [0]) > self.batch_size:
            raise ValueError(f"a batch of the composite counts more than {self.batch_size} images")
        if max((found.composite, *(found.clean or ()), *(found.regrouped or ()))) > self.n:
            raise ValueError(f"aggregates count more than the {self.n} images of the evaluation")
        if found.composite_alone > min(self.robust.count, self.n - found.composite):
            raise ValueError("the composite broke more images than stood, or than are wrong in it")
        if found.composite_by_batch and self.batch_worst and self.batch_worst.count > found.composite:
            raise ValueError("batch_worst is above what stands in the composite, which is a submission as well")
        if found.flag not in (None, *self.flags):
            raise ValueError("aggregates raise a flag that is not among the flags")
        return self

    @model_validator(mode="after")
    def _every_row_has_one_fate(self) -> Evaluation:
        if self.provenance is None:
            return self
        found = fates(self.provenance)
        told = Counter(step for step, _ in found.values())
        counted = Counter({CLEAN: self.n - self.clean.count}) + Counter({s.name: s.broken for s in self.steps})
        if told != counted or max(found, default=0) >= self.n:
            raise ValueError("the rows that fell are not as many as each step broke, or not among the images")
        return self
