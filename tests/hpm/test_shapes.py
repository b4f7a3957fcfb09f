"""The lamp itself: while these tests run, a tensor of the wrong shape or type does not pass."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from hpm_robustbench.hpm.prototypes import class_means, squared_distances


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (squared_distances, (torch.zeros(3, 2), torch.zeros(4, 5))),
        (squared_distances, (torch.zeros(3, 2), torch.zeros(2, 4, 2))),
        (class_means, (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), 2)),
        (class_means, (torch.zeros(3, 2), torch.zeros(3), 2)),
    ],
    ids=["features", "rows", "examples", "labels"],
)
def test_mismatched_tensors_are_stopped_at_the_door(function, arguments):
    with pytest.raises(TypeCheckError):
        function(*arguments)
