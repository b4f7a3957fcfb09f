"""What a fine-tuned card says of its controls: trained with the same budget, images, order and seed, beside HPM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from hpm_robustbench.ledger.card_block import Block, Count
from hpm_robustbench.ledger.card_evaluation import Metric
from hpm_robustbench.ledger.statistics import Comparison, compare
from hpm_robustbench.threat import Batching

ControlName: TypeAlias = Literal["fc", "static", "shuffled", "leave-one-out"]
CONTROLS: Mapping[ControlName, str] = {
    "fc": "C1: FC head alone",
    "static": "C2: static distances",
    "shuffled": "C3: shuffled memberships",
    "leave-one-out": "C4: leave-one-out prototypes",
}
"""Each control as a reader sees it, in the order of the method."""


class Control(Block):
    """A control on the same images as HPM in one batching, and which images only one of the two has right.

    C1 answers each image alone, under AutoAttack, those attacks of MSA that fit any head, and what was made for HPM
    SOLO on top of it; the others answer in HPM's batching, under HPM's attacks, and SOLO was shown what was made for
    their JOINT as well.
    """

    control: ControlName
    batching: Batching
    run_key: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    clean: Metric
    autoattack: Metric | None
    robust: Metric
    only_control: Count
    only_hpm: Count
    p_value: Annotated[float, Field(ge=0, le=1)]

    @property
    def test(self) -> Comparison:
        """The control (first) and HPM (second), under every attack on each."""
        return compare(self.only_control, self.only_hpm)

    @model_validator(mode="after")
    def _follows_from_the_counts(self) -> Control:
        check_pairs(self.test, self.p_value, self.robust.n)
        return self


def check_pairs(test: Comparison, p_value: float, n: int) -> None:
    """See that a written comparison is of no more than ``n`` images, and its p-value the one that follows.

    Raises:
        ValueError: it is not.
    """
    if test.only_first + test.only_second > n:
        raise ValueError(f"{test.only_first} and {test.only_second} images are more than {n}")
    if not math.isclose(test.p_value, p_value, rel_tol=1e-5):
        raise ValueError(f"p_value {p_value} does not follow from {test.only_first} and {test.only_second} images")


def written(p_value: float) -> float:
    """A p-value with the same digits whatever the release of scipy."""
    return float(f"{p_value:.6g}")
