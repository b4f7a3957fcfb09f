"""A GPU learns what a CPU learns, continues where it was cut off, and finds out by itself how much fits into it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training.compute import compile_if_faster, precision_on, prefer_channels_last
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.memory import fitting
from hpm_robustbench.training.recipe import Tuning, find_recipe

pytestmark = pytest.mark.cuda
LINF = ThreatModel.parse("Linf", "0.1")


@pytest.fixture(autouse=True)
def _exactly() -> Iterator[None]:
    """As where a model is fine-tuned."""
    with full_precision_kernels():
        yield


@pytest.fixture
def on_gpu(wrapped: Wrapped, digits: ExampleSet) -> Wrapped:
    return wrap(copy.deepcopy(wrapped.base), digits, HPMConfig(), device="cuda")


def lesson(wrapped: Wrapped, digits: ExampleSet, recipe, precision: torch.dtype = torch.float32) -> Lesson:
    return Lesson(wrapped.classifier, digits, LINF, Tuning(recipe), precision)


def learned(loop: Loop) -> list[Tensor]:
    return [parameter.detach().float().cpu() for parameter in loop.learner.parameters()]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_that_was_cut_off_continues_bit_for_bit(
    on_gpu, digits, quick, tmp_path: Path, precision: torch.dtype
) -> None:
    whole = Loop(lesson(on_gpu, digits, quick, precision)).run()
    path, first = tmp_path / "checkpoint.safetensors", Loop(lesson(on_gpu, digits, quick, precision))
    step = first.step

    def cut_off() -> None:
        if first.position.step == 3:
            raise KeyboardInterrupt
        step()

    first.step = cut_off  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run(path, key="k", every=0)
    second = Loop(lesson(on_gpu, digits, quick, precision)).run(path, key="k", every=1000)
    assert state_sha256(second.classifier) == state_sha256(whole.classifier)
    assert second.curves == whole.curves


def test_a_gpu_learns_what_a_cpu_learns(wrapped, on_gpu, digits, quick) -> None:
    loops = [Loop(lesson(each, digits, quick)) for each in (wrapped, on_gpu)]
    for loop in loops:
        loop.step()
        loop.step()
    for one, other in zip(*map(learned, loops), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_half_precision_is_the_networks_alone(on_gpu, digits, quick) -> None:
    precision = precision_on(torch.device("cuda"), quick)
    if torch.cuda.get_device_capability() < (8, 0):
        assert precision is torch.float32
        pytest.skip("a GPU without units for bfloat16")
    assert precision is torch.bfloat16
    loop = Loop(lesson(on_gpu, digits, quick, precision))
    prefer_channels_last(loop.learner.classifier, loop.batches[0].x)
    result = loop.run()
    assert {tensor.dtype for tensor in result.classifier.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }
    exact = Loop(lesson(on_gpu, digits, quick)).run()
    moved = float((exact.classifier.prototypes - on_gpu.classifier.prototypes).norm())
    assert float((result.classifier.prototypes - exact.classifier.prototypes).norm()) < 0.2 * moved


def test_memory_that_ends_on_a_gpu_halves_what_passes_together() -> None:
    most = torch.cuda.get_device_properties(0).total_memory // 3  # two fit, if nobody else is there; four never do
    at_once, held = fitting(16, lambda n: torch.empty(n * most, dtype=torch.uint8, device="cuda"))
    assert at_once in (1, 2)
    assert len(held) == at_once * most


@pytest.mark.filterwarnings("default")  # what a compiler warns of is its own affair
def test_a_compiler_is_measured_and_changes_rounding_alone(
    on_gpu, digits, quick, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recipe = find_recipe("uniform-v1").with_knobs({"batch_size": 64, "attack_steps": 1})
    plain, other = (Loop(lesson(on_gpu, digits, recipe)) for _ in range(2))
    faster = compile_if_faster(other.learner, other.folded, other.batches[0].x)
    assert any("s compiled; the faster is used" in message for message in caplog.messages)
    if not faster:
        other.learner.classifier.backbone.compile()
    other.position.compiled = True
    plain.step()
    other.step()
    for one, two in zip(*map(learned, (plain, other)), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)
