"""A small model of one's own, on disk, and the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from hpm_robustbench.data import open_dataset

FACTORY = """
import torch
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 10),
    )

class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x):
        return self.net(x).softmax(1)

class NotANumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x):
        return self.net(x) * float("nan")

class CutOff(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x):
        return self.net(x.detach())

class NoHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small()
    def forward(self, x):
        return 2 * self.net(x)

def seven_classes():
    net = small()
    net[6] = nn.Linear(24, 7)
    return net

def text():
    return "not a network"
"""


@dataclass(frozen=True)
class Place:
    """A folder with a factory module, a checkpoint and arrays."""

    folder: Path
    weights: Path
    data: Path

    def run(self, *arguments: str | Path, factory: str = "small") -> list[str]:
        """Arguments of ``hpm-bench run`` for a factory of the module, on 12 images in two shards; later ones win."""
        own = ["--factory", f"own:{factory}", "--weights", self.weights, "--data", self.data, "--dataset", "digits"]
        small = ["--eps", "0.14", "--n-ex", "12", "--batch-size", "6", "--joint-size", "6", "--workers", "1"]
        return ["run", *map(str, [*own, *small, *arguments])]

    def environment(self) -> dict[str, str]:
        """Of a process that can import the factory."""
        return {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Train a small digits net for a few seconds and save it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(FACTORY)
    scope: dict[str, Callable[[], torch.nn.Module]] = {}
    exec(FACTORY, scope)
    source = open_dataset("digits")
    test, train = source.test(), source.train()
    assert train is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = scope["small"]()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(30):
            optimiser.zero_grad()
            F.cross_entropy(net(train.images), train.labels).backward()
            optimiser.step()
    save_file(net.state_dict(), folder / "own.safetensors")
    arrays = {"x_test": test.images, "y_test": test.labels, "x_train": train.images, "y_train": train.labels}
    np.savez(folder / "arrays.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    return Place(folder, folder / "own.safetensors", folder / "arrays.npz")


@dataclass(frozen=True)
class Result:
    """What a process said and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def hpm_bench(place: Place) -> Callable[..., Result]:
    """Call the installed command line as a person would."""

    def call(*arguments: str | Path, **variables: str) -> Result:
        command = [sys.executable, "-m", "hpm_robustbench", *map(str, arguments)]
        environment = {**place.environment(), **variables}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    return call
