"""What broke in different submissions is put together and judged again; the truth is known or counted another way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_trials import plan_of, record_of
from torch import Tensor, nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.aggregates import aggregate
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.aggregates import Aggregates
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import MSA, QUICK, Plan, Step
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching, Composition, Dataset

STEPS = (
    Step("hpm", "joint", MSA, {"loss": "ce", "steps": 5}),
    Step("l2", "apgd-ce", MSA, {"n_iter": 5}),
    Step("hpm", "joint", MSA, {"loss": "margin", "steps": 5, "victims": 1}),
)


def joint(wrapped: Wrapped) -> Subject:
    return Subject(wrapped.classifier.with_batching(Batching.JOINT), wrapped.base)


def aggregated(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> tuple[RunRecord, Aggregates]:
    run(plan, subject, examples, runs, {})
    aggregate(plan, subject, examples, runs)
    record = record_of(plan, runs)
    assert record.aggregates is not None
    return record, record.aggregates


@pytest.fixture
def examples(digits: tuple[ExampleSet, ExampleSet]) -> ExampleSet:
    return digits[0].head(40)


class Rivals(HPMClassifier):
    """Two images of which either is wrong only while it outshines the other by nearly all that the budget allows."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.batching = Batching.JOINT
        self.register_buffer("prototypes", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        light = x.flatten(1).sum(dim=1)
        lead = light - light.flip(0) - 0.7
        return torch.stack([-lead, lead], dim=1)


def test_rivals_that_fall_one_at_a_time_stand_together(tmp_path: Path) -> None:
    """Each is lost in some submission, one at most in each, and none in the one that shows both at their brightest."""
    pair = ExampleSet(Dataset("pair", 2, (1, 2, 2)), "test", torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0]))
    subject = Subject(Rivals(), nn.Flatten())
    record, found = aggregated(plan_of(subject, pair, STEPS[2:], batch_size=2), subject, pair, tmp_path)
    assert (sum(record.standing()), record.batch_worst(), found.composite) == (0, 1, 2)
    assert found.composite_alone == 0
    assert found.regroupings == [], "all images make one batch, however it is drawn"


@pytest.mark.parametrize(("beta", "size"), [(0.0, 16), (0.5, 1)], ids=["fixed prototypes", "batches of one"])
def test_where_rows_do_not_meet_nothing_depends_on_the_submission(
    plain: nn.Module, digits, examples: ExampleSet, tmp_path: Path, beta: float, size: int
) -> None:
    subject = joint(wrap(plain, digits[1], HPMConfig(beta=beta)))
    record, found = aggregated(
        plan_of(subject, examples, STEPS[:2], batch_size=size, shard_size=max(16, size)), subject, examples, tmp_path
    )
    clean, standing = sum(record.clean_correct), sum(record.standing())
    assert 0 < standing < clean
    assert (found.composite, found.composite_alone) == (standing, 0)
    drawn = 0 if size == 1 else 3  # of batches of one there are no others
    assert [(each.clean, each.composite) for each in found.regroupings] == [(clean, standing)] * drawn


