from __future__ import annotations

import io
import itertools
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_arrays import HEADERS, array_file
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import HpmBenchError, IntegrityError, InvalidInput
from hpm_robustbench.threat import Dataset

X = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def archive(folder: Path, **content: np.ndarray) -> Path:
    path = folder / "set.npz"
    np.savez_compressed(path, **content)
    return path


def test_an_unknown_name_takes_classes_and_shape_from_the_arrays(tmp_path):
    path = archive(tmp_path, x_test=X, y_test=Y, x_train=X[:2], y_train=np.array([0, 4]))
    source = open_dataset("flowers", data=path)
    assert source.dataset == Dataset("flowers", 5, (3, 5, 4))
    test, train = source.test(), source.train()
    assert np.array_equal((test.images * 255).round().numpy(), X.transpose(0, 3, 1, 2))
    assert test.labels.tolist() == Y.tolist()
    assert train.labels.tolist() == [0, 4]
    assert source.count_train() == 2
    assert test.images.is_contiguous()
    assert source.test(2).fingerprint == test.head(2).fingerprint


def test_x_and_y_are_a_test_split_without_training_images(tmp_path):
    source = open_dataset("flowers", data=archive(tmp_path, x=X, y=Y))
    assert len(source.test()) == 6
    assert source.train() is None
    assert source.count_train is None


@settings(max_examples=25, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(28), st.just(28), st.just(1))),
    st.booleans(),
)
def test_a_round_trip_keeps_every_byte(images, compressed):
    labels = np.arange(len(images)) % 10
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.npz"
        (np.savez_compressed if compressed else np.savez)(path, x_test=images, y_test=labels)
        examples = open_dataset("mnist", data=path).test()
    assert np.array_equal((examples.images * 255).round().to(torch.uint8).numpy(), images.transpose(0, 3, 1, 2))
    assert examples.labels.tolist() == labels.tolist()


def test_a_known_name_keeps_its_shape_and_classes(tmp_path):
    wrong_shape = open_dataset("cifar10", data=archive(tmp_path, x=X, y=Y))
    assert wrong_shape.dataset.image_shape == (3, 32, 32)
    with pytest.raises(InvalidInput, match="cifar10 images of shape N x 3 x 32 x 32"):
        wrong_shape.test()
    wrong_label = open_dataset("digits", data=archive(tmp_path, x=np.zeros((2, 8, 8), np.uint8), y=np.array([3, 10])))
    with pytest.raises(InvalidInput, match="digits labels from 0 to 9; got 10 in row 1"):
        wrong_label.test()


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["x_test"], "y_test"),
        (["images"], "x_test, y_test"),
        (["x", "y", "x_train"], "y_train"),
        ([], "x_test, y_test"),
    ],
)
def test_missing_arrays_are_named(tmp_path, names, missing):
    path = archive(tmp_path, **dict.fromkeys(names, X))
    with pytest.raises(InvalidInput, match=f"Next: add {missing}$"):
        open_dataset("flowers", data=path)


def test_images_in_another_range_are_refused_with_their_row(tmp_path):
    source = open_dataset("flowers", data=archive(tmp_path, x=X.astype(np.float32), y=Y))
    with pytest.raises(InvalidInput, match=r"in row 0, and 6 such rows in all"):
        source.test()


def test_an_archive_without_rows_is_refused(tmp_path):
    source = open_dataset("flowers", data=archive(tmp_path, x=X[:0], y=Y[:0]))
    with pytest.raises(InvalidInput, match="N at least 1"):
        source.test()


def test_more_images_than_labels_are_refused(tmp_path):
    source = open_dataset("flowers", data=archive(tmp_path, x=X, y=Y[:4]))
    with pytest.raises(InvalidInput, match="int64 labels of shape 6, one per image"):
        source.test()


def test_pickled_objects_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    path = tmp_path / "set.npz"
    np.savez(path, x=np.array([Bomb()], dtype=object), y=Y)
    with pytest.raises(IntegrityError, match="allow_pickle=False"):
        open_dataset("flowers", data=path).test()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive", b"\x80\x04."])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"readable \.npz archive"):
        open_dataset("flowers", data=path)


def test_a_single_array_under_that_name_is_refused(tmp_path):
    path = tmp_path / "set.npz"
    with path.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(IntegrityError, match="a single array, where named arrays are needed"):
        open_dataset("flowers", data=path)


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused(tmp_path, header):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as whole:
        for name in ("x.npy", "y.npy"):
            whole.writestr(name, array_file(header))
    with pytest.raises(IntegrityError, match=r"readable \.npz archive"):
        open_dataset("flowers", data=path).test()


def test_a_damaged_archive_of_another_compression_is_refused(tmp_path):
    path, plain = tmp_path / "set.npz", io.BytesIO()
    np.save(plain, X)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as whole:
        for name in ("x.npy", "y.npy"):
            whole.writestr(name, plain.getvalue())
    content = bytearray(path.read_bytes())
    for start in (0, content.find(b"PK\x03\x04", 1)):
        content[start + 45 : start + 60] = b"\xff" * 15
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"readable \.npz archive"):
        open_dataset("flowers", data=path).test()


def test_a_truncated_archive_is_refused(tmp_path):
    path = archive(tmp_path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(IntegrityError, match=r"readable \.npz archive"):
        open_dataset("flowers", data=path)


def test_no_damaged_byte_ever_escapes_as_another_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, y=Y)
    whole = buffer.getvalue()
    path = tmp_path / "set.npz"
    refused = 0
    for position, flip in itertools.product(range(0, len(whole), 3), (0xFF, 0x01)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        try:
            open_dataset("flowers", data=path).test()
        except HpmBenchError as error:
            refused += isinstance(error, (IntegrityError, InvalidInput))
    assert refused > 100
