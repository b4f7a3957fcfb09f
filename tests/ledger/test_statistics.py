"""Statistics against published and independent answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.ledger.statistics import holm

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
