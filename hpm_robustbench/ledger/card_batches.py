"""Which images of an evaluation were answered together, under attack or not."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hpm_robustbench.ledger.card_block import Block, Images
from hpm_robustbench.threat import Batching, Composition


class Batched(Block):
    """What every evaluation says of its batches.

    ``batch_size`` is as it was asked for; where there are fewer images, JOINT has them all in one smaller batch.
    ``composition`` says which images meet in a batch of JOINT. ``batch_per_class`` is B/C, the mean number of images of
    one class in the largest batch; a batch of a single class has none.
    """

    batching: Batching
    batch_size: Images
    batch_per_class: Annotated[float, Field(gt=0)] | None
    n: Images
    composition: Composition = Composition.IID

    @property
    def largest_batch(self) -> int | None:
        """How many images at most JOINT answered together; None where each image is answered alone."""
        return min(self.batch_size, self.n) if self.batching is Batching.JOINT else None

    @model_validator(mode="after")
    def _only_joint_has_batches(self) -> Batched:
        joint = self.batching is Batching.JOINT
        if self.composition is not Composition.IID and not joint:
            raise ValueError("only the batches of JOINT are composed")
        mixed = joint and self.composition is not Composition.SINGLE_CLASS
        if mixed != (self.batch_per_class is not None):
            raise ValueError("batch_per_class belongs to JOINT batches of several classes, and only to them")
        return self
