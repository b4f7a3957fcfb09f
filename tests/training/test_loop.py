"""What a step changes and what it leaves alone; that nothing but the recipe decides; that bad numbers stop it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import Diverged, UsageProblem
from hpm_robustbench.evaluation import progress
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.classifier import Embedding
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training import loop as loop_module
from hpm_robustbench.training.checkpoint import read_saved, write_saved
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.finetuned import finetune_once
from hpm_robustbench.training.interruption import Interruption
from hpm_robustbench.training.learner import Learner, trainable
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe
from hpm_robustbench.training.status import trainings

LINF = ThreatModel.parse("Linf", "0.1")


def lesson(wrapped, digits, recipe, control=None, **rest) -> Lesson:
    return Lesson(wrapped.classifier, digits, LINF, Tuning(recipe, control), **rest)


def test_the_frozen_classifier_stays_as_it_is_and_the_result_is_frozen_and_alone(wrapped, digits, quick) -> None:
    before = state_sha256(wrapped.classifier)
    result = Loop(lesson(wrapped, digits, quick)).run()
    assert state_sha256(wrapped.classifier) == before
    assert result.classifier.batching is Batching.SOLO
    assert not any(p.requires_grad for p in result.classifier.parameters())
    shared = {p.data_ptr() for p in wrapped.classifier.parameters()} & {
        p.data_ptr() for p in result.classifier.parameters()
    }
    assert not shared
    assert [point.epoch for point in result.curves] == [0, 1, 2, 3]
    assert result.curves[0].loss is None
    assert all(point.loss is not None and 0 <= point.robust <= point.clean <= 1 for point in result.curves[1:])


@pytest.mark.parametrize("control", [None, *Control])
def test_exactly_what_a_recipe_names_is_learned(wrapped, digits, quick, control) -> None:
    before = {name: tensor.clone() for name, tensor in wrapped.classifier.state_dict().items()}
    tuning = Tuning(quick, control)
    after = Loop(lesson(wrapped, digits, quick, control)).run().classifier.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("backbone") for name in changed)
    assert "fc.weight" in changed
    assert "prototypes" in changed
    assert ("tau" in changed) == ("tau" in tuning.learned)
    assert ("beta" in changed) == (control is Control.STATIC)
    assert not any("running" in name or "num_batches" in name for name in changed)


def test_the_head_recipe_runs_the_backbone_once_and_leaves_it_alone(wrapped, digits) -> None:
    seen = []
    wrapped.classifier.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    recipe = find_recipe("head").with_knobs({"epochs": 4, "batch_size": 32, "held_out": 0.0})
    loop = Loop(lesson(wrapped, digits, recipe))
    assert sum(seen) == len(digits)
    result = loop.run()
    assert sum(seen) == len(digits)
    before, after = wrapped.classifier.state_dict(), result.classifier.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias", "tau", "beta"}
    assert result.curves[-1].loss < result.curves[1].loss
    assert bool(((after["beta"] >= 0) & (after["beta"] <= 1)).all())


def test_a_head_on_ready_features_is_attacked_first_and_last_only(wrapped, digits) -> None:
    seen = []
    wrapped.classifier.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    recipe, held_out, passes = find_recipe("head").with_knobs({"epochs": 3}), 16, 12  # ten steps, before and after
    curves = Loop(lesson(wrapped, digits, recipe)).run().curves
    assert sum(seen) == len(digits) + 2 * passes * held_out
    assert [point.robust is None for point in curves] == [False, True, True, False]
    assert all(point.clean is not None for point in curves)


def test_a_head_on_images_that_move_learns_from_them_as_they_lie(wrapped, digits) -> None:
    """Ready features cannot be shifted: each batch passes through the backbone anew, which stays as it is."""
    still = find_recipe("head").with_knobs({"epochs": 2, "batch_size": 32})
    seen = []
    hook = wrapped.classifier.backbone.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    loops = [Loop(lesson(wrapped, digits, recipe)) for recipe in (still, still.with_knobs({"shift": 0.25}))]
    hook.remove()
    assert sum(seen) == len(digits), "only the first computes features in advance"
    for loop in loops:
        for _ in range(loop.steps):
            loop.step()
    learned = [loop.learner.state_dict() for loop in loops]
    changed = {name for name, tensor in learned[0].items() if not torch.equal(tensor, learned[1][name])}
    assert {"classifier.fc.weight", "log_tau"} <= changed
    before = wrapped.classifier.backbone.state_dict()
    after = loops[1].learner.classifier.backbone.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_nothing_learned_is_the_classifier_that_was_there(wrapped, digits) -> None:
    result = Loop(lesson(wrapped, digits, find_recipe("prototypes"))).run()
    assert state_sha256(result.classifier) == state_sha256(wrapped.classifier)
    assert len(result.curves) == 1


def test_prototypes_follow_the_features_by_true_label(wrapped, digits, quick) -> None:
    recipe = quick.with_knobs({"attack_steps": 0, "shift": 0.0, "mirror": "never", "held_out": 0.0})
    loop = Loop(lesson(wrapped, digits, recipe))
    batch, before = loop.batches[0], loop.learner.classifier.prototypes.clone()
    with torch.no_grad():
        features = loop.learner.embed(batch.x).features
    loop.step()
    for label in range(10):
        members = features[batch.labels == label]
        wanted = 0.8 * before[label] + 0.2 * members.mean(dim=0) if len(members) else before[label]
        torch.testing.assert_close(loop.learner.classifier.prototypes[label], wanted, rtol=1e-5, atol=1e-5)


def test_every_control_sees_the_same_images_in_the_same_order(wrapped, digits, quick) -> None:
    batches = [Loop(lesson(wrapped, digits, quick, control)).batches for control in (None, *Control)]
    for step in (0, 1, 3, 5):
        first = batches[0][step]
        assert all(torch.equal(other[step].x, first.x) for other in batches)
        assert all(torch.equal(other[step].labels, first.labels) for other in batches)
    assert not torch.equal(batches[0][0].labels, batches[0][2].labels)


def test_a_batch_is_what_the_seed_draws_from_the_images_where_they_lie(wrapped, digits, quick) -> None:
    plain = quick.with_knobs({"shift": 0.0, "mirror": "never"})
    asked = lesson(wrapped, digits, plain)
    learning, _ = asked.rows()
    batches = Loop(asked).batches
    order = learning[torch.randperm(len(learning), generator=drawn(0, "order", 0))]
    for step in range(2):
        rows = order[64 * step : 64 * (step + 1)]
        assert torch.equal(batches[step].x, digits.images[rows])
        assert torch.equal(batches[step].labels, digits.labels[rows])
    assert batches._images is digits.images, "the images are not copied"


def test_held_out_images_are_not_trained_on(wrapped, digits, quick) -> None:
    learning, held = lesson(wrapped, digits, quick).rows()
    assert len(held) == 16
    assert sorted([*learning.tolist(), *held.tolist()]) == list(range(len(digits)))


def test_running_out_of_memory_changes_no_more_than_rounding(wrapped, digits, quick) -> None:
    cramped = Loop(lesson(wrapped, digits, quick))

    def small_device(_: nn.Module, given: tuple[torch.Tensor]) -> None:
        if len(given[0]) > 20:
            raise torch.OutOfMemoryError("no room for more than 20 images")

    assert cramped.folded is not None
    for network in (cramped.learner.classifier.backbone, cramped.folded.network):
        network.register_forward_pre_hook(small_device)
    for _ in range(2):
        cramped.step()
    assert cramped.position.at_once == 16
    reference = Loop(lesson(wrapped, digits, quick))
    for _ in range(2):
        reference.step()
    for one, other in zip(cramped.learner.parameters(), reference.learner.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    kept, whole = (loop.learner.classifier.prototypes for loop in (cramped, reference))
    torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole, wrapped.classifier.prototypes)


def test_nan_stops_and_keeps_the_last_good_checkpoint(wrapped, digits, quick, tmp_path: Path) -> None:
    loop = Loop(lesson(wrapped, digits, quick))
    step = loop.step

    def poisoned() -> None:
        if loop.position.step == 3:
            with torch.no_grad():
                next(loop.learner.classifier.fc.parameters()).fill_(float("nan"))
        step()

    loop.step = poisoned  # type: ignore[method-assign]
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Diverged, match=r"step 4 of 6.*nan.*learning_rate.*; what was learned in 3 steps is kept"):
        loop.run(path, key="k", every=0)
    saved = read_saved(path, "k")
    assert saved is not None
    assert saved.facts["step"] == 3
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values())
    unsaved = Loop(lesson(wrapped, digits, quick))
    with torch.no_grad():
        next(unsaved.learner.classifier.fc.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match=r"begins anew$"):
        unsaved.step()


def test_what_a_compiler_began_it_continues(
    wrapped, digits, quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of two is faster is measured once: a later answer could be another, and change the last bits."""
    compiled, timed = [], []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))  # noqa: PLW0108 - binds to it
    monkeypatch.setattr(loop_module, "compile_if_faster", lambda *_: timed.append(True) or True)
    path = tmp_path / "checkpoint.safetensors"
    first = Loop(lesson(wrapped, digits, quick))
    first.run(path, key="k", every=0, compiled=True)
    assert first.folded is None and len(timed) == 1
    for asked in (True, False):
        second = Loop(lesson(wrapped, digits, quick))
        second.run(path, key="k", compiled=asked)
        assert second.folded is None and compiled[-1] is second.learner.classifier.backbone
    assert len(timed) == 1 and len(compiled) == 2

    def broken(learner: Learner, _x: torch.Tensor) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(Learner, "embed", broken)
    with pytest.raises(UsageProblem, match=r"no C\+\+ compiler.*delete checkpoint.safetensors"):
        Loop(lesson(wrapped, digits, quick)).run(path, key="k")


