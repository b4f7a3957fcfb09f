from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from hpm_robustbench.data import open_dataset


def test_the_test_split_never_changes():
    examples = open_dataset("digits").test()
    assert examples.fingerprint == "f2ad98066358871ffadb6f706625aa556d31a2269472c1d215dbabef5e536b11"
    assert examples.labels[:12].tolist() == [4, 8, 8, 3, 9, 0, 6, 3, 9, 8, 4, 5]


def test_the_training_split_never_changes():
    assert (
        open_dataset("digits").train().fingerprint == "18d5be72d4e65c2c19d6420ed62b3da372c600461b50c17d3b65aee1ee5aac50"
    )


def test_the_two_splits_are_all_scans_once():
    source = open_dataset("digits")
    test, train = source.test(), source.train()
    assert (len(train), len(test)) == (1297, 500)
    digits = load_digits()
    scans = [
        (*image.flatten().mul(16).tolist(), int(label))
        for split in (test, train)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(scans) == sorted((*pixels, label) for pixels, label in zip(digits.data, digits.target, strict=True))


def test_each_class_has_the_same_share_of_both():
    source = open_dataset("digits")
    shares = [split.labels.bincount(minlength=10) / len(split) for split in (source.test(), source.train())]
    assert torch.allclose(*shares, atol=0.002)


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    open_dataset("digits").test(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
