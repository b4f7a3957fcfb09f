"""What a card tells of a fine-tuning: the points of its curves, and what a reader of its numbers should know."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpm_robustbench.ledger.card_block import Block, Count, Sha256

Word = Annotated[str, Field(pattern=r"^[ -~]{1,80}$")]
"""Text that is printable wherever a card is shown, and short."""
Share = Annotated[float, Field(ge=0, le=1)]


class Point(Block):
    """Where training stands after an epoch; epoch 0 is the classifier before it.

    ``loss`` is the mean over the epoch's batches. ``clean`` and ``robust`` are shares of the held-out images, each
    answered alone; ``robust`` is under PGD of 10 steps: an upper bound of what the trial will find, and a loose one
    where the gradient is HPM's straight-through one, which C1, C2 and C4 do not have. On features that are computed
    once it is measured first and last only. ``unsupported`` are classes into which the FC head put no
    training image in the whole epoch, so that they had no batch prototype.
    """

    epoch: Count
    loss: float | None = None
    clean: Share | None = None
    robust: Share | None = None
    unsupported: list[Count] = Field(default_factory=list)


class Made(Block):
    """What was learned from, and on what kind of machine.

    Attributes:
        split: which images.
        fingerprint: of all of them, and of their labels.
        trained_on: how many were learned from.
        held_out: how many only measured.
        precision: of the network's passes, whatever the recipe asked for.
        device: its kind.
        at_once: images that were let through the network together, at most, in the end.
        compiled: whether torch.compile had rewritten the backbone.
        folded: whether attacks went through a network whose normalisation layers are part of its convolutions.
        threads: of torch on a CPU.
        versions: of what computed it.
    """

    split: Word
    fingerprint: Sha256
    trained_on: Count
    held_out: Count
    precision: Word
    device: Word
    at_once: Count
    compiled: bool
    folded: bool
    threads: Count
    versions: dict[Word, Word]


class FineTuning(Block):
    """How a fine-tuning went, by epoch, and in sentences what it lost: clean accuracy, classes without support.

    ``made`` says what was learned from, where that is known.
    """

    curves: Annotated[list[Point], Field(min_length=1)]
    reports: list[str]
    made: Made | None = None
