"""The base model that the project trained itself: its weights are those that its record tells of, and can be loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from wide_resnets import wide_resnet

from hpm_robustbench.request.options import tuning_of

PLACE = Path(__file__).parents[1] / "benchmarks"
WEIGHTS = PLACE / "wrn-10-1.safetensors"


def test_the_weights_are_the_ones_that_the_record_is_about() -> None:
    record = json.loads((PLACE / "wrn-10-1.json").read_text())
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == record["sha256"]
    curves = record["course"]["curves"]
    assert len(curves) == 1 + record["tuning"]["recipe"]["epochs"]
    assert curves[-1]["clean"] > curves[-1]["robust"] > 2 * curves[0]["robust"]


def test_what_it_was_asked_for_can_be_asked_for_again() -> None:
    told = json.loads((PLACE / "wrn-10-1.json").read_text())["tuning"]
    assert tuning_of(told["options"], told["seed"]).to_json() == told


def test_they_fit_robustbench_s_own_architecture() -> None:
    network = wide_resnet().eval()
    network.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    with torch.no_grad():
        logits = network(torch.rand(64, 3, 32, 32))
    assert logits.isfinite().all()
    assert logits.argmax(dim=1).unique().numel() > 1
