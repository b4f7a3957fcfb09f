"""From arrays as people store them to tensors as the house wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpm_robustbench.errors import InvalidInput

Shape = tuple[int, int, int]


def images_from_array(array: NDArray[Any], shape: Shape | None = None) -> Tensor:
    """Contiguous float32 images N C H W; uint8 is divided by 255, floats keep their values.

    Args:
        array: N H W, N C H W or N H W C.
        shape: (C, H, W) where it is known. Otherwise the smaller of the two ends of an image's shape is its channels.

    Raises:
        InvalidInput: another type or rank, or a layout that could be either.
    """
    if array.ndim not in (3, 4) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InvalidInput(
            wanted="images as uint8, or as floats in [0, 1], of shape N H W, N C H W or N H W C",
            got=f"{array.dtype} of shape {array.shape}",
            next_step="convert the array",
        )
    if array.ndim == 3:
        array = array[:, None]
    elif _channels_last(array.shape[1:], shape):
        array = array.transpose(0, 3, 1, 2)
    images = array.astype(np.float32, order="C")
    if array.dtype == np.uint8:
        images /= 255
    return torch.from_numpy(images)


def labels_from_array(array: NDArray[Any]) -> Tensor:
    """Int64 labels N from any integers N or N 1.

    Raises:
        InvalidInput: another type or rank, such as one-hot rows.
    """
    if array.dtype.kind not in "iu" or array.ndim == 0 or array.shape[1:] not in ((), (1,)):
        raise InvalidInput(
            wanted="labels as integers of shape N",
            got=f"{array.dtype} of shape {array.shape}",
            next_step="give one class number per image; for one-hot rows that is their argmax",
        )
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _channels_last(found: tuple[int, ...], shape: Shape | None) -> bool:
    if shape is not None:
        channels, height, width = shape
        return found != shape and found == (height, width, channels)
    if found[0] == found[-1]:
        raise InvalidInput(
            wanted="images whose channels can be told from their height and width",
            got=f"images of shape {found}",
            next_step="store them as N H W C or N C H W with fewer channels than pixels on a side",
        )
    return found[-1] < found[0]
