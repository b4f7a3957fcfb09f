"""Micro-batches change neither the loss nor a gradient: batch prototypes are those of the whole batch."""

from __future__ import annotations

import pytest
import torch

from hpm_robustbench.attacks.ball import Ball
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.memory import is_of_memory
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.inner import attacked
from hpm_robustbench.training.learner import Learner, trainable
from hpm_robustbench.training.memory import fitting
from hpm_robustbench.training.objective import Objective
from hpm_robustbench.training.parts import backward
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

LINF = ThreatModel.parse("Linf", "0.1")


def objective_of(wrapped, digits, control=None, **knobs) -> tuple[Objective, torch.Tensor]:
    """In float64, so that nothing but the mathematics can differ."""
    tuning = Tuning(find_recipe("uniform-v1").with_knobs(knobs), control)
    classifier = trainable(wrapped.classifier, tuning.defence(wrapped.classifier.config))
    classifier.batching = Batching.JOINT
    learner = Learner(classifier, ("backbone", "fc", "tau", "beta"), torch.float32).double()
    with torch.no_grad():
        learner.log_tau.fill_(3.0)  # the fitted one is so small that the softmax of these few images is saturated
    lender = torch.randperm(32, generator=drawn(0, "shuffle", 0)) if control is Control.SHUFFLED else None
    return Objective(learner, tuning, digits.labels[:32], lender), digits.images[:32].double()


@pytest.mark.parametrize("control", [None, *Control])
@pytest.mark.parametrize("loss", ["ce", "trades"])
def test_parts_of_any_size_give_the_loss_and_the_gradients_of_the_whole(wrapped, digits, control, loss) -> None:
    objective, x = objective_of(wrapped, digits, control, loss=loss)
    shown = torch.cat([x, (x + 0.05).clamp(0, 1)]) if objective.two_passes else x
    found = {}
    for at_once in (64, 32, 7, 1):
        objective.learner.zero_grad(set_to_none=True)
        value, seen = backward(objective.learner.embed, shown, objective.loss, at_once)
        grads = {name: p.grad for name, p in objective.learner.named_parameters() if p.grad is not None}
        found[at_once] = value, grads, seen
    whole = found[64]
    assert whole[1]
    for value, grads, seen in found.values():
        assert value == pytest.approx(float(whole[0]), rel=1e-12)
        assert grads.keys() == whole[1].keys()
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, whole[1][name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(seen.features, whole[2].features, rtol=1e-12, atol=1e-12)


def test_a_part_alone_would_have_given_other_gradients(wrapped, digits) -> None:
    """So the equality above is not an empty one: the batch really is coupled."""
    objective, x = objective_of(wrapped, digits)
    backward(objective.learner.embed, x, objective.loss, 32)
    first = next(objective.learner.classifier.backbone.parameters())
    whole = first.grad.clone()
    objective.learner.zero_grad(set_to_none=True)
    for rows in torch.split(torch.arange(32), 8):
        part = Objective(objective.learner, objective.tuning, objective.labels[rows])
        backward(part.learner.embed, x[rows], lambda seen, part=part: part.loss(seen) / 4, 8)
    assert not torch.allclose(first.grad, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("view", ["ste", "soft", "fc"])
def test_the_inner_attack_stays_in_its_budget_raises_its_loss_and_needs_no_whole_batch(wrapped, digits, view) -> None:
    objective, x = objective_of(wrapped, digits, attack_view=view, attack_steps=5)
    moved = [attacked(objective, x, LINF, drawn(0, "start", 0), at_once) for at_once in (32, 5)]
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-9)
    assert (moved[0] - x).abs().max() <= 0.1 + 1e-6
    assert moved[0].min() >= 0
    assert moved[0].max() <= 1
    start = Ball(x, LINF).random_point(drawn(0, "start", 0))
    with torch.no_grad():
        losses = [float(objective.attack_loss(objective.learner.embed(point), None)) for point in (start, moved[0])]
    assert losses[1] > losses[0]
    assert all(p.grad is None for p in objective.learner.parameters())


def test_shuffled_memberships_are_those_of_another_image(wrapped, digits) -> None:
    objective, x = objective_of(wrapped, digits, Control.SHUFFLED)
    seen = objective.learner.embed(x)
    own = Objective(objective.learner, objective.tuning, objective.labels, torch.arange(32))
    plain = objective.learner.answer(seen)
    assert torch.equal(own.answer(seen), plain)
    assert not torch.allclose(objective.answer(seen), plain)
    assert torch.equal(objective.answer(seen, "fc"), seen.logits)


def test_out_of_memory_halves_what_is_held_at_once() -> None:
    tried = []

    def attempt(at_once: int) -> str:
        tried.append(at_once)
        if at_once > 3:
            raise torch.OutOfMemoryError("out of memory")
        return "done"

    assert fitting(20, attempt) == (3, "done")
    assert tried == [20, 10, 5, 3]


@pytest.mark.parametrize(
    "told",
    [
        "CUDA error: out of memory",
        "MPS backend out of memory (MPS allocated: 8 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory",
    ],
)
def test_memory_ends_in_many_words(told: str) -> None:
    assert is_of_memory(RuntimeError(told))
    assert not is_of_memory(RuntimeError("CUDNN_STATUS_BAD_PARAM"))
    assert not is_of_memory(ValueError("a memory of something"))


def test_not_even_one_image_fits_and_other_errors_pass() -> None:
    def too_large(at_once: int) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    def wrong(at_once: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(UsageProblem, match=r"one at a time.*--tune batch_size"):
        fitting(4, too_large)
    with pytest.raises(RuntimeError, match="shapes differ"):
        fitting(4, wrong)
