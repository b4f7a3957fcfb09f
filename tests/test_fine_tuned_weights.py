"""Fine-tuned classifiers kept here are loaded and tried as what the record of their training tells."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from cifar10 import images_of, write_cifar10
from real_networks import cnn_a, resnet2b
from torch import nn
from wide_resnets import wide_resnet

from hpm_robustbench import HPMClassifier
from hpm_robustbench.case import prepare
from hpm_robustbench.hub.description import CONFIG, Description, read_description
from hpm_robustbench.request.models import own_spec
from hpm_robustbench.request.options import tuning_of
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching
from hpm_robustbench.training.header import read_record
from hpm_robustbench.training.recipe import Tuning, find_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
REAL_DATA = Path(os.environ.get("HPM_BENCH_REAL_DATA", ""))


class Base(NamedTuple):
    """What classifiers were fine-tuned from: the untrained network, its checkpoint, and the budget."""

    network: Callable[[], nn.Module]
    checkpoint: Path
    eps: str


BASES = {
    "Base2026WRN-10-1": Base(wide_resnet, BENCHMARKS / "wrn-10-1.safetensors", "8/255"),
    "CrownResNet2B-Linf2": Base(resnet2b, REAL_DATA / "weights" / "resnet2b.pth", "2/255"),
    "CrownCnnA-Adversarial": Base(cnn_a, REAL_DATA / "weights" / "cifar_cnn_a_adv.model", "2/255"),
}
FOLDERS = sorted(path.parent for path in (BENCHMARKS / "fine_tuned").glob(f"*/{CONFIG}"))
of_each = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
with_real_images = pytest.mark.skipif("HPM_BENCH_REAL_DATA" not in os.environ, reason="HPM_BENCH_REAL_DATA is not set")


def read(folder: Path) -> tuple[HPMClassifier, Description, dict[str, Any]]:
    told = read_record(folder)
    assert told is not None
    description = read_description((folder / CONFIG).read_bytes(), str(folder))
    network = BASES[description.base.model].network()
    return HPMClassifier.from_pretrained(str(folder), network=network), description, told["facts"]


@of_each
def test_they_are_loaded_as_they_were_published(folder: Path) -> None:
    classifier, description, facts = read(folder)
    colours = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3)
    logits = classifier(colours[:, :, None, None].expand(-1, *description.images.image_shape))
    assert logits.isfinite().all() and logits.argmax(dim=1).unique().numel() > 1
    tuning = tuning_of(description.tuned_by, seed=0)
    assert facts["asked"]["recipe, knobs or seed"] == tuning.to_json()
    assert classifier.config == tuning.defence(RunOptions().defence)
    assert folder.name == f"{description.base.model}_{tuning.name}"


@pytest.mark.slow
@with_real_images
@of_each
def test_they_answer_the_held_out_images_as_their_training_measured_it(folder: Path) -> None:
    classifier, description, facts = read(folder)
    images = images_of(REAL_DATA / "cifar10", "train")
    aside = facts["made"]["held_out"]
    rows = torch.arange(aside) * len(images) // aside
    with torch.no_grad():
        seen = classifier.embed(images.images[rows])
        answers = seen.logits if "fc" in description.tuned_by else classifier(images.images[rows])
    right = (answers.argmax(dim=1) == images.labels[rows]).float().mean()
    assert float(right) == pytest.approx(facts["curves"][-1]["clean"], abs=1e-6)


@pytest.mark.slow
@with_real_images
@pytest.mark.parametrize("name", BASES)
def test_all_of_a_base_go_on_trial_without_being_trained(name: str, tmp_path: Path) -> None:
    base = BASES[name]
    data = write_cifar10(REAL_DATA / "cifar10", tmp_path / "cifar10.npz")
    spec = own_spec(
        f"{base.network.__module__}:{base.network.__name__}",
        str(base.checkpoint),
        name=name,
        head=None,
        about=None,
        dataset="cifar10",
        threat_model=None,
        eps=base.eps,
    )
    tuning = Tuning(find_recipe("uniform-v1"))
    options = RunOptions(
        batchings=(Batching.SOLO,),
        tuning=tuning,
        controls=True,
        data=data,
        output=tmp_path,
        finetuned=BENCHMARKS / "fine_tuned",
    )
    cases = list(prepare(spec, options, train=False).all_cases())
    assert [case.spec.name for case in cases] == [spec.tuned(each.name).name for each in tuning.with_controls()]
    assert [case.kept.folder.name for case in cases if case.kept] == [case.spec.name for case in cases]
    assert not (tmp_path / "finetuned").exists()
