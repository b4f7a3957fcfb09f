"""Where memory ends in the middle of a trial, a person is told what needs less of it, and nothing finished is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpm_robustbench import pipeline
from hpm_robustbench.case import prepare
from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.memory import enough_memory
from hpm_robustbench.pipeline import evaluate
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, ThreatModel
from hpm_robustbench.weights import load_weights
from hpm_robustbench.zoo.builtin import builtin_specs


class Greedy(nn.Module):
    """A network for which memory ends with gradients of more than some images at once."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad and len(x) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(x)} images\nand many more lines")
        return self.network(x)


SPEC = replace(
    next(spec for spec in builtin_specs() if spec.dataset == "digits"), threat=ThreatModel.parse("Linf", "1/2")
)


def greedy(most: int, tmp_path: Path) -> nn.Module:
    return Greedy(load_weights(SPEC, tmp_path).model, most)


def test_a_trial_says_what_needs_less_and_the_same_command_continues(tmp_path: Path) -> None:
    options = RunOptions(n_ex=12, batch_size=12, batchings=(Batching.SOLO,), output=tmp_path)
    with pytest.raises(UsageProblem, match=r"got no room for \d+ images\. Next: .*--batch-size") as told:
        evaluate(SPEC, options, model=greedy(8, tmp_path))
    assert told.value.wanted == "memory for 12 images at a time"
    (clean,) = (tmp_path / "runs").rglob("*clean*")
    before = clean.stat().st_mtime_ns
    assert evaluate(SPEC, options, model=greedy(12, tmp_path)).card.hpm_bench is not None
    assert clean.stat().st_mtime_ns == before, "the clean answers need no gradients, and are not asked for again"


def test_under_joint_the_option_is_the_batchs_own(tmp_path: Path) -> None:
    case = prepare(SPEC, RunOptions(n_ex=4, joint_size=3, output=tmp_path))
    told = {}
    for plan, _ in case.trials:
        with pytest.raises(UsageProblem) as refusal, pipeline._memory_for(plan):
            raise MemoryError
        told[plan.batching] = (refusal.value.wanted, "--joint-size" in refusal.value.next_step)
    assert told == {
        Batching.SOLO: ("memory for 250 images at a time", False),
        Batching.JOINT: ("memory for 3 images at a time", True),
    }


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), enough_memory(8):
        raise RuntimeError("shapes cannot be multiplied")
