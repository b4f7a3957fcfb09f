"""What a JOINT trial adds up to beyond single submissions: its images put together, and in other batches."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import model_validator

from hpm_robustbench.ledger.card_block import Block, Count


class Regrouping(Block):
    """Images that are right in batches drawn anew: the clean ones, and those of the composite."""

    clean: Count
    composite: Count


class Aggregates(Block):
    """Counts among all images, of which the composite shows each broken one as it was first broken, the others clean.

    Attributes:
        composite: right in the composite, which every batch is submitted as once more.
        composite_alone: wrong in the composite, and in no submission of an attack.
        composite_by_batch: right in the composite, batch by batch; not told by cards from before it was.
        regroupings: what is right in other batches, for which no attack has searched; none where others would hold
            the same images.
    """

    composite: Count
    composite_alone: Count
    composite_by_batch: list[Count] | None = None
    regroupings: list[Regrouping]

    @property
    def flag(self) -> str | None:
        """What to say if the composite, which searches for nothing, broke what all attacks had left."""
        if not self.composite_alone:
            return None
        return f"the composite broke {self.composite_alone} images that stood under every attack: too few were tried"

    @property
    def clean(self) -> tuple[int, int] | None:
        """Fewest and most clean images that are right in other batches, where there are any."""
        return _ends([regrouping.clean for regrouping in self.regroupings])

    @property
    def regrouped(self) -> tuple[int, int] | None:
        """Fewest and most images of the composite that are right in other batches, where there are any."""
        return _ends([regrouping.composite for regrouping in self.regroupings])

    @model_validator(mode="after")
    def _batches_make_up_the_composite(self) -> Aggregates:
        if self.composite_by_batch is not None and sum(self.composite_by_batch) != self.composite:
            raise ValueError("the batches of the composite hold other than as many right images as all of it")
        return self


def _ends(counts: Sequence[int]) -> tuple[int, int] | None:
    return (min(counts), max(counts)) if counts else None
