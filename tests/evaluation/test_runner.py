"""Plan + subject + examples -> record, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_trials import plan_of, record_of
from torch import nn

from hpm_robustbench.attacks.protocols import COUPLED_THREATS
from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import BatchCoupled, InvalidInput
from hpm_robustbench.evaluation.runner import run
from hpm_robustbench.ledger.journal import Journal
from hpm_robustbench.ledger.plan import AUTOATTACK, MSA, Plan, Step
from hpm_robustbench.ledger.record import CLEAN, RunRecord, Verdict
from hpm_robustbench.load import Wrapped
from hpm_robustbench.robustbench_compat import import_autoattack
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching, Composition

QUICK = (
    Step("hpm", "apgd-ce", AUTOATTACK, {"n_iter": 5}),
    Step("hpm", "square", AUTOATTACK, {"n_queries": 20}),
    Step("l2", "apgd-ce", MSA, {"n_iter": 5}),
)
QUICK_JOINT = (
    Step("hpm", "joint", MSA, {"loss": "ce", "steps": 5}),
    Step("soft", "joint", MSA, {"loss": "dlr", "steps": 5}),
    Step("l2", "apgd-ce", MSA, {"n_iter": 5}),
)


def subject_of(wrapped: Wrapped, batching: Batching = Batching.SOLO, target: str = "hpm") -> Subject:
    return Subject(wrapped.classifier.with_batching(batching), wrapped.base, target)


def tried(plan: Plan, subject: Subject, examples: ExampleSet, runs: Path) -> RunRecord:
    run(plan, subject, examples, runs, {})
    return record_of(plan, runs)


@pytest.fixture
def examples(digits: tuple[ExampleSet, ExampleSet]) -> ExampleSet:
    return digits[0].head(40)


def test_the_cascade_is_stock_autoattack_row_by_row(plain: nn.Module, digits, wrapped: Wrapped, tmp_path: Path) -> None:
    examples = digits[0].head(12)
    subject = subject_of(wrapped, target="base")
    steps = tuple(Step("base", attack, AUTOATTACK) for attack in ("apgd-ce", "apgd-t", "fab-t", "square"))
    plan = plan_of(subject, examples, steps, batch_size=5, shard_size=15, seed=3)
    record = tried(plan, subject, examples, tmp_path)
    stock = import_autoattack().AutoAttack(wrapped.base, norm="Linf", eps=0.1, seed=3, version="standard")
    _, predicted = stock.run_standard_evaluation(examples.images, examples.labels, batch_size=5)
    assert record.standing() == (predicted == examples.labels).tolist()
    assert 0 < sum(record.standing()) < 12


@pytest.mark.parametrize(
    ("batching", "steps"),
    [(Batching.SOLO, QUICK), (Batching.JOINT, QUICK_JOINT), (Batching.REFERENCE, QUICK)],
    ids=["solo", "joint", "reference"],
)
def test_what_is_made_for_hpm_is_shown_to_the_base_model_and_of_other_batchings_to_hpm_alone(
    wrapped: Wrapped, digits, examples: ExampleSet, tmp_path: Path, batching: Batching, steps: tuple[Step, ...]
) -> None:
    beside = digits[1].images[:20] if batching is Batching.REFERENCE else None
    subject = Subject(wrapped.classifier.with_batching(batching, beside), wrapped.base)
    record = tried(plan_of(subject, examples, steps), subject, examples, tmp_path)
    found = record.base_predicted
    labels = examples.labels.tolist()
    assert all(label is None or label != labels[row] for row, label in enumerate(found))
    carried = [row for row in range(record.n) if record.lost_to[row] in {s.name for s in steps}]
    assert 0 < sum(found[row] is not None for row in carried) <= len(carried)
    # The same images of a step, judged by hand: what the journal says of one shard is what the others answer.
    first = Journal(tmp_path, record.plan).read(0, steps[0].name)
    view = make_view(steps[0].view, subject, examples.images[list(first.rows)])
    x, y = examples.images[list(first.rows)], examples.labels[list(first.rows)]
    active, plan = torch.tensor(record.clean_correct)[list(first.rows)], record.plan
    wrong, wrong_alone = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for x_adv in run_attack(steps[0], view, x, y, active, plan.threat, plan.seed_of(steps[0]), plan.batch_size):
        seen = active if not plan.coupled else torch.ones_like(active)
        wrong |= seen & (wrapped.base(x_adv).argmax(dim=1) != y)
        alone = torch.cat([wrapped.classifier(image).argmax(dim=1) for image in x_adv.split(1)])
        wrong_alone |= seen & (alone != y)
    assert [label is not None for label in first.base_predicted] == wrong.tolist()
    if batching is Batching.SOLO:
        assert record.solo_predicted == ()
    else:
        assert 0 < wrong_alone.sum() < len(x)
        assert [label is not None for label in first.solo_predicted] == wrong_alone.tolist()


class SilentOffTheGrid(nn.Module):
    """Answers NaN, which ``argmax`` takes for class 0, to every image that is no scan of sixteen greys."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        odd = (x * 16 % 1 != 0).flatten(1).any(dim=1, keepdim=True)
        return self.base(x).masked_fill(odd, torch.nan)


