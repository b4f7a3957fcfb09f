from __future__ import annotations

import json
import math

import pytest

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hpm.config import HPMConfig

BAD = [
    ("beta", -0.1),
    ("beta", 1.1),
    ("beta", math.nan),
    ("beta", "half"),
    ("beta", None),
    ("beta", True),
    ("kappa", -1.0),
    ("kappa", math.inf),
    ("kappa", "3"),
    ("tau", 0.0),
    ("tau", -2.0),
    ("tau", math.inf),
    ("tau", "fitted"),
    ("tau", None),
    ("distance", "cosine"),
    ("distance", ["l2"]),
    ("normalize", "no"),
    ("normalize", 1),
    ("assignment", "argmax"),
    ("temperature", 0.0),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("confidence", -0.1),
    ("confidence", 1.5),
    ("confidence", "high"),
    ("k", 0),
    ("k", 1.5),
    ("k", True),
    ("absent", "zero"),
    ("include_self", None),
    ("gradient", "both"),
    ("init", "random"),
]


@pytest.mark.parametrize(("knob", "value"), BAD, ids=[f"{knob}={value!r}" for knob, value in BAD])
def test_a_bad_knob_is_a_usage_problem_that_names_it(knob, value):
    with pytest.raises(UsageProblem) as caught:
        HPMConfig(**{knob: value})
    assert knob in caught.value.wanted
    assert caught.value.got == repr(value)


@pytest.mark.parametrize(
    "knobs",
    [
        {"beta": 0},
        {"beta": 1},
        {"kappa": 0},
        {"tau": 2},
        {"tau": "fit"},
        {"confidence": 0},
        {"confidence": 1},
        {"k": 1},
        {"temperature": 1e-6},
    ],
    ids=str,
)
def test_the_ends_of_each_range_are_allowed(knobs):
    assert HPMConfig(**knobs).to_json().items() >= knobs.items()


def test_the_value_is_plain_json_and_comes_back_equal():
    config = HPMConfig(beta=0.25, tau=3.0, distance="scaled-l2", assignment="top-k", k=3, include_self=False)
    assert HPMConfig(**json.loads(json.dumps(config.to_json()))) == config
