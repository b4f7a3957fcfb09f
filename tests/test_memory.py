"""Where memory ends in the middle of a trial, a person is told what needs less of it, and nothing finished is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.ledger.journal import overview
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


def test_a_trial_says_what_needs_less_and_goes_on_from_where_it_was(tmp_path: Path) -> None:
    digits = next(spec for spec in builtin_specs() if spec.dataset == "digits")
    spec = replace(digits, threat=ThreatModel.parse("Linf", "1/2"))
    options = RunOptions(n_ex=12, batch_size=12, batchings=(Batching.SOLO,), output=tmp_path)

    def greedy() -> nn.Module:
        return Greedy(load_weights(digits, tmp_path).model, 8)

    with pytest.raises(UsageProblem, match=r"got no room for \d+ images\. Next: .*--batch-size") as told:
        evaluate(spec, options, model=greedy())
    assert told.value.wanted == "memory on cpu for 12 images at a time"
    (begun,) = overview(tmp_path / "runs")
    assert begun["steps"].startswith("1/"), "the clean answers, which need no gradients, are kept"
    assert evaluate(spec, replace(options, batch_size=8), model=greedy()).card.hpm_bench is not None


def test_under_joint_the_option_is_the_batchs_own(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="--joint-size"), enough_memory("cpu", 128, "--joint-size"):
        raise MemoryError


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), enough_memory("cpu", 8):
        raise RuntimeError("shapes cannot be multiplied")
