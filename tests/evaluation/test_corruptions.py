"""Known accuracies on corrupted images, whatever happened on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpm_robustbench.case import Case, prepare
from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.evaluation.runner import Share
from hpm_robustbench.pipeline import Outcome, attack, conclude, evaluate
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Composition, Corruptions
from hpm_robustbench.zoo.spec import ModelSpec, WeightsRef

SPEC = ModelSpec("Seer", "pixels", Corruptions(), "python:tests:seer", WeightsRef("memory", ()))


def options_in(world: ModuleType, folder: Path) -> RunOptions:
    images = world.write_set(folder / "pixels-C")
    return RunOptions(n_ex=world.N, batch_size=5, joint_size=4, corruptions_data_dir=images, output=folder / "out")


@pytest.fixture
def options(world: ModuleType, tmp_path: Path) -> RunOptions:
    """Without JOINT, which most of what is tested here does not need."""
    return replace(options_in(world, tmp_path), batchings=(Batching.SOLO,))


@pytest.fixture(scope="module")
def finished(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Outcome]:
    """A whole trial in shards of one batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpm_robustbench.planning._FILE", 1)
        case = case_of(world, options_in(world, tmp_path_factory.mktemp("finished")))
    attack(case)
    return case, conclude(case)


def outcome_of(world: ModuleType, options: RunOptions, model: nn.Module | None = None) -> Outcome:
    return evaluate(SPEC, options, model=model or world.classifier(), source=world.clean_source())


def case_of(world: ModuleType, options: RunOptions) -> Case:
    return prepare(SPEC, options, model=world.classifier(), source=world.clean_source())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_count_is_the_one_that_follows_by_hand(world: ModuleType, finished: tuple[Case, Outcome]) -> None:
    card = finished[1].card
    base, solo, joint = card.hpm_bench.evaluations
    assert (base.target, solo.batching, joint.batching) == ("base", Batching.SOLO, Batching.JOINT)
    for evaluation in (base, solo):
        assert evaluation.clean.count == evaluation.n == world.N
        assert evaluation.right == world.expected_right()
        counts = [count for row in world.expected_right().values() for count in row]
        assert evaluation.corruptions_acc == round(100 * sum(counts) / (75 * world.N), 2)
    assert (card.clean_acc, card.corruptions_acc, card.eps) == ("100.00", solo.text, None)
    assert (joint.batch_size, joint.batch_per_class) == (4, 0.4)


def test_the_mean_is_what_robustbench_would_compute(world: ModuleType, finished: tuple[Case, Outcome]) -> None:
    """Its ``corruptions_evaluation``, without the lines that stop it: the mean of 75 accuracies."""
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from robustbench.data import CORRUPTIONS
    from robustbench.utils import clean_accuracy

    sets = [finished[0].corrupted.take(kind, s, range(world.N)) for kind in CORRUPTIONS for s in range(1, 6)]
    mean = np.mean([clean_accuracy(world.classifier(), each.images, each.labels, batch_size=5) for each in sets])
    assert finished[1].card.hpm_bench.evaluations[0].corruptions_acc == round(100 * mean, 2)


def test_joint_answers_shuffled_batches_under_one_corruption_each(finished: tuple[Case, Outcome]) -> None:
    case, outcome = finished
    plan, subject = case.trials[2]
    batches = plan.shards()
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert sorted(row for batch in batches for row in batch) == list(range(12)) != [r for b in batches for r in b]
    for kind, severity in (("fog", 3), ("snow", 5)):
        step = outcome.records[2][f"{kind}@hpm.severity-{severity}"]
        for batch in batches:
            images = case.corrupted.take(kind, severity, batch).images
            assert [step.predicted[row] for row in batch] == subject.target_logits(images).argmax(1).tolist()


def test_batches_of_one_class_are_answered_and_named_so(world: ModuleType, options: RunOptions) -> None:
    joint = replace(options, batchings=(Batching.SOLO, Batching.JOINT), composition=Composition.SINGLE_CLASS)
    case = case_of(world, joint)
    attack(case)
    outcome, (plan, subject) = conclude(case), case.trials[2]
    assert sorted(sorted(batch) for batch in plan.batches()) == [[0, 10], [1, 11], *([row] for row in range(2, 10))]
    for batch in plan.batches():
        images = case.corrupted.take("fog", 3, batch).images
        step = outcome.records[2]["fog@hpm.severity-3"]
        assert [step.predicted[row] for row in batch] == subject.target_logits(images).argmax(1).tolist()
    told = [evaluation.composition for evaluation in outcome.card.hpm_bench.evaluations]
    assert told == [Composition.IID, Composition.IID, Composition.SINGLE_CLASS]


