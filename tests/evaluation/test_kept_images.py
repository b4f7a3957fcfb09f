"""Kept adversarial images break the target again, in other batches and orders; files that lie are refused or found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError
from hpm_robustbench.evaluation.identity import subject_sha256
from hpm_robustbench.evaluation.kept_images import read_kept
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.evaluation.verification import verify
from hpm_robustbench.hpm.views import Subject
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import MSA, Examples, Plan, Step
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.load import Wrapped
from hpm_robustbench.threat import Batching, ThreatModel

STEPS = {
    Batching.SOLO: (Step("hpm", "apgd-ce", MSA, {"n_iter": 5}), Step("l2", "apgd-ce", MSA, {"n_iter": 5})),
    Batching.JOINT: (Step("hpm", "joint", MSA, {"loss": "ce", "steps": 5}), Step("l2", "apgd-ce", MSA, {"n_iter": 5})),
}


@pytest.fixture(params=STEPS, ids=lambda batching: batching.value)
def trial(request, wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet]) -> tuple[Plan, Subject, ExampleSet]:
    examples = digits[0].head(24)
    subject = Subject(wrapped.classifier.with_batching(request.param), wrapped.base)
    plan = Plan(
        model="Small",
        target="hpm",
        batching=request.param,
        threat=ThreatModel.parse("Linf", "0.1"),
        protocol="test",
        steps=STEPS[request.param],
        examples=Examples("digits", "test", examples.fingerprint, len(examples)),
        state_sha256=subject_sha256(subject, examples),
        defence={},
        software={},
        batch_size=12,
        shard_size=12,
    )
    return plan, subject, examples


def record_of(plan: Plan, runs: Path) -> RunRecord:
    record = Journal(runs, plan).record()
    assert record is not None
    return record


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/images/*/*.safetensors"))


def test_every_broken_row_is_kept_and_breaks_again(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    record = record_of(plan, tmp_path)
    found = verify(plan, subject, examples, tmp_path)
    assert found.kept == sum(record.clean_correct) - sum(record.standing()) > 0
    assert found.lost == 0


def test_images_change_no_result_and_are_made_up_for_later(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path / "with", {}, keep_images=True)
    run(plan, subject, examples, tmp_path / "without", {})
    assert files(tmp_path / "without") == []
    before = record_of(plan, tmp_path / "without")
    assert before == record_of(plan, tmp_path / "with")
    run(plan, subject, examples, tmp_path / "without", {}, keep_images=True)
    assert before == record_of(plan, tmp_path / "without")
    kept, late = ([path.read_bytes() for path in files(tmp_path / name)] for name in ("with", "without"))
    assert kept == late


@pytest.mark.parametrize("forgery", ["clean", "outside"])
def test_images_that_break_nothing_or_leave_the_budget_are_found(trial, tmp_path: Path, forgery: str) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    honest = verify(plan, subject, examples, tmp_path)
    for path in files(tmp_path):
        kept = load_file(path)
        clean = examples.take(kept["rows"].tolist()).images
        kept["images"] = clean if forgery == "clean" else torch.rand_like(clean)
        save_file(kept, path)
    forged = verify(plan, subject, examples, tmp_path)
    assert forged.kept == forged.lost == honest.kept > honest.lost == 0


def test_a_file_that_is_not_what_it_should_be_is_refused(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    path = files(tmp_path)[0]
    shape, content, kept = examples.dataset.image_shape, path.read_bytes(), load_file(path)
    rows = plan.shards()[int(path.parent.name)]
    assert read_kept(path, rows, shape).images.shape[1:] == shape
    with pytest.raises(IntegrityError, match="rows of another shard"):
        read_kept(path, [10**6], shape)
    with pytest.raises(IntegrityError, match="of shape"):
        read_kept(path, rows, (3, 8, 8))
    for bad in ({"broken": kept["broken"].int()}, {"rows": kept["rows"][:0]}, {"more": kept["rows"].clone()}):
        save_file({**kept, **bad}, path)
        with pytest.raises(IntegrityError):
            read_kept(path, rows, shape)
    path.write_bytes(content[:100])
    with pytest.raises(IntegrityError, match="run the same command again with --keep-images"):
        verify(plan, subject, examples, tmp_path)
