"""The few images on which indicators of attack failure are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.surrogates.views import Subject, View, make_view
from hpm_robustbench.threat import ThreatModel

ROWS = 64
"""Images looked at where each is answered for itself; a batch-coupled target is asked one whole batch."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Images, labels, and the target as an attacker with full knowledge sees it.

    ``counted`` marks the rows that are right without an attack; of a coupled target, the others are batch mates.
    ``batch_size`` rows are computed, and by a coupled target answered, together.
    """

    view: View
    x: Images
    y: Labels
    counted: Mask
    threat: ThreatModel
    seed: int
    batch_size: int

    @property
    def n(self) -> int:
        """Rows that count."""
        return int(self.counted.sum())

    def count(self, rows: Mask) -> int:
        """How many of ``rows`` count."""
        return int((rows & self.counted).sum())

    def batches(self) -> Iterator[Sample]:
        """The sample in batches, each a sample of its own."""
        for rows in torch.split(torch.arange(len(self.x), device=self.x.device), self.batch_size):
            yield Sample(
                self.view, self.x[rows], self.y[rows], self.counted[rows], self.threat, self.seed, self.batch_size
            )

    def margin(self, x: Images) -> Losses:
        """Best other logit minus the true one; its gradient is zero, not missing, where the target gives none."""
        return margin(self.view(x), self.y) + 0 * x.flatten(1).sum(dim=1)


def wrong(margins: Losses) -> Mask:
    """Rows whose label is not the true one; NaN is wrong, a tie is not."""
    return ~(margins <= 0)


def draw_sample(record: RunRecord, subject: Subject, examples: ExampleSet, tick: Callable[[], None]) -> Sample | None:
    """The first images that are right without an attack, or the first whole batch of a coupled target.

    Args:
        record: a finished run.
        subject: what stood trial in it.
        examples: its images.
        tick: called each time the target is.

    Returns:
        None if none of them is right.
    """
    plan, right = record.plan, record.clean_correct
    assert isinstance(plan.threat, ThreatModel)
    own = [row for row, ok in enumerate(right) if ok][:ROWS]
    rows = plan.shards()[0][: plan.batch_size] if plan.coupled else own
    counted = torch.tensor([right[row] for row in rows], dtype=torch.bool, device=subject.device)
    if not counted.any():
        return None
    view = make_view(plan.target, subject)
    view.on_call = tick
    chosen = examples.take(rows)
    x, y = chosen.images.to(subject.device), chosen.labels.to(subject.device)
    return Sample(view, x, y, counted, plan.threat, plan.seed, plan.batch_size)
