"""Train a small network of RobustBench's own kind adversarially, from nothing, with the project's own loop.

    python -m benchmarks.base_model --data DIR --output DIR [--tune epochs=30]
    python -m benchmarks.real_models --data DIR --only Base2026WRN-10-1 --recipe uniform-v1 --controls

The architecture is RobustBench's WideResNet (depth 10, widening 1), the track Linf 8/255 on CIFAR-10, the loop that of
``hpm-bench finetune`` under the control ``fc``: adversarial training of the FC head and all below it, as by Madry et
al., ICLR 2018. It is what a CPU core can do in an hour or two, and no rival of the published networks. Repeating the
command continues. Left are the weights, and beside them how they were made and the curves. ``wrn-10-1.safetensors``
and ``wrn-10-1.json`` here are what it left on one core: 47.6 % of 500 held-out images right, 28.0 % under
ten steps of PGD (training itself takes two).

The loop never changes what a normalisation layer takes for mean and variance, so these are measured before, on the
network as it was drawn (as by Krähenbühl et al., "Data-dependent initializations", ICLR 2016).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.cifar10 import images_of
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.load import wrap
from hpm_robustbench.robustbench_compat import import_robustbench
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.finetuned import finetune_once
from hpm_robustbench.training.kept import Finetuned
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

NAME = "Base2026WRN-10-1"
STEM = "wrn-10-1"
THREAT = ThreatModel.parse("Linf", "8/255")
FROM_NOTHING = {"epochs": 15, "learning_rate": 0.1, "attack_steps": 2, "attack_step": 0.75, "attack_view": "fc"}
_MEASURED = 1000


def wide_resnet() -> nn.Module:
    """RobustBench's own, which takes images in [0, 1] as they are."""
    import_robustbench()
    architectures = importlib.import_module("robustbench.model_zoo.architectures.wide_resnet")
    network: nn.Module = architectures.WideResNet(num_classes=10, depth=10, widen_factor=1)
    return network


def drawn(x: Tensor, seed: int) -> nn.Module:
    """A network with random weights, whose normalisation layers normalise ``x``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = wide_resnet()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(x)
    return network.eval()


def write(finetuned: Finetuned, tuning: Tuning, output: Path) -> Path:
    """Keep the network, without what HPM has beside it, under the names that its architecture gives its weights."""
    parts = finetuned.classifier
    state = {**parts.backbone.state_dict(), **{f"fc.{name}": tensor for name, tensor in parts.fc.state_dict().items()}}
    wide_resnet().load_state_dict(state)
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})
    facts = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "architecture": "RobustBench's WideResNet, depth 10, widening 1",
        "threat": str(THREAT),
        "tuning": tuning.to_json(),
        "course": finetuned.course.model_dump(mode="json"),
    }
    write_atomic(output / f"{STEM}.json", json.dumps(facts, indent=1) + "\n")
    write_atomic(output / f"{STEM}.safetensors", weights)
    return output / f"{STEM}.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Holds cifar10/, as for benchmarks.real_models.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tune", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--images", type=int, help="Only the first so many.")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    knobs = {**FROM_NOTHING, **dict(knob.split("=", 1) for knob in chosen.tune)}
    tuning = Tuning(find_recipe("uniform-v1").with_knobs(knobs), Control.FC, chosen.seed)
    training = images_of(chosen.data / "cifar10", "train", chosen.images)
    wrapped = wrap(drawn(training.images[:_MEASURED], chosen.seed), training, keep=chosen.output / "prototypes")
    place = chosen.output / "finetuned"
    print(write(finetune_once(NAME, wrapped, training, THREAT, tuning, place, Compute()), tuning, chosen.output))


if __name__ == "__main__":
    main()
