"""A plain PGD of its own finds nothing that MSA missed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from validation.independent import misclassified
from validation.planted import EPS, digits, plant
from validation.trial import wrapped

from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.pipeline import RunOptions, attack, conclude, prepare
from hpm_robustbench.request import find_spec
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

HALF_A_POINT = 0.005
IMAGES, BATCH = 200, 100


def test_it_is_a_strong_attacker_itself() -> None:
    """Where the truth is known, on HPM over pixels with a head of its own, it ends there."""
    world = digits(40, n_classes=4)
    planted = plant("beta-0.05", world)
    wrong = misclassified(wrapped(planted, world), world.x, world.y, float(EPS), restarts=20, steps=30)
    assert 0 < planted.hpm_standing.sum() < 0.9 * len(wrong)
    assert (~wrong.numpy() == planted.hpm_standing).all()


@pytest.mark.validate
@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_it_finds_nothing_that_msa_missed(batching: Batching, tmp_path: Path) -> None:
    spec = find_spec(DIGITS_MODEL)
    case = prepare(spec, RunOptions(n_ex=IMAGES, batchings=(batching,), joint_size=BATCH, output=tmp_path))
    attack(case)
    records = conclude(case).records
    number = [plan.target == "hpm" and plan.batching is batching for plan, _ in case.trials].index(True)
    plan, subject = case.trials[number]
    assert isinstance(plan, Plan)
    standing, wrong = np.array(records[number].standing()), np.zeros(IMAGES, dtype=bool)
    for rows in plan.shards():
        x, y = case.test.images[rows], case.test.labels[rows]
        wrong[rows] = misclassified(subject.classifier, x, y, float(plan.threat.eps), restarts=27, steps=100).numpy()
    missed = standing & wrong
    assert missed.mean() <= HALF_A_POINT, f"{missed.sum()} of {IMAGES}"
