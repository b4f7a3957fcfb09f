"""A small trained classifier on digits, wrapped, in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpm_robustbench.data import ExampleSet, open_dataset
from hpm_robustbench.load import Wrapped, wrap


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


@pytest.fixture(scope="session")
def digits() -> tuple[ExampleSet, ExampleSet]:
    """Test and training examples."""
    source = open_dataset("digits")
    train = source.train()
    assert train is not None
    return source.test(), train


@pytest.fixture(scope="session")
def trained(digits: tuple[ExampleSet, ExampleSet]) -> dict[str, torch.Tensor]:
    """Weights of ``network`` after some seconds of noisy training, so that attacks meet some resistance."""
    train = digits[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = network()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(80):
            optimiser.zero_grad()
            noisy = train.images + 0.1 * torch.randn_like(train.images).sign()
            F.cross_entropy(net(noisy.clamp(0, 1)), train.labels).backward()
            optimiser.step()
    return net.state_dict()


@pytest.fixture
def plain(trained: dict[str, torch.Tensor]) -> nn.Module:
    """The network itself."""
    net = network()
    net.load_state_dict(trained)
    return net.eval()


@pytest.fixture
def wrapped(plain: nn.Module, digits: tuple[ExampleSet, ExampleSet]) -> Wrapped:
    """The network with HPM on it."""
    return wrap(plain, digits[1])
