"""Options as a person may write them in Python: read where that is plain, refused where the command line refuses."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.run_options import RunOptions
from hpm_robustbench.threat import Batching, Composition
from hpm_robustbench.training.recipe import Tuning, find_recipe


@pytest.mark.parametrize(
    ("option", "given", "meant"),
    [
        *((path, "here", Path("here")) for path in ("data", "data_dir", "corruptions_data_dir", "model_dir", "output")),
        ("output", PurePosixPath("here"), Path("here")),
        ("data", None, None),
        ("batchings", "joint", (Batching.JOINT,)),
        ("batchings", Batching.JOINT, (Batching.JOINT,)),
        ("batchings", ["solo", Batching.REFERENCE], (Batching.SOLO, Batching.REFERENCE)),
        ("composition", "single-class", Composition.SINGLE_CLASS),
        ("tuning", "head", Tuning(find_recipe("head"))),
        ("device", torch.device("cuda", 1), "cuda:1"),
    ],
)
def test_text_is_read_where_it_is_plain(option: str, given: Any, meant: object) -> None:
    assert RunOptions(**{option: given}) == RunOptions(**{option: meant})
    read = getattr(RunOptions(**{option: given}), option)
    assert (read, type(read)) == (meant, type(meant))


def test_a_recipe_by_its_name_has_the_seed_of_the_trial() -> None:
    given: Any = "head"
    assert RunOptions(tuning=given, seed=3).tuning == Tuning(find_recipe("head"), seed=3)


@pytest.mark.parametrize(
    ("option", "given"),
    [
        *(
            (count, wrong)
            for count in ("n_ex", "batch_size", "joint_size")
            for wrong in (0, -1, 2.0, "2", True, None, 2 * 10**9)
        ),
        *(("seed", wrong) for wrong in (-1, 2**63, 0.5, "0", False, None)),
        *((path, 3) for path in ("data", "data_dir", "corruptions_data_dir", "model_dir", "output")),
        ("output", None),
        *((option, wrong) for option in ("defence", "compute", "trust") for wrong in ({"beta": 0.3}, None, "beta=0.3")),
        *(("tuning", wrong) for wrong in (5, ["head"])),
        *(("device", wrong) for wrong in (None, 0)),
    ],
)
def test_a_value_that_an_option_cannot_have(option: str, given: Any) -> None:
    with pytest.raises(UsageProblem, match=f"wanted {option} as a"):
        RunOptions(**{option: given})


@pytest.mark.parametrize(
    ("option", "given", "near"),
    [
        ("batchings", "SOLO", "solo"),
        ("batchings", ["jiont"], "joint"),
        ("batchings", [None], "known: joint, reference, solo"),
        ("batchings", None, "known: joint, reference, solo"),
        ("composition", "sort", "sorted"),
        ("tuning", "uniform", "uniform-v1"),
    ],
)
def test_a_name_that_nobody_registered(option: str, given: Any, near: str) -> None:
    with pytest.raises(UnknownName, match=near):
        RunOptions(**{option: given})
