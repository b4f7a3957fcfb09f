"""The digits inside scikit-learn: 1,797 real 8x8 scans that need no download.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998; the
scans are that archive's test part.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from hpm_robustbench.data.examples import DataSource, Pair
from hpm_robustbench.data.known import KNOWN

N_TEST = 500


def open_digits() -> DataSource:
    """1,297 training and 500 test images, each class in the same share of both.

    The split is scikit-learn's ``train_test_split`` over row numbers, stratified by label, with ``random_state=0``;
    its order mixes the classes.
    """
    return DataSource(KNOWN["digits"], partial(_read, 1), partial(_read, 0))


def _read(part: int, n: int | None) -> Pair:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - it takes seconds to import and only this file needs it
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    digits = load_digits()
    parts = train_test_split(np.arange(len(digits.target)), test_size=N_TEST, stratify=digits.target, random_state=0)
    rows = parts[part][:n]
    # Pixels count the dots that are set in a 4x4 cell: 0 to 16.
    images = (digits.images[rows] / 16).astype(np.float32)
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target[rows].astype(np.int64))
