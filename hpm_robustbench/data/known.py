"""The datasets whose classes and image shape are known before a file is opened. No torch."""

from __future__ import annotations

from hpm_robustbench.threat import Dataset

KNOWN: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset("digits", 10, (1, 8, 8)),
        Dataset("mnist", 10, (1, 28, 28)),
        Dataset("cifar10", 10, (3, 32, 32)),
        Dataset("cifar100", 100, (3, 32, 32)),
        Dataset("imagenet", 1000, (3, 224, 224)),
    )
}
