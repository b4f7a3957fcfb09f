"""What a card tells of a fine-tuning: the points of its curves, and what a reader of its numbers should know."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpm_robustbench.ledger.card_block import Block, Count

Share = Annotated[float, Field(ge=0, le=1)]


class Point(Block):
    """Where training stands after an epoch; epoch 0 is the classifier before it.

    ``loss`` is the mean over the epoch's batches. ``clean`` and ``robust`` are shares of the held-out images, each
    answered alone; ``robust`` is under PGD of 10 steps, an upper bound of what the trial will find, and on features
    that are computed once it is measured first and last only. ``unsupported`` are classes into which the FC head put no
    training image in the whole epoch, so that they had no batch prototype.
    """

    epoch: Count
    loss: float | None = None
    clean: Share | None = None
    robust: Share | None = None
    unsupported: list[Count] = Field(default_factory=list)


class FineTuning(Block):
    """How a fine-tuning went, by epoch, and in sentences what it lost: clean accuracy, classes without support."""

    curves: Annotated[list[Point], Field(min_length=1)]
    reports: list[str]
