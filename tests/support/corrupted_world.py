"""Ten-pixel images whose brightest pixel is their class, and corruptions that move it for a known number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hpm_robustbench.data import DataSource
from hpm_robustbench.threat import Corruptions, Dataset

N = 12
DATASET = Dataset("pixels", 10, (1, 2, 5))
LABELS = np.arange(N) % 10
EVERY = [(kind, severity) for kind in Corruptions.kinds for severity in Corruptions.severities]


def n_moved(kind: str, severity: int) -> int:
    """How many images, the first ones, a corruption turns into images of the next class."""
    return (2 * Corruptions.kinds.index(kind) + severity) % (N + 1)


def expected_right() -> dict[str, list[int]]:
    """Correct answers of a classifier that sees the brightest pixel."""
    return {kind: [N - n_moved(kind, severity) for severity in Corruptions.severities] for kind in Corruptions.kinds}


def images_of(labels: np.ndarray) -> np.ndarray:
    """uint8 images N H W C."""
    images = np.zeros((len(labels), 10), np.uint8)
    images[np.arange(len(labels)), labels] = 255
    return images.reshape(-1, 2, 5, 1)


def write_set(folder: Path, labels: np.ndarray = LABELS) -> Path:
    """The corrupted images in the layout of CIFAR-10-C."""
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.tile(labels, 5))
    for kind in Corruptions.kinds:
        severities = []
        for severity in Corruptions.severities:
            seen = labels.copy()
            seen[: n_moved(kind, severity)] = (seen[: n_moved(kind, severity)] + 1) % 10
            severities.append(images_of(seen))
        np.save(folder / f"{kind}.npy", np.concatenate(severities))
    return folder


def tensors(labels: np.ndarray) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(images_of(labels)).permute(0, 3, 1, 2) / 255
    return images, torch.from_numpy(labels.astype(np.int64))


def clean_source() -> DataSource:
    """The same images uncorrupted, and each class five times for training, a little dimmer."""
    images, labels = tensors(np.arange(50) % 10)
    test = tensors(LABELS)
    return DataSource(DATASET, lambda n: (test[0][:n], test[1][:n]), lambda n: (0.9 * images, labels))


def classifier() -> nn.Module:
    """Sees the brightest pixel."""
    head = nn.Linear(10, 10)
    with torch.no_grad():
        head.weight.copy_(torch.eye(10))
        head.bias.zero_()
    return nn.Sequential(nn.Flatten(), head)