def test_shards_change_no_count(world: ModuleType, finished: tuple[Case, Outcome], options: RunOptions) -> None:
    whole = outcome_of(world, options).card.hpm_bench
    assert [e.right for e in whole.evaluations] == [e.right for e in finished[1].card.hpm_bench.evaluations[:2]]


def test_fewer_images_are_the_first_ones(world: ModuleType, options: RunOptions, tmp_path: Path) -> None:
    few = outcome_of(world, replace(options, n_ex=3)).card.hpm_bench.evaluations[0]
    assert few.n == 3
    assert few.right["gaussian_noise"] == [2, 1, 0, 0, 0]


def test_interrupted_torn_and_shared_the_bytes_are_the_same(
    world: ModuleType, options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpm_robustbench.planning._FILE", 5)
    whole, parts = (replace(options, output=tmp_path / name, n_ex=10) for name in ("whole", "parts"))
    outcome_of(world, whole)
    attack(case_of(world, parts), Share(1, 2))
    written = sorted((tmp_path / "parts" / "runs").glob("*/shards/*/*.json"))
    assert {path.parent.name for path in written} == {"00001"}
    written[3].write_bytes(written[3].read_bytes()[:40])
    written[5].unlink()
    outcome_of(world, parts)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_finished_run_is_not_done_again(world: ModuleType, options: RunOptions) -> None:
    outcome_of(world, options)
    files = {path: path.stat().st_mtime_ns for path in (options.output / "runs").glob("*/shards/*/*.json")}
    assert len(files) == 2 * 76
    outcome_of(world, options)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_other_corrupted_images_are_another_run(world: ModuleType, options: RunOptions) -> None:
    first = [plan.run_key for plan, _ in case_of(world, options).trials]
    path = options.corruptions_data_dir / "frost.npy"
    changed = np.load(path)
    changed[-1] = 7
    np.save(path, changed)
    assert not set(first) & {plan.run_key for plan, _ in case_of(world, options).trials}


class Blinking(nn.Module):
    """Passes features on, but for dim ones."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.amax(1, keepdim=True) > 0.5, x, torch.nan)


class Counting(nn.Module):
    """Passes features on, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return x


def test_an_answer_of_nan_is_wrong_and_flagged(world: ModuleType, options: RunOptions) -> None:
    path = options.corruptions_data_dir / "fog.npy"
    dimmed = np.load(path)
    dimmed[: world.N] //= 4
    np.save(path, dimmed)
    flatten, head = world.classifier()
    outcome = outcome_of(world, options, nn.Sequential(flatten, Blinking(), head))
    base = outcome.card.hpm_bench.evaluations[0]
    assert base.right == {**world.expected_right(), "fog": [0, *world.expected_right()["fog"][1:]]}
    assert base.flags == ["fog@base.severity-1: the target answered with NaN or Inf; counted as an error"]


def test_a_model_that_changes_itself_is_refused(world: ModuleType, options: RunOptions) -> None:
    flatten, head = world.classifier()
    with pytest.raises(InvalidInput, match="stays as it is"):
        outcome_of(world, options, nn.Sequential(flatten, Counting(), head))
    assert not list(options.output.glob("runs/*/shards/*/*"))


def test_images_of_other_clean_ones_are_refused(world: ModuleType, options: RunOptions, tmp_path: Path) -> None:
    folder = world.write_set(tmp_path / "others", world.LABELS[::-1].copy())
    with pytest.raises(InvalidInput, match="in row 0, where the clean image has 0"):
        case_of(world, replace(options, corruptions_data_dir=folder))


def test_corrupted_images_alone_are_not_enough(options: RunOptions) -> None:
    alone = replace(options, data=options.corruptions_data_dir)
    with pytest.raises(UsageProblem, match="the clean images of pixels"):
        prepare(SPEC, alone)


def test_without_images_it_says_what_to_put_where(world: ModuleType, options: RunOptions, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"pixels-C/labels\.npy") as caught:
        case_of(world, replace(options, corruptions_data_dir=None, data_dir=tmp_path / "nowhere"))
    assert "--corruptions_data_dir" in caught.value.next_step
    assert not options.output.exists()
