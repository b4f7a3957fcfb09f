from __future__ import annotations

import gzip
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hpm_robustbench.data import open_dataset
from hpm_robustbench.data.idx import read_idx
from hpm_robustbench.errors import IntegrityError, InvalidInput
from hpm_robustbench.threat import Dataset


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_split(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, *, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = idx_bytes(array)
        name = f"{split}-{kind}-ubyte"
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5), np.uint8)
LABELS = np.array([1, 0, 6, 1], np.uint8)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))), st.booleans())
def test_a_round_trip_keeps_every_byte(images, zipped):
    labels = np.arange(len(images), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), "t10k", images, labels, zipped=zipped)
        source = open_dataset("scans", data=Path(folder))
        assert source.dataset == Dataset("scans", len(images), (1, *images.shape[1:]))
        examples = source.test()
    assert np.array_equal((examples.images[:, 0] * 255).round().to(torch.uint8).numpy(), images)
    assert examples.labels.tolist() == labels.tolist()
    assert examples.images.is_contiguous()


def test_training_files_are_optional_and_count_for_the_classes(tmp_path):
    write_split(tmp_path, "t10k", IMAGES, LABELS)
    assert open_dataset("scans", data=tmp_path).train() is None
    write_split(tmp_path, "train", IMAGES[:1], np.array([8], np.uint8), zipped=True)
    source = open_dataset("scans", data=tmp_path)
    assert source.dataset.n_classes == 9
    assert source.train().labels.tolist() == [8]
    assert source.test(2).fingerprint == source.test().head(2).fingerprint


@pytest.mark.parametrize("inside", [".", "mnist", "MNIST/raw"])
def test_mnist_is_found_in_its_usual_folders(tmp_path, inside):
    images = np.zeros((2, 28, 28), np.uint8)
    write_split(tmp_path / inside, "t10k", images, np.array([3, 9], np.uint8))
    source = open_dataset("mnist", data_dir=tmp_path)
    assert source.dataset == Dataset("mnist", 10, (1, 28, 28))
    assert source.test().labels.tolist() == [3, 9]


def test_a_known_name_is_checked_against_the_files(tmp_path):
    write_split(tmp_path, "t10k", IMAGES, LABELS)
    with pytest.raises(InvalidInput, match="mnist images of shape N x 1 x 28 x 28"):
        open_dataset("mnist", data=tmp_path).test()


def test_files_without_rows_are_refused(tmp_path):
    write_split(tmp_path, "t10k", IMAGES[:0], LABELS[:0])
    with pytest.raises(InvalidInput, match="N at least 1"):
        open_dataset("scans", data=tmp_path).test()


def test_files_of_different_lengths_are_refused(tmp_path):
    write_split(tmp_path, "t10k", IMAGES, LABELS[:3])
    with pytest.raises(InvalidInput, match="int64 labels of shape 4, one per image"):
        open_dataset("scans", data=tmp_path).test()


def test_images_without_their_labels_are_refused(tmp_path):
    write_split(tmp_path, "t10k", IMAGES, LABELS)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(IntegrityError, match=r"t10k-labels-idx1-ubyte\.gz in"):
        open_dataset("scans", data=tmp_path)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08", "starts with 000008"),
        (b"\x89PNG" + bytes(20), "starts with 89504e47"),
        (idx_bytes(LABELS), "starts with 00000801"),
        (idx_bytes(IMAGES)[:-1], "fewer than the 120 bytes promised"),
        (idx_bytes(IMAGES) + b"\x00", "more than the 120 bytes promised"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "a header that promises"),
    ],
    ids=["empty", "short", "a PNG", "labels", "truncated", "trailing", "absurd header"],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_foreign_or_truncated_file_is_refused(tmp_path, content, got, zipped):
    path = tmp_path / ("images" + ".gz" * zipped)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(IntegrityError, match=got):
        read_idx(path, 3)


def test_a_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(idx_bytes(IMAGES))
    for position in range(len(whole) - 8):
        path.write_bytes(whole[:position])
        with pytest.raises(IntegrityError):
            read_idx(path, 3)


@pytest.mark.skipif("HPM_BENCH_REAL_DATA" not in os.environ, reason="HPM_BENCH_REAL_DATA is not set")
def test_the_real_mnist_test_set():
    source = open_dataset("mnist", data_dir=Path(os.environ["HPM_BENCH_REAL_DATA"]))
    examples = source.test()
    assert source.train() is None
    assert examples.images.shape == (10000, 1, 28, 28)
    assert examples.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert examples.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(examples.images.mean()) == pytest.approx(0.1325, abs=5e-5)
