"""CIFAR-10 from lossless mosaics of 2,500 images each: what other benchmarks read it by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.data.known import KNOWN

_SIDE, _PER_MOSAIC = 32, 2500


def images_of(folder: Path, split: str, count: int | None = None) -> ExampleSet:
    """The first ``count`` images of a split in the official order, or all; no more files are read than needed."""
    pixels = torch.from_numpy(_read_mosaics(folder, split, count)).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(_labels(folder)[split][:count]).long()
    return ExampleSet(KNOWN["cifar10"], split, pixels, labels)


def _read_mosaics(folder: Path, split: str, count: int | None = None) -> np.ndarray:
    """The first ``count`` images of a split, or all of them: uint8 [N, 32, 32, 3], in the official order."""
    files = sorted(folder.glob(f"{split}_*.webp"))
    needed = len(files) if count is None else math.ceil(count / _PER_MOSAIC)
    return np.concatenate([_mosaic(path) for path in files[:needed]])[:count]


def _mosaic(path: Path) -> np.ndarray:
    """The images of one file, uint8 [2500, 32, 32, 3]."""
    mosaic = np.asarray(Image.open(path).convert("RGB"))
    per_side = mosaic.shape[0] // _SIDE
    tiles = mosaic.reshape(per_side, _SIDE, per_side, _SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(_PER_MOSAIC, _SIDE, _SIDE, 3)


def write_cifar10(folder: Path, target: Path) -> Path:
    """CIFAR-10 as one .npz file, as ``--data`` takes it."""
    labels = _labels(folder)
    arrays = {f"x_{split}": _read_mosaics(folder, split) for split in ("test", "train")}
    np.savez(target, **arrays, y_test=labels["test"], y_train=labels["train"])
    return target


def _labels(folder: Path) -> Mapping[str, np.ndarray]:
    labels: Mapping[str, np.ndarray] = np.load(folder / "labels.npz", allow_pickle=False)
    return labels
