"""Whoever can do all that another attacker can has found whatever that one found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpm_robustbench.attacks.protocols import COUPLED_THREATS
from hpm_robustbench.ledger.coupling import CAN_ALSO, standing
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.threat import Batching


@pytest.fixture
def records(make_record, spec) -> dict[str, RunRecord]:
    """Each attacker breaks other rows, the more he can do the fewer."""
    found = {}
    for seed, attacker in enumerate(CAN_ALSO):
        record = make_record(spec, "hpm", Batching.JOINT, clean=1.0, strengths=[0.05 - 0.008 * seed] * 4, seed=seed)
        found[attacker] = replace(record, plan=replace(record.plan, protocol=attacker))
    return found


def test_every_attacker_of_the_screen_has_a_place() -> None:
    assert set(CAN_ALSO) == set(COUPLED_THREATS)


def test_what_a_weaker_one_broke_does_not_stand(records) -> None:
    own = {attacker: set(fallen(record.standing())) for attacker, record in records.items()}
    shown = {attacker: set(fallen(standing(record, [*records.values()]))) for attacker, record in records.items()}
    assert shown["one mate, not the image"] == own["one mate, not the image"]
    mates = own["one mate, not the image"] | own["four mates, not the image"] | own["all mates, not the image"]
    assert shown["all mates, not the image"] == mates > own["all mates, not the image"]
    assert shown["the image and all its mates"] == set().union(*own.values())


def test_other_batches_are_another_question(records) -> None:
    strongest = records["the image and all its mates"]
    others = [replace(r, plan=replace(r.plan, batch_size=64, shard_size=64)) for r in records.values()]
    assert standing(strongest, others) == strongest.standing()


def fallen(stand: list[bool]) -> list[int]:
    return [row for row, stands in enumerate(stand) if not stands]
