"""Intervals and paired tests over counts of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from scipy.stats import binomtest

Outcome: TypeAlias = Literal["helps", "hurts", "undecided"]
COUPLED = (
    "P-values and intervals of JOINT are computed as if images were independent, but batch mates share prototypes and "
    "adversarial submissions: read them as a scale, not as calibrated."
)
"""What a reader has to know of the tests and intervals below where images are answered together."""


@dataclass(frozen=True)
class Proportion:
    """``count`` of ``n`` with its 95 % Wilson interval; all three in percent where they are percentages."""

    count: int
    n: int
    percent: float
    low: float
    high: float


@cache
def proportion(count: int, n: int) -> Proportion:
    """Percentage with a 95 % Wilson score interval (Wilson 1927)."""
    interval = binomtest(count, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Proportion(count, n, 100 * count / n, 100 * interval.low, 100 * interval.high)


@cache
def exceeds(count: int, n: int, share: float, alpha: float = 0.05) -> bool:
    """Whether ``count`` of ``n`` rows are more than ``share`` of all rows explains: an exact one-sided binomial test.

    With a share of 0.005, two of 64 rows are too many, and so is one of ten.
    """
    return float(binomtest(count, n, share, alternative="greater").pvalue) < alpha


@dataclass(frozen=True)
class Comparison:
    """Two outcomes on the same rows: how many only the first has right, only the second, and the p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Exact two-sided McNemar test of paired outcomes (McNemar 1947)."""
    pairs = list(zip(first, second, strict=True))
    return compare(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))


def compare(only_first: int, only_second: int) -> Comparison:
    """The same test from the number of rows that only one of the two has right."""
    discordant = only_first + only_second
    p_value = float(binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0
    return Comparison(only_first, only_second, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being many (Holm 1979): below alpha if and only if Holm rejects at alpha."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [1.0] * len(p_values), 0.0
    for tests_left, index in zip(range(len(order), 0, -1), order, strict=True):
        least = max(least, tests_left * p_values[index])
        adjusted[index] = min(1.0, least)
    return adjusted


def outcome(test: Comparison, alpha: float = 0.05) -> Outcome:
    """``helps``, ``hurts`` or ``undecided``: the written rule by which a gain is claimed.

    ``test`` compares, on the same rows, the base model (first) with the HPM classifier (second), each under every
    attack on it. HPM helps (hurts) only if it has more (fewer) rows standing and the exact McNemar test
    rejects equality at ``alpha``; everything else is undecided.
    """
    if test.p_value >= alpha:
        return "undecided"
    return "helps" if test.only_second > test.only_first else "hurts"


def decisive(tests: Sequence[Comparison]) -> Comparison:
    """Of comparisons that must all help, while each may hurt, the one that decides.

    If some hurt it is the most certain of these, else the least certain of all. Under equality one of two hurts at
    alpha at most as often as alpha, since each does so in one direction alone; both help far more rarely.
    """
    hurting = [test for test in tests if outcome(test) == "hurts"]
    if hurting:
        return min(hurting, key=lambda test: test.p_value)
    return max(tests, key=lambda test: test.p_value)
