"""A small wrapped network on a few digits, and a recipe of seconds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpm_robustbench.data import ExampleSet, open_dataset
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training.recipe import Recipe, find_recipe

LINF = ThreatModel.parse("Linf", "0.1")


@pytest.fixture(scope="session")
def digits() -> ExampleSet:
    train = open_dataset("digits").train()
    assert train is not None
    return train.head(160)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10)
    )


@pytest.fixture(scope="session")
def trained(digits: ExampleSet) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = network()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(25):
            optimiser.zero_grad()
            F.cross_entropy(net(digits.images), digits.labels).backward()
            optimiser.step()
    return net.state_dict()


@pytest.fixture
def wrapped(trained: dict[str, torch.Tensor], digits: ExampleSet) -> Wrapped:
    net = network()
    net.load_state_dict(trained)
    return wrap(net, digits, HPMConfig())


@pytest.fixture
def quick() -> Recipe:
    """Six steps in three epochs; the rest as the default recipe has it."""
    knobs = {"epochs": 3, "batch_size": 64, "attack_steps": 2, "average_share": 0.5, "prototype_momentum": 0.8}
    return find_recipe("uniform-v1").with_knobs(knobs)
