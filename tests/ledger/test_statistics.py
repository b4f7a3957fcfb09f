"""Statistics against published and independent answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.ledger.statistics import compare, decisive, holm, outcome

P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def test_holm_on_a_textbook_example() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(P_VALUES, st.floats(0.001, 0.2))
def test_holm_rejects_what_his_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for tests_left, index in zip(
        range(len(p_values), 0, -1), sorted(range(len(p_values)), key=lambda i: p_values[i]), strict=True
    ):
        if tests_left * p_values[index] >= alpha:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(p_values)) if p < alpha} == rejected


@given(P_VALUES)
def test_holm_never_makes_a_value_smaller_and_one_test_stays_as_it_is(p_values: list[float]) -> None:
    assert all(adjusted >= p for adjusted, p in zip(holm(p_values), p_values, strict=True))
    assert holm(p_values[:1]) == p_values[:1]


COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60))


@given(st.lists(COUNTS, min_size=1, max_size=3))
def test_what_decides_says_what_the_rule_says(counts: list[tuple[int, int]]) -> None:
    tests = [compare(*each) for each in counts]
    found, outcomes = decisive(tests), {outcome(test) for test in tests}
    if "hurts" in outcomes:
        assert outcome(found) == "hurts"
        assert all(found.p_value <= test.p_value for test in tests if outcome(test) == "hurts")
    else:
        assert (outcome(found) == "helps") == (outcomes == {"helps"})
        assert all(found.p_value >= test.p_value for test in tests)


@pytest.mark.parametrize("coupled", [False, True])
def test_equal_models_are_seldom_said_to_hurt_and_more_seldom_to_help(coupled: bool) -> None:
    """Base, C1 and HPM are as good as each other: how often the rule of both comparisons is wrong, in 4,000 trials."""
    draw, wrong = np.random.default_rng(0), {"helps": 0, "hurts": 0, "undecided": 0}
    for _ in range(4000):
        easy = draw.random(200) < (0.6 if coupled else 0)
        base, fc, hpm = (easy | (draw.random(200) < 0.5) for _ in range(3))
        pairs = [compare(int((one & ~hpm).sum()), int((hpm & ~one).sum())) for one in (base, fc)]
        wrong[outcome(decisive(pairs))] += 1
    assert wrong["helps"] < wrong["hurts"] < 0.05 * 4000