def test_where_they_meet_an_independent_count_agrees(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    """Put together by hand from whole batches that were kept on request, and dealt anew by numpy."""
    subject = joint(wrapped)
    plan = plan_of(subject, examples, STEPS, seed=5)
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    images, first = examples.images.clone(), set()
    for step in range(1, len(STEPS) + 1):
        for path in sorted((tmp_path / plan.run_key / "images").glob(f"*/{step:02d}-*.safetensors")):
            kept = load_file(path)
            for image, row, broken in zip(kept["images"], kept["rows"].tolist(), kept["broken"], strict=True):
                if broken and row not in first:
                    images[row] = image
                    first.add(row)
    record, found = aggregated(plan, subject, examples, tmp_path)
    right = right_in(5, subject, images, examples.labels)
    assert len(first) == sum(record.clean_correct) - sum(record.standing())
    assert (found.composite, found.composite_alone) == (right.sum(), (right < np.array(record.standing())).sum())
    assert found.composite_by_batch == [right[rows].sum() for rows in plan.batches()]
    assert record.batch_worst() <= found.composite
    wanted = [
        tuple(int(right_in(seed, subject, shown, examples.labels).sum()) for shown in (examples.images, images))
        for seed in (6, 7, 8)
    ]
    assert [(each.clean, each.composite) for each in found.regroupings] == wanted
    assert found.composite > sum(record.standing()), "mates that helped to break a row have left"


def right_in(seed: int, subject: Subject, images: Tensor, labels: Tensor) -> np.ndarray:
    order, right = np.random.default_rng(seed).permutation(len(images)), np.zeros(len(images), bool)
    for rows in np.split(order, range(16, len(images), 16)):
        right[rows] = (subject.classifier(images[rows]).argmax(dim=1) == labels[rows]).numpy()
    return right


def test_composed_batches_are_drawn_anew_as_they_were_composed(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    """Where each class is one batch, that holds the same images whatever the seed; where it is two, others."""
    subject, rows = joint(wrapped), torch.argsort(examples.labels, stable=True)[:8].tolist()
    few = examples.take(rows)
    labels = tuple(few.labels.tolist())
    for size, drawn in ((16, 0), (2, 3)):
        composed = plan_of(
            subject, few, STEPS[:1], composition=Composition.SINGLE_CLASS, labels=labels, batch_size=size
        )
        found = aggregated(composed, subject, few, tmp_path)[1]
        assert len(found.regroupings) == drawn
        assert (found.clean is None) == (found.regrouped is None) == (drawn == 0)


def test_cut_off_anywhere_the_same_bytes_come_out_and_no_image_stays(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject, examples = joint(wrapped), examples.head(24)
    plan = plan_of(subject, examples, STEPS[:2], batch_size=8)
    whole = aggregated(plan, subject, examples, tmp_path / "whole")
    for lost in ("broken/00001", "broken", "shards/00001"):
        folder = tmp_path / lost.replace("/", "-") / plan.run_key
        run(plan, subject, examples, folder.parent, {})
        (folder / lost).rename(folder.parent / "lost")
        assert aggregated(plan, subject, examples, folder.parent) == whole
        written = (folder / "aggregates.json").read_bytes()
        assert written == (tmp_path / "whole" / plan.run_key / "aggregates.json").read_bytes()
        assert not (folder / "broken").exists()


def test_a_finished_aggregate_is_not_made_again_nor_its_images(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject = joint(wrapped)
    plan = plan_of(subject, examples, STEPS[:1])
    _, found = aggregated(plan, subject, examples, tmp_path)
    broken = replace(subject, base=nn.Identity())  # would be found out if it were asked
    assert aggregated(plan, broken, examples, tmp_path)[1] == found


def test_a_lost_image_is_told_not_taken_for_a_clean_one(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    subject = joint(wrapped)
    plan = plan_of(subject, examples, STEPS[:1])
    run(plan, subject, examples, tmp_path, {})
    next((tmp_path / plan.run_key / "broken").glob("*/*.safetensors")).unlink()
    with pytest.raises(IntegrityError, match="run the same command again"):
        aggregate(plan, subject, examples, tmp_path)


def test_a_torn_image_is_done_again_by_the_same_command(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    subject = joint(wrapped)
    plan = plan_of(subject, examples, STEPS[:1])
    run(plan, subject, examples, tmp_path, {})
    torn = next((tmp_path / plan.run_key / "broken").glob("*/*.safetensors"))
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=r"run the same command again; it does what is missing"):
        aggregate(plan, subject, examples, tmp_path)
    run(plan, subject, examples, tmp_path, {})
    assert torn.read_bytes() == whole
    aggregate(plan, subject, examples, tmp_path)
    assert Journal(tmp_path, plan).read_aggregates() is not None


def test_nothing_is_kept_of_a_screen_nor_where_each_image_is_answered_alone(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    solo, coupled = Subject(wrapped.classifier, wrapped.base), joint(wrapped)
    screen = Step("hpm", "joint", QUICK, {"loss": "ce", "steps": 5})
    for subject, step in ((solo, STEPS[1]), (coupled, screen)):
        plan = plan_of(subject, examples, (step,))
        run(plan, subject, examples, tmp_path, {})
        aggregate(plan, subject, examples, tmp_path)
        assert not (tmp_path / plan.run_key / "broken").exists()
        assert not (tmp_path / plan.run_key / "aggregates.json").exists()
