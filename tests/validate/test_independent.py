"""A plain PGD of its own finds nothing that MSA missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from validation.independent import misclassified, misclassified_one_by_one
from validation.planted import EPS, digits, plant
from validation.trial import wrapped

from hpm_robustbench.case import Case, prepare
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import Plan
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.request.models import find_spec
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL

HALF_A_POINT = 0.005
IMAGES = 100


def test_it_is_a_strong_attacker_itself() -> None:
    """Where the truth is known, on HPM over pixels with a head of its own, it ends there."""
    world = digits(20, n_classes=3)
    planted = plant("beta-0.05", world)
    wrong = misclassified(wrapped(planted, world), world.x, world.y, float(EPS), restarts=20, steps=30)
    assert 0 < planted.hpm_standing.sum() < 0.9 * len(wrong)
    assert (~wrong.numpy() == planted.hpm_standing).all()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The embedded model, whose images form one batch under JOINT."""
    output = tmp_path_factory.mktemp("embedded")
    yield prepare(find_spec(DIGITS_MODEL), RunOptions(n_ex=IMAGES, joint_size=IMAGES, output=output))


def finished(case: Case, plan: Plan, subject: Subject, runs: Path) -> RunRecord:
    run(plan, subject, case.test, runs, {})
    record = Journal(runs, plan).record()
    assert record is not None
    return record


@pytest.mark.validate
@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_it_finds_nothing_that_msa_missed(case: Case, batching: Batching) -> None:
    plan, subject = next(trial for trial in case.trials if trial[0].target == "hpm" and trial[0].batching is batching)
    assert isinstance(plan, Plan)
    record = finished(case, plan, subject, case.output / "runs")
    standing = np.array(record.standing())
    broken = np.array(record.clean_correct) & ~standing
    x, y = case.test.images, case.test.labels
    wrong = misclassified(subject.classifier, x, y, float(plan.threat.eps), restarts=27, steps=100).numpy()
    missed = standing & wrong
    assert (wrong & broken).sum() > broken.sum() / 2, "he is weak himself"
    assert missed.mean() <= HALF_A_POINT, f"{missed.sum()} of {standing.sum()} that stood under MSA"


@pytest.mark.validate
def test_after_one_image_at_a_time_it_finds_nothing_either(case: Case) -> None:
    plan, subject = next(trial for trial in case.trials if trial[0].batching is Batching.JOINT)
    assert isinstance(plan, Plan)
    record = finished(case, plan, subject, case.output / "runs")
    in_turns = [row for row, step in enumerate(record.lost_to) if step and step.startswith("in-turns@")]
    hard, left = in_turns[:10], np.array(record.standing()).nonzero()[0].tolist()
    x, y, eps = case.test.images, case.test.labels, float(plan.threat.eps)
    wrong = misclassified_one_by_one(subject.classifier, x, y, eps, hard + left, restarts=4, steps=40)
    assert len(hard) == 10
    assert wrong[hard].sum() >= 5, "what MSA itself takes only one at a time, he takes by half at least"
    assert wrong[left].sum() <= HALF_A_POINT * IMAGES, f"{wrong[left].sum()} of {len(left)}"
