"""Fine-tuned classifiers whose weights are kept here can be loaded, and are what the record of their training tells."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cifar10 import images_of
from wide_resnets import wide_resnet

import hpm_robustbench
from hpm_robustbench.hub.description import CONFIG, Description, read_description

FOLDERS = sorted((Path(__file__).parents[1] / "benchmarks" / "fine_tuned").iterdir())
of_each = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


def read(folder: Path) -> tuple[Description, dict[str, Any]]:
    description = read_description((folder / CONFIG).read_bytes(), str(folder))
    return description, json.loads((folder / "training.json").read_text())


@of_each
def test_they_are_loaded_as_they_were_published(folder: Path) -> None:
    description, training = read(folder)
    classifier = hpm_robustbench.HPMClassifier.from_pretrained(str(folder), network=wide_resnet())
    logits = classifier(torch.rand(8, *description.images.image_shape))
    assert logits.isfinite().all() and logits.argmax(dim=1).unique().numel() > 1
    assert description.tuned_by == training["tuning"]["options"]
    assert description.defence == training["defence"]
    assert folder.name == f"{training['model']}_{training['tuning']['name']}"


@pytest.mark.slow
@pytest.mark.skipif("HPM_BENCH_REAL_DATA" not in os.environ, reason="HPM_BENCH_REAL_DATA is not set")
@of_each
def test_they_answer_the_held_out_images_as_their_training_measured_it(folder: Path) -> None:
    _, training = read(folder)
    images = images_of(Path(os.environ["HPM_BENCH_REAL_DATA"]) / "cifar10", "train")
    aside = training["images"]["held_out"]
    rows = torch.arange(aside) * len(images) // aside
    classifier = hpm_robustbench.HPMClassifier.from_pretrained(str(folder), network=wide_resnet())
    with torch.no_grad():
        seen = classifier.embed(images.images[rows])
        answers = seen.logits if training["tuning"]["control"] == "fc" else classifier(images.images[rows])
    right = (answers.argmax(dim=1) == images.labels[rows]).float().mean()
    assert float(right) == pytest.approx(training["curves"][-1]["clean"], abs=1e-6)