def test_a_base_model_without_an_answer_has_lost_what_it_was_shown(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject = Subject(wrapped.classifier.with_batching(Batching.SOLO), SilentOffTheGrid(wrapped.base))
    step = Step("hpm", "apgd-t", AUTOATTACK, {"n_iter": 10})
    record = tried(plan_of(subject, examples, (step,)), subject, examples, tmp_path)
    fallen = [row for row in range(record.n) if record.lost_to[row] == step.name]
    assert 0 in {int(examples.labels[row]) for row in fallen}
    assert all(record.base_predicted[row] is not None for row in fallen)


@pytest.mark.parametrize(
    ("batching", "steps"), [(Batching.SOLO, QUICK), (Batching.JOINT, QUICK_JOINT)], ids=["solo", "joint"]
)
def test_a_run_resumes_from_any_subset_of_its_files(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path, batching: Batching, steps: tuple[Step, ...]
) -> None:
    subject = subject_of(wrapped, batching)
    plan = plan_of(subject, examples, steps)
    whole = tried(plan, subject, examples, tmp_path / "whole")
    journal = Journal(tmp_path / "part", plan).open({})
    for shard, name in [(0, CLEAN), (0, steps[0].name), (2, CLEAN), (1, steps[1].name)]:
        result = Journal(tmp_path / "whole", plan).read(shard, name)
        assert result is not None
        journal.write(shard, result)
    assert tried(plan, subject, examples, tmp_path / "part") == whole


def test_a_torn_file_is_ignored_said_and_redone(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = subject_of(wrapped)
    plan = plan_of(subject, examples, QUICK)
    whole = tried(plan, subject, examples, tmp_path)
    journal = Journal(tmp_path, plan)
    torn, edited = journal.path(1, QUICK[0].name), journal.path(2, QUICK[1].name)
    good = torn.read_bytes(), edited.read_bytes()
    torn.write_bytes(good[0][:-20])
    edited.write_bytes(good[1].replace(b'"verdict":[', b'"verdict":[2,', 1))
    assert tried(plan, subject, examples, tmp_path) == whole
    assert (torn.read_bytes(), edited.read_bytes()) == good
    assert [str(torn) in text or str(edited) in text for text in caplog.messages].count(True) >= 2


def test_shards_do_not_depend_on_each_other(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    subject = subject_of(wrapped)
    whole = tried(plan_of(subject, examples, QUICK), subject, examples, tmp_path)
    second = examples.take(range(16, 32))
    alone = tried(plan_of(subject, second, QUICK), subject, second, tmp_path)
    for step in alone.steps:
        assert whole[step.name].verdict[16:32] == step.verdict


def test_each_row_is_attacked_until_it_breaks_and_no_longer(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject = subject_of(wrapped)
    record = tried(plan_of(subject, examples, QUICK), subject, examples, tmp_path)
    alive = record.clean_correct
    for step in record.steps[1:]:
        for row, verdict in enumerate(step.verdict):
            assert (verdict == Verdict.SKIPPED) == (not alive[row])
            alive[row] = alive[row] and verdict != Verdict.BROKEN
    assert alive == record.standing()
    assert 0 < sum(alive) < sum(record.clean_correct)


def test_a_coupled_target_is_attacked_in_whole_batches(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    subject = subject_of(wrapped, Batching.JOINT)
    plan = plan_of(subject, examples, QUICK_JOINT)
    record = tried(plan, subject, examples, tmp_path)
    journal = Journal(tmp_path, plan)
    for shard in range(3):
        for step in QUICK_JOINT:
            result = journal.read(shard, step.name)
            assert result is not None
            assert len({verdict == Verdict.SKIPPED for verdict in result.verdict}) == 1
    assert sum(record.standing()) <= record.batch_worst() <= sum(record.clean_correct)
    assert sorted(row for shard in plan.shards() for row in shard) == list(range(40))


def test_what_the_surrogate_thinks_is_kept_beside_what_the_target_thinks(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    """The target's own steps have no surrogate; the others tell for each judged row whether they fooled theirs."""
    subject = subject_of(wrapped)
    record = tried(plan_of(subject, examples, QUICK), subject, examples, tmp_path)
    assert record["apgd-ce@hpm.n_iter-5"].fooled == ()
    step = record["apgd-ce@l2.n_iter-5"]
    assert [fooled is None for fooled in step.fooled] == [verdict == Verdict.SKIPPED for verdict in step.verdict]
    assert any(step.fooled)
    coupled = subject_of(wrapped, Batching.JOINT)
    record = tried(plan_of(coupled, examples, QUICK_JOINT), coupled, examples, tmp_path)
    assert (
        len(record["joint@soft.loss-dlr.steps-5"].fooled) == len(record["joint@soft.loss-dlr.steps-5"].together) == 40
    )


def test_a_batch_is_worth_its_worst_submission_and_a_row_the_worst_of_all(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    """With one victim at a time, more rows fall in some submission than in any single one."""
    subject = subject_of(wrapped, Batching.JOINT)
    step = Step("hpm", "joint", MSA, {"loss": "margin", "steps": 5, "victims": 1})
    result = tried(plan_of(subject, examples, (step,)), subject, examples, tmp_path)[step.name]
    lost, lost_together = (verdict.count(Verdict.BROKEN) for verdict in (result.verdict, result.together))
    assert 0 < lost_together < lost
    for row, together in zip(result.verdict, result.together, strict=True):
        assert row == Verdict.BROKEN or together != Verdict.BROKEN


def test_who_moves_for_others_has_not_fallen_for_himself(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    """Of a threat by mates alone no row falls that moved, though movers err; beside clean mates none that did not."""
    subject = subject_of(wrapped, Batching.JOINT)
    fallen = {}
    for move in ("mates", "own", "all"):
        parameters = {"loss": "margin", "steps": 5, "victims": 1, "move": move}
        plan = plan_of(subject, examples, (Step("hpm", "joint", MSA, parameters),))
        step = tried(plan, subject, examples, tmp_path).steps[1]
        pairs = list(zip(step.verdict, step.distance, strict=True))
        fallen[move] = [size for verdict, size in pairs if verdict == Verdict.BROKEN]
    assert not any(fallen["mates"])
    assert fallen["own"]
    assert all(fallen["own"])
    assert len(fallen["mates"]) < len(fallen["own"]) <= len(fallen["all"])


def test_who_knows_no_mates_breaks_rows_by_themselves_beside_clean_mates(
    wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet], examples: ExampleSet, tmp_path: Path
) -> None:
    """Of every whole batch that was kept, one row is not clean: that row is broken, as the judge said, and no other."""
    classifier = wrapped.classifier.with_batching(Batching.REFERENCE, digits[1].images[:64])
    subject = Subject(classifier.with_batching(Batching.JOINT), wrapped.base)
    plan = plan_of(subject, examples, COUPLED_THREATS["the image itself, mates clean and unknown"])
    run(plan, subject, examples, tmp_path, {}, keep_images=True)
    record = Journal(tmp_path, plan).record()
    assert record is not None
    broken = []
    for path in sorted((tmp_path / plan.run_key / "images").glob("*/*.safetensors")):
        kept = load_file(path)
        for batch in range(int(kept["batch"].max()) + 1):
            rows, shown, lost = (kept[name][kept["batch"] == batch] for name in ("rows", "images", "broken"))
            assert (shown != examples.images[rows]).flatten(1).any(1).tolist() == lost.tolist()
            assert lost.sum() == 1
            assert (subject.classifier(shown).argmax(1) != examples.labels[rows])[lost].all()
            broken += rows[lost].tolist()
    assert sorted(broken) == [row for row, stands in enumerate(record.standing()) if record.clean_correct[row] > stands]
    assert 0 < len(broken) < sum(record.clean_correct)


def test_a_row_repacking_attack_never_meets_a_coupled_view(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject = subject_of(wrapped, Batching.JOINT)
    with pytest.raises(BatchCoupled, match="l2"):
        tried(plan_of(subject, examples, QUICK), subject, examples, tmp_path)


def test_a_model_that_changes_itself_is_found_out(plain: nn.Module, digits, tmp_path: Path) -> None:
    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return self.net(x)

    from hpm_robustbench.load import wrap

    subject = subject_of(wrap(Drifting(), digits[1]))
    examples = digits[0].head(4)
    plan = plan_of(subject, examples, QUICK[:1])
    for _ in range(2):  # asking again does not let it through
        with pytest.raises(InvalidInput, match="stateless"):
            tried(plan, subject, examples, tmp_path)


def test_a_torn_plan_is_written_again(wrapped: Wrapped, examples: ExampleSet, tmp_path: Path) -> None:
    subject = subject_of(wrapped)
    plan = plan_of(subject, examples, QUICK[:1])
    whole = tried(plan, subject, examples, tmp_path)
    file = tmp_path / plan.run_key / "plan.json"
    content = file.read_bytes()
    file.write_bytes(content[:50])
    assert tried(plan, subject, examples, tmp_path) == whole
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", ["", '{"python": ', "[]", "null"])
def test_a_torn_environment_is_written_again(
    content: str, wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    subject = subject_of(wrapped)
    plan = plan_of(subject, examples, QUICK[:1])
    whole = tried(plan, subject, examples, tmp_path)
    file = tmp_path / plan.run_key / "environment.json"
    file.write_text(content)
    assert Journal(tmp_path, plan).record() is None
    assert tried(plan, subject, examples, tmp_path) == whole


@pytest.mark.parametrize("size", [1, 8, 32, 128, 250, 1000])
def test_any_batch_size_is_answered_in_those_batches_and_a_partial_last_one(
    wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet], tmp_path: Path, size: int
) -> None:
    examples = digits[1].head(1003 if size == 1000 else 2 * size + 3)
    subject = subject_of(wrapped, Batching.JOINT)
    step = Step("hpm", "joint", MSA, {"loss": "ce", "steps": 1})
    plan = plan_of(subject, examples, (step,), batch_size=size, shard_size=size)
    assert len(plan.batches()[-1]) == (1 if size == 1 else 3)
    record = tried(plan, subject, examples, tmp_path)
    assert record.clean_correct == right_in(plan.batches(), subject, examples)
    assert Verdict.SKIPPED not in record[step.name].verdict or size == 1


def right_in(batches: list[list[int]], subject: Subject, examples: ExampleSet) -> list[bool]:
    """What the defence has right when it is shown the images of each batch together, and nothing else."""
    right = [False] * len(examples)
    for batch in batches:
        predicted = subject.classifier(examples.images[batch]).argmax(dim=1)
        for row, label in zip(batch, predicted, strict=True):
            right[row] = bool(label == examples.labels[row])
    return right


def test_batches_of_one_are_solo(wrapped: Wrapped, digits: tuple[ExampleSet, ExampleSet], tmp_path: Path) -> None:
    examples = digits[0].head(200)
    joint, solo = subject_of(wrapped, Batching.JOINT), subject_of(wrapped)
    alone = tried(plan_of(joint, examples, (), batch_size=1, shard_size=50), joint, examples, tmp_path)
    assert alone.clean_correct == tried(plan_of(solo, examples, ()), solo, examples, tmp_path).clean_correct


def test_composed_batches_are_answered_as_they_are_composed(
    wrapped: Wrapped, examples: ExampleSet, tmp_path: Path
) -> None:
    """Whoever meets his own class alone is answered otherwise than in a mixed batch."""
    subject, labels = subject_of(wrapped, Batching.JOINT), tuple(examples.labels.tolist())
    right = {}
    for composition in Composition:
        composed = {} if composition is Composition.IID else {"composition": composition, "labels": labels}
        plan = plan_of(subject, examples, QUICK_JOINT[:1], **composed)
        record = tried(plan, subject, examples, tmp_path)
        assert record.clean_correct == right_in(plan.batches(), subject, examples)
        assert sum(record.standing()) <= record.batch_worst()
        right[composition] = record.clean_correct
    assert right[Composition.SINGLE_CLASS] != right[Composition.IID]
