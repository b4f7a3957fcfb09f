"""Which images a card is about: numbers from unlike images are never ranked in one list."""

from __future__ import annotations

import re
from typing import NamedTuple

from hpm_robustbench.ledger.card_corruptions import CorruptionEvaluation
from hpm_robustbench.ledger.card_evaluation import Evaluation


class ImageSet(NamedTuple):
    """How many images, and the hash that tells them from others."""

    n: int
    fingerprint: str

    @classmethod
    def of(cls, evaluation: Evaluation | CorruptionEvaluation) -> ImageSet:
        """The images of an evaluation."""
        return cls(evaluation.n, evaluation.fingerprint)

    @property
    def order(self) -> tuple[int, str]:
        """The larger set first, as it says more."""
        return -self.n, self.fingerprint

    @property
    def short(self) -> str:
        """Enough of the fingerprint to tell sets apart, and nothing that an anchor cannot hold: it is a card's text."""
        return re.sub(r"[^0-9A-Za-z]", "", self.fingerprint)[:12]

    def __str__(self) -> str:
        return f"n = {self.n}, images {self.short}"
