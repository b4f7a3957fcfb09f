"""Known-answer worlds, and a small convolutional net that is robust for some images and not for others."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import worlds as known_worlds
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from hpm_robustbench.threat import ThreatModel


@pytest.fixture(scope="session")
def worlds() -> ModuleType:
    return known_worlds


@pytest.fixture(params=[("Linf", "0.1"), ("L2", "0.4")], ids=["Linf", "L2"])
def threat(request: pytest.FixtureRequest) -> ThreatModel:
    return ThreatModel.parse(*request.param)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """All scans as images [N 1 8 8] in [0, 1], and their labels."""
    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(data.target)


@pytest.fixture(scope="session")
def digits_net(worlds: ModuleType, digits: tuple[Tensor, Tensor]) -> nn.Module:
    """Six epochs of single-step adversarial training on the first 1,500 digits (Wong et al. 2020)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(6):
            for rows in torch.randperm(1500).split(50):
                x, y = digits[0][rows], digits[1][rows]
                noise = (0.2 * torch.rand_like(x) - 0.1).requires_grad_()
                (gradient,) = torch.autograd.grad(functional.cross_entropy(net(x + noise), y), noise)
                moved = (noise.detach() + 0.12 * gradient.sign()).clamp(-0.1, 0.1)
                optimizer.zero_grad()
                functional.cross_entropy(net((x + moved).clamp(0, 1)), y).backward()
                optimizer.step()
    return worlds.Wrapped(net.eval().requires_grad_(False))
