"""Which images of an evaluation were answered together, under attack or not."""

from __future__ import annotations

from math import floor
from typing import Annotated

from pydantic import Field, model_validator

from hpm_robustbench.ledger.card_block import Block, Images
from hpm_robustbench.threat import Batching, Composition

_ROUNDED = 0.000051
"""How far B/C may be off, which is told with four decimals; and a hair, for it is no decimal in a computer."""


class Batched(Block):
    """What every evaluation says of its batches.

    ``batch_size`` is as it was asked for; where there are fewer images, JOINT has them all in one smaller batch.
    ``composition`` says which images meet in a batch of JOINT. ``batch_per_class`` is B/C, the mean number of images of
    one class in the largest batch; a batch of a single class has none.
    """

    batching: Batching
    batch_size: Images
    batch_per_class: Annotated[float, Field(gt=0)] | None
    shard_size: Images
    n: Images
    composition: Composition = Composition.IID

    @property
    def largest_batch(self) -> int | None:
        """How many images at most JOINT answered together; None where each image is answered alone."""
        return min(self.batch_size, self.n) if self.batching is Batching.JOINT else None

    @property
    def most_classes(self) -> int | None:
        """Of how many classes at most the images are, as far as B/C tells; None where there is none."""
        if self.batch_per_class is None or self.largest_batch is None:
            return None
        return floor(self.largest_batch / max(self.batch_per_class - _ROUNDED, _ROUNDED))

    @model_validator(mode="after")
    def _only_joint_has_batches(self) -> Batched:
        joint = self.batching is Batching.JOINT
        if self.composition is not Composition.IID and not joint:
            raise ValueError("only the batches of JOINT are composed")
        mixed = joint and self.composition is not Composition.SINGLE_CLASS
        if mixed != (self.batch_per_class is not None):
            raise ValueError("batch_per_class belongs to JOINT batches of several classes, and only to them")
        if self.batch_per_class is not None and not self._has_whole_classes(self.batch_per_class):
            raise ValueError("batch_per_class is not the size of the largest batch over a number of classes")
        if self.shard_size % self.batch_size:
            raise ValueError("shard_size is no whole number of batches")
        return self

    def _has_whole_classes(self, batch_per_class: float) -> bool:
        classes = self.most_classes or 0
        return classes > 1 and abs(min(self.batch_size, self.n) / classes - batch_per_class) <= _ROUNDED
