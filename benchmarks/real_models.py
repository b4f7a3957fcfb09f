"""Put small networks on trial, on real CIFAR-10 and MNIST images: published ones, and one of benchmarks/base_model.py.

    python -m benchmarks.real_models --data DIR --output . [--only NAME ...] [--n-ex 1000]
    python -m benchmarks.real_models --data DIR --only CrownResNet2B-Linf2 --recipe uniform-v1 --controls

DIR holds ``weights/``, ``cifar10/`` (lossless mosaics of 2,500 images) and ``mnist/``. Each model goes the same road as
``hpm-bench run --factory``, which takes every further option; repeating the command continues where it stopped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar10 import write_cifar10


@dataclass(frozen=True)
class RealModel:
    """A network: how to build it, its checkpoint, the track it is tried on, and where it comes from."""

    factory: str
    weights: str
    dataset: str
    eps: str
    architecture: str
    title: str
    authors: str
    link: str
    license: str


_CROWN = {
    "title": "Verification benchmark networks of alpha-beta-CROWN",
    "authors": "Verified-Intelligence",
    "link": "https://github.com/Verified-Intelligence/alpha-beta-CROWN",
    "license": "BSD-3-Clause",
}
_RESNETS = {
    "title": "Proper implementation of ResNets for CIFAR-10",
    "authors": "Yerlan Idelbayev",
    "link": "https://github.com/akamaster/pytorch_resnet_cifar10",
    "license": "BSD-2-Clause",
}
_ADVERTORCH = {
    "title": "advertorch v0.1: An Adversarial Robustness Toolbox based on PyTorch",
    "authors": "Gavin Weiguang Ding, Luyu Wang, Xiaomeng Jin",
    "link": "https://github.com/BorealisAI/advertorch",
    "license": "LGPL-3.0",
}
_AUTOATTACK = {
    "title": "AutoAttack's standard-trained test model",
    "authors": "Francesco Croce, Matthias Hein",
    "link": "https://github.com/fra31/auto-attack",
    "license": "MIT",
}
_OWN = {
    "title": "Trained by benchmarks/base_model.py, adversarially and from nothing",
    "authors": "the authors of hpm-robustbench",
    "link": "",
    "license": "MIT",
}
_HERE = "benchmarks.real_networks"
MODELS = {
    "CrownResNet4B-Linf2": RealModel(
        f"{_HERE}:resnet4b", "resnet4b.pth", "cifar10", "2/255", "ResNet-4B (124k parameters)", **_CROWN
    ),
    "CrownResNet2B-Linf2": RealModel(
        f"{_HERE}:resnet2b", "resnet2b.pth", "cifar10", "2/255", "ResNet-2B (112k parameters)", **_CROWN
    ),
    "CrownCnnA-Adversarial": RealModel(
        f"{_HERE}:cnn_a", "cifar_cnn_a_adv.model", "cifar10", "2/255", "CNN-A (215k parameters)", **_CROWN
    ),
    "CifarResNet20-Standard": RealModel(
        f"{_HERE}:resnet20", "resnet20-12fca82f.th", "cifar10", "8/255", "ResNet-20", **_RESNETS
    ),
    "MnistLeNet5-Adversarial": RealModel(
        f"{_HERE}:lenet5", "mnist_lenet5_advtrained.pt", "mnist", "0.3", "LeNet-5 (648k parameters)", **_ADVERTORCH
    ),
    "MnistLeNet5-Standard": RealModel(
        f"{_HERE}:lenet5", "mnist_lenet5_clntrained.pt", "mnist", "0.3", "LeNet-5 (648k parameters)", **_ADVERTORCH
    ),
    "AutoAttackResNet18-Standard": RealModel(
        "pyautoattack.examples.resnet:ResNet18",
        "pyautoattack:examples/model_test.pt",
        "cifar10",
        "8/255",
        "ResNet-18",
        **_AUTOATTACK,
    ),
    "Base2026WRN-10-1": RealModel(
        "benchmarks.base_model:wide_resnet",
        "benchmarks:wrn-10-1.safetensors",
        "cifar10",
        "8/255",
        "WideResNet-10-1 (78k parameters)",
        **_OWN,
    ),
}


def weights_path(model: RealModel, data: Path) -> Path:
    """The checkpoint: in the data folder, inside the installed AutoAttack package, or here."""
    package, _, name = model.weights.rpartition(":")
    if not package:
        return data / "weights" / name
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / name


def open_images(dataset: str, data: Path, folder: Path) -> Path:
    """What ``--data`` takes for a dataset of these models; CIFAR-10 is put together in the folder."""
    return data / dataset if dataset == "mnist" else write_cifar10(data / "cifar10", folder / "cifar10.npz")


def command(name: str, model: RealModel, data: Path, images: Path, about: Path, arguments: list[str]) -> list[str]:
    """The ``hpm-bench`` call that tries a model."""
    facts = {key: getattr(model, key) for key in ("architecture", "title", "authors", "link", "license")}
    about.write_text(json.dumps({key: fact for key, fact in facts.items() if fact}))
    run = [sys.executable, "-m", "hpm_robustbench", "run", "--name", name, "--factory", model.factory]
    track = ["--weights", str(weights_path(model, data)), "--dataset", model.dataset, "--eps", model.eps]
    return [*run, *track, "--data", str(images), "--about", str(about), *arguments]


def main() -> None:
    """Try each model in turn; stop at the first failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path())
    parser.add_argument("--only", nargs="*", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--n-ex", type=int, default=1000)
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        datasets = {MODELS[name].dataset for name in given.only}
        images = {dataset: open_images(dataset, given.data, Path(folder)) for dataset in datasets}
        for name in given.only:
            model = MODELS[name]
            arguments = ["--output", str(given.output), "--n-ex", str(given.n_ex), *more]
            about = Path(folder) / "about.json"
            subprocess.run(command(name, model, given.data, images[model.dataset], about, arguments), check=True)


if __name__ == "__main__":
    main()
