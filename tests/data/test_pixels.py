from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hpm_robustbench.data.pixels import images_from_array, labels_from_array
from hpm_robustbench.errors import InvalidInput

NHWC = arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(4, 6), st.integers(1, 3)))


@given(NHWC)
def test_every_layout_of_the_same_bytes_gives_the_same_images(array):
    images = images_from_array(array)
    shape = tuple(images.shape[1:])
    nchw = array.transpose(0, 3, 1, 2)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert np.array_equal((images * 255).round().to(torch.uint8).numpy(), nchw)
    for layout in (array, nchw, np.ascontiguousarray(nchw), array.astype(np.float32) / np.float32(255)):
        assert torch.equal(images_from_array(layout), images)
        assert torch.equal(images_from_array(layout, shape), images)


def test_images_without_channels_get_one():
    assert images_from_array(np.zeros((5, 7, 6), np.uint8)).shape == (5, 1, 7, 6)


def test_a_known_shape_decides_where_the_smaller_end_would_guess_wrong():
    tall = np.zeros((2, 2, 3, 5), np.uint8)
    assert images_from_array(tall).shape == (2, 2, 3, 5)
    assert images_from_array(tall, (5, 2, 3)).shape == (2, 5, 2, 3)


def test_floats_of_every_width_keep_their_values():
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        assert images_from_array(np.full((1, 2, 3), 0.25, dtype)).unique().tolist() == [0.25]


@pytest.mark.parametrize(
    "array",
    [np.zeros((2, 3, 4, 4), np.int64), np.zeros((2, 3, 4, 4), bool), np.zeros((2, 16)), np.zeros((1, 1, 3, 4, 4))],
    ids=["int64", "bool", "rank 2", "rank 5"],
)
def test_other_types_and_ranks_are_refused(array):
    with pytest.raises(InvalidInput, match="images as uint8, or as floats"):
        images_from_array(array)


def test_an_ambiguous_layout_is_refused():
    with pytest.raises(InvalidInput, match=r"got images of shape \(3, 8, 3\)"):
        images_from_array(np.zeros((2, 3, 8, 3), np.uint8))


@pytest.mark.parametrize("array", [np.array([2, 0], np.uint8), np.array([[2], [0]], np.int32), np.array([2, 0], ">i2")])
def test_labels_of_any_integer_type_become_int64(array):
    labels = labels_from_array(array)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0]


@pytest.mark.parametrize("array", [np.eye(3, dtype=np.int64), np.zeros(3), np.array(["a"]), np.array(1)])
def test_other_labels_are_refused(array):
    with pytest.raises(InvalidInput, match="labels as integers of shape N"):
        labels_from_array(array)
