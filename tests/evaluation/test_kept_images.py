"""Kept adversarial images break the target again, in other batches and orders; files that lie are refused or found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_trials import plan_of, record_of

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import IntegrityError, UsageProblem
from hpm_robustbench.evaluation.kept_images import kept_path, named_rows, read_kept
from hpm_robustbench.evaluation.runner import Share, run
from hpm_robustbench.evaluation.verification import verify
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import MSA, Plan, Step
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.load import Wrapped
from hpm_robustbench.surrogates.views import Subject
from hpm_robustbench.threat import Batching

STEPS = {
    Batching.SOLO: (Step("hpm", "apgd-ce", MSA, {"n_iter": 5}), Step("l2", "apgd-ce", MSA, {"n_iter": 5})),
    Batching.JOINT: (Step("hpm", "joint", MSA, {"loss": "ce", "steps": 5}), Step("l2", "apgd-ce", MSA, {"n_iter": 5})),
}


@pytest.fixture(params=STEPS, ids=lambda batching: batching.value)
def trial(request, wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet]) -> tuple[Plan, Subject, ExampleSet]:
    examples = digits[0].head(24)
    subject = Subject(wrapped.classifier.with_batching(request.param), wrapped.base)
    plan = plan_of(subject, examples, STEPS[request.param], batch_size=12, shard_size=12)
    return plan, subject, examples


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/images/*/*.safetensors"))


def broken_rows(plan: Plan, runs: Path) -> dict[tuple[int, str], list[int]]:
    """Rows that each step took of each shard, from the verdicts alone."""
    record, fallen = record_of(plan, runs), {}
    standing = record.clean_correct
    for step in record.steps[1:]:
        for shard, rows in enumerate(plan.shards()):
            taken = [row for row in rows if standing[row] and step.verdict[row] == Verdict.BROKEN]
            if taken:
                fallen[shard, step.name] = taken
        standing = record.standing(upto=step.name)
    return fallen


def test_every_broken_row_is_kept_and_breaks_again(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    record = record_of(plan, tmp_path)
    found = verify(plan, subject, examples, tmp_path)
    assert found.broken_again == sum(record.clean_correct) - sum(record.standing()) > 0
    assert found.broken_again == sum(map(len, broken_rows(plan, tmp_path).values()))


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


def test_images_are_not_made_up_for_verdicts_that_do_not_come_again(trial, tmp_path: Path) -> None:
    """The written result stays, and no image is kept beside it that is evidence of another."""
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {})
    journal = Journal(tmp_path, plan)
    shard, step = next(iter(broken_rows(plan, tmp_path)))
    result, rows = journal.read(shard, step), plan.shards()[shard]
    assert result is not None
    other = next(row for row in rows if result.verdict[rows.index(row)] == Verdict.STANDING)
    verdict = [*result.verdict]
    verdict[rows.index(other)] = Verdict.BROKEN
    journal.write(shard, replace(result, verdict=tuple(verdict)))
    written = journal.path(shard, step).read_bytes()
    with pytest.raises(IntegrityError, match=rf"other verdicts on row {other}\b.*--output"):
        run(plan, subject, examples, tmp_path, {}, keep_images=True)
    assert journal.path(shard, step).read_bytes() == written
    assert not kept_path(journal, shard, step).exists()


@pytest.mark.parametrize("forgery", ["clean", "outside"])
def test_images_that_break_nothing_or_leave_the_budget_are_an_error(trial, tmp_path: Path, forgery: str) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    (shard, step), fallen = list(broken_rows(plan, tmp_path).items())[-1]
    path = kept_path(Journal(tmp_path, plan), shard, step)
    kept = load_file(path)
    clean = examples.take(kept["rows"].tolist()).images
    save_file({**kept, "images": clean if forgery == "clean" else torch.rand_like(clean)}, path)
    with pytest.raises(IntegrityError) as caught:
        verify(plan, subject, examples, tmp_path)
    assert caught.value.exit_code == 4
    assert plan.run_key in caught.value.wanted
    stand = "stands" if len(fallen) == 1 else "stand"
    assert f"{step}, shard {shard}: {named_rows(sorted(fallen, key=kept['rows'].tolist().index))} {stand}" in str(
        caught.value
    )
    assert "--keep-images" in caught.value.next_step


def test_images_that_are_gone_are_missed(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    (shard, step), fallen = list(broken_rows(plan, tmp_path).items())[-1]
    path = kept_path(Journal(tmp_path, plan), shard, step)
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError, match="no such file") as caught:
        verify(plan, subject, examples, tmp_path)
    assert str(path) in caught.value.wanted
    assert f"broke {named_rows(fallen)}" in caught.value.wanted
    shutil.rmtree(tmp_path / plan.run_key / "images")
    with pytest.raises(IntegrityError, match=r"no such file.*--keep-images"):
        verify(plan, subject, examples, tmp_path)
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    assert path.read_bytes() == whole
    assert verify(plan, subject, examples, tmp_path).broken_again > 0


def test_a_run_that_is_not_finished_is_not_verified(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    with pytest.raises(UsageProblem, match=f"0 of {2 * 3} steps"):
        verify(plan, subject, examples, tmp_path)
    run(plan, subject, examples, tmp_path, {}, Share(0, 2), keep_images=True)
    with pytest.raises(UsageProblem, match=f"3 of {2 * 3} steps"):
        verify(plan, subject, examples, tmp_path)


def test_a_file_that_is_not_what_it_should_be_is_refused(trial, tmp_path: Path) -> None:
    plan, subject, examples = trial
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    (shard, step), fallen = next(iter(broken_rows(plan, tmp_path).items()))
    journal, shape = Journal(tmp_path, plan), examples.dataset.image_shape
    path = kept_path(journal, shard, step)
    content, kept = path.read_bytes(), load_file(path)
    batches = plan.batches() if plan.coupled else None
    assert read_kept(path, fallen, shape, batches).images.shape[1:] == shape
    with pytest.raises(IntegrityError, match="other rows"):
        read_kept(path, fallen[1:], shape, batches)
    with pytest.raises(IntegrityError, match="of shape"):
        read_kept(path, fallen, (3, 8, 8), batches)
    one = int(kept["broken"].nonzero()[0])
    for bad in (
        {"broken": kept["broken"].int()},
        {"rows": kept["rows"].double()},
        {"rows": kept["rows"][:0]},
        {"rows": kept["rows"].clone().index_fill(0, torch.tensor([one]), 10**6)},
        {"broken": kept["broken"].clone().index_fill(0, torch.tensor([one]), False)},
        {"batch": torch.arange(len(kept["rows"]))} if plan.coupled else {"batch": kept["batch"].double()},
        {"more": kept["rows"].clone()},
    ):
        save_file({**kept, **bad}, path)
        with pytest.raises(IntegrityError, match="remove that file and run the same command again with --keep-images"):
            verify(plan, subject, examples, tmp_path)
    path.write_bytes(content[:100])
    with pytest.raises(IntegrityError, match="remove that file"):
        verify(plan, subject, examples, tmp_path)
    path.write_bytes(content)
    assert verify(plan, subject, examples, tmp_path).broken_again > 0
