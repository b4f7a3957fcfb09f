"""A small classifier in float64: images [N, 3, 2, 2], five features, four classes."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from hpm_robustbench.hpm.backbone import split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.threat import Batching

IMAGE_SHAPE = (3, 2, 2)
N_FEATURES = 5
N_CLASSES = 4


def make_net(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(12, N_FEATURES),
            "activation": nn.Tanh(),
            "fc": nn.Linear(N_FEATURES, N_CLASSES),
        }
        net = nn.Sequential(OrderedDict(layers))
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    return net.eval()


def make_images(n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, *IMAGE_SHAPE), generator=generator, dtype=torch.float64)


def make_classifier(config: HPMConfig | None = None, batching: Batching = Batching.SOLO) -> HPMClassifier:
    """One classifier per configuration and batching; the weights are always the same."""
    generator = torch.Generator().manual_seed(2)
    prototypes = torch.randn((N_CLASSES, N_FEATURES), generator=generator)
    parts = split(make_net(seed=0), IMAGE_SHAPE, N_CLASSES)
    classifier = HPMClassifier(parts, prototypes, config or HPMConfig(), tau=0.7).double().eval()
    reference = make_images(6, seed=3) if batching is Batching.REFERENCE else None
    return classifier.with_batching(batching, reference)


@pytest.fixture
def net():
    return make_net


@pytest.fixture
def images():
    return make_images


@pytest.fixture
def classifier():
    return make_classifier