def test_a_class_without_members_is_reported(wrapped, digits, quick, tmp_path: Path) -> None:
    with torch.no_grad():
        bias = wrapped.classifier.fc.bias
        assert isinstance(bias, nn.Parameter)
        bias[4] = -1e3
    tuning = Tuning(quick.with_knobs({"learning_rate": 1e-6}))
    course = finetune_once("Small", wrapped, digits, LINF, tuning, tmp_path, Compute()).course
    assert course.curves[-1].unsupported == [4]
    assert "In the last epoch the FC head put no training image into class 4: no batch prototype." in course.reports


def test_who_waits_is_told_where_a_training_is_also_inside_a_step(
    wrapped, digits, quick, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        Loop(lesson(wrapped, digits, quick)).run()
    told = " | ".join(caplog.messages)
    for line in (
        "0/6 steps; measuring after epoch 0, 1 model calls",
        "0/6 steps; epoch 1 of 3, 1 model calls",
        "0/6 steps; epoch 1 of 3, 2 model calls",
        "3/6 steps; epoch 2 of 3, 1 model calls",
        "6/6 steps; measuring after epoch 3, 1 model calls",
    ):
        assert f"{quick.name}: {line}" in told


def test_status_tells_of_what_is_finished_and_what_is_not(wrapped, digits, quick, tmp_path: Path) -> None:
    place = tmp_path / "finetuned"
    whole = finetune_once("Small", wrapped, digits, LINF, Tuning(quick), place, Compute()).folder
    loop = Loop(lesson(wrapped, digits, quick))
    loop.step()
    write_saved(place / "other/checkpoint.safetensors", loop._saved("k"))
    (place / "torn").mkdir()
    (place / "torn/checkpoint.safetensors").write_bytes(b"\xff" * 20)
    assert trainings(place) == [
        {"training": whole.name, "steps": "6/6", "state": "finished"},
        {"training": "other", "steps": "1/6", "state": "unfinished"},
    ]
    assert trainings(tmp_path / "nowhere") == []
    told = CliRunner().invoke(cli, ["status", "--output", str(tmp_path)], catch_exceptions=False).output
    assert "no runs in" in told
    assert [whole.name, "6/6", "finished"] in [line.split() for line in told.splitlines()]


@pytest.mark.parametrize(("asked", "used"), [(16, 16), (None, 48), (64, 48)])
def test_a_continued_training_takes_fewer_images_at_once_if_asked_to(
    wrapped, digits, quick, tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: int | None, used: int
) -> None:
    first, path = Loop(lesson(wrapped, digits, quick, at_once=48)), tmp_path / "checkpoint.safetensors"
    first.run(path, key="k", every=0)
    second = Loop(lesson(wrapped, digits, quick, at_once=asked))
    with caplog.at_level(logging.INFO):
        second.run(path, key="k")
    assert second.position.at_once == used
    assert ("16 images at once as asked for, 48 before" in caplog.text) == (asked == 16)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_step_leaves_a_checkpoint_of_the_whole_step(
    wrapped, digits, quick, tmp_path: Path, number: signal.Signals
) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    first, path = Loop(lesson(wrapped, digits, quick)), tmp_path / "checkpoint.safetensors"
    gradients = first._gradients

    def interrupted(*arguments):
        if first.position.step == 2:
            signal.raise_signal(number)
        return gradients(*arguments)

    first._gradients = interrupted  # type: ignore[method-assign]
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            first.run(path, key="k", every=1000)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    saved = read_saved(path, "k")
    assert saved is not None and saved.facts["step"] == 3
    second = Loop(lesson(wrapped, digits, quick)).run(path, key="k")
    assert state_sha256(second.classifier) == state_sha256(Loop(lesson(wrapped, digits, quick)).run().classifier)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as Python has it, even where whoever started the tests in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_goes_through_at_once_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.came == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
    with Interruption():
        pass
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_signals_are_left_alone(wrapped, digits, quick) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(Loop(lesson(wrapped, digits, quick.with_knobs({"epochs": 1}))).run).result()
    assert len(result.curves) == 2


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_loop_that_was_cut_off_continues_bit_for_bit(wrapped, digits, quick, tmp_path: Path, optimiser: str) -> None:
    recipe = quick.with_knobs({"optimiser": optimiser})
    whole = Loop(lesson(wrapped, digits, recipe)).run()
    path = tmp_path / "checkpoint.safetensors"
    first = Loop(lesson(wrapped, digits, recipe))
    step = first.step

    def cut_off() -> None:
        if first.position.step == 3:
            raise KeyboardInterrupt
        step()

    first.step = cut_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run(path, key="k", every=0)
    second = Loop(lesson(wrapped, digits, recipe)).run(path, key="k", every=1000)
    assert state_sha256(second.classifier) == state_sha256(whole.classifier)
    assert second.curves == whole.curves


def test_prototypes_follow_the_true_classes_or_those_of_the_fc_head(wrapped, digits, quick) -> None:
    moved = {}
    for labels in ("true", "fc"):
        loop = Loop(lesson(wrapped, digits, quick.with_knobs({"prototype_labels": labels, "learning_rate": 1e-9})))
        loop.step()
        moved[labels] = loop.learner.classifier.prototypes.clone()
    assert not torch.equal(moved["true"], moved["fc"]), "the attack made the head wrong somewhere"
    assert not torch.equal(moved["fc"], wrapped.classifier.prototypes)


def test_what_is_carried_for_absent_classes_is_the_last_that_a_batch_had_of_them(wrapped, digits, quick) -> None:
    x = digits.images[:40]
    plain = Learner(trainable(wrapped.classifier, HPMConfig()), (), torch.float32)
    carrying = Learner(trainable(wrapped.classifier, HPMConfig(absent="carry")), (), torch.float32)
    with torch.no_grad():
        seen = carrying.embed(x)
    found = seen.logits.argmax(1)
    some = found < 6  # the head finds no image of the other classes in this batch
    batch = Embedding(*(tensor[some] for tensor in seen))
    for learner in (plain, carrying):
        learner.follow(batch, digits.labels[:40][some], 0.5)
    assert torch.equal(plain.classifier.prototypes, carrying.classifier.prototypes)
    assert torch.equal(plain.classifier.carried, plain.classifier.prototypes)
    for number in range(10):
        mean = seen.features[found == number].mean(0) if number < 6 else wrapped.classifier.carried[number]
        torch.testing.assert_close(carrying.classifier.carried[number], mean)
    alike = Lesson(carrying.classifier.freeze(), digits, LINF, Tuning(quick))
    trained = Loop(alike).run().classifier
    assert not torch.equal(trained.carried, trained.prototypes)
