"""The screen of what batch mates can do to each other: who can do all that another can has all that the other found."""

from __future__ import annotations

from collections.abc import Sequence

from hpm_robustbench.ledger.record import RunRecord

COUPLING = "coupling"
"""Name of the screen."""

CAN_ALSO = {
    "the image itself, mates clean and unknown": (),
    "the image itself, mates clean": ("the image itself, mates clean and unknown",),
    "one mate, not the image": (),
    "four mates, not the image": ("one mate, not the image",),
    "all mates, not the image": ("four mates, not the image",),
    "the image and all its mates": ("all mates, not the image", "the image itself, mates clean"),
}
"""Of each attacker of one image, those whose every submission he may make too: what he has in hand he may leave alone.

The protocol of each run of the screen is such an attacker's name.
"""


def standing(record: RunRecord, records: Sequence[RunRecord]) -> list[bool]:
    """Which rows stand under an attacker and under all who can do no more than he; under all others, the record's own.

    Args:
        record: the attacker's run.
        records: all runs of the screen.
    """
    weaker = CAN_ALSO.get(record.plan.protocol, ())
    beside = [other for other in records if other.plan.trial_of_model == record.plan.trial_of_model]
    found = [standing(other, beside) for other in beside if other.plan.protocol in weaker]
    return [all(row) for row in zip(record.standing(), *found, strict=True)]
