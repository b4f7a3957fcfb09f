"""Budgets, norms and batchings as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import Batching, Corruptions, Eps, Norm, ThreatModel, parse_threat, parse_threat_name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", Fraction(8, 255)),
        (" 8 / 255 ", Fraction(8, 255)),
        ("0.031", Fraction(31, 1000)),
        (".5", Fraction(1, 2)),
        ("1e-2", Fraction(1, 100)),
    ],
)
def test_eps_is_exact(text: str, value: Fraction) -> None:
    eps = Eps.parse(text)
    assert eps.value == value
    assert float(eps) == float(value)
    assert str(eps) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text", ["", "eight", "nan", "inf", "-1/255", "0", "0/255", "8/0", "8/", "1e999999999", "1" * 99]
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UsageProblem, match="8/255"):
        Eps.parse(text)


@given(st.integers(1, 255), st.integers(1, 255))
def test_any_fraction_of_bytes_is_a_budget(numerator: int, denominator: int) -> None:
    assert Eps.parse(f"{numerator}/{denominator}").value == Fraction(numerator, denominator)


def test_norms_in_any_case() -> None:
    assert Norm.parse("linf") is Norm.LINF
    assert str(ThreatModel.parse("l2", "0.5")) == "L2 0.5"
    with pytest.raises(UnknownName, match="Linf"):
        Norm.parse("Linff")


def test_two_spellings_of_a_number_are_one_budget() -> None:
    assert Eps.parse("1/2") == Eps.parse("0.5") != Eps.parse("0.25")
    assert str(Eps.parse("1/2")) != str(Eps.parse("0.5"))


def test_threat_models_by_robustbenchs_names() -> None:
    assert [parse_threat_name(text) for text in ("linf", " L2 ", "Corruptions")] == ["Linf", "L2", "corruptions"]
    assert parse_threat("Linf", "8/255") == ThreatModel.parse("Linf", "8/255")
    assert parse_threat("corruptions", None) == Corruptions()
    assert (str(Corruptions()), Corruptions().budget) == ("corruptions", None)
    with pytest.raises(UnknownName, match="did you mean corruptions"):
        parse_threat_name("corruption")


def test_a_norm_needs_a_budget_and_corruptions_have_none() -> None:
    with pytest.raises(UsageProblem, match="a budget for Linf; got eps None"):
        parse_threat("Linf", None)
    with pytest.raises(UsageProblem, match=r"such as 0\.5"):
        parse_threat("L2", None)
    with pytest.raises(UsageProblem, match="no budget, which corruptions do not have; got eps 8/255"):
        parse_threat("corruptions", "8/255")


def test_only_joint_rows_depend_on_each_other() -> None:
    assert [b for b in Batching if not b.row_independent] == [Batching.JOINT]
