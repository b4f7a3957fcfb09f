"""Indicators of attack failure: which flags follow from what was measured.

A robust accuracy says as much about the attacks as about the defence. A run writes down counts; which indicator fires
follows from them here, so that a card cannot show the one without the other.

Sources: Pintor et al. 2022, "Indicators of Attack Failure" (arXiv 2106.09947); Carlini et al. 2019, "On Evaluating
Adversarial Robustness" (arXiv 1902.06705); Qin et al. 2019, "Adversarial Robustness through Local Linearization"
(arXiv 1907.02610); AutoAttack's own checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpm_robustbench.ledger.card_block import DOUBT
from hpm_robustbench.ledger.diagnostics import Diagnostics
from hpm_robustbench.ledger.statistics import exceeds
from hpm_robustbench.ledger.words import counted

_HALF_A_POINT = 0.005
"""Share of images that an optimiser's luck may move; see ``exceeds`` for what that means of few images."""
_MORE = "more than half a point, beyond chance"
_SATURATED = 0.1
"""Share of images at which cross-entropy may round to zero."""


_SQUARE_MARGIN = 0.002
"""AutoAttack's own margin (``checks.check_square_sr``) for black box beating white box, and here for being beaten."""


@dataclass(frozen=True)
class Indicator:
    """One way in which attacks fail: what was measured, when it fires, and what it says if it did."""

    name: str
    measured: str
    rule: str
    flag: str | None


def indicators(found: Diagnostics, *, coupled: bool, autoattack: bool) -> list[Indicator]:
    """All indicators, in the order in which to read them.

    Args:
        found: what was measured.
        coupled: whether the target may look at the other images of a batch; other batches then mean other answers.
        autoattack: whether standard AutoAttack met the target, so that its own checks cast doubt on its number.
    """
    doubt = f"{DOUBT}: " if autoattack else ""
    return [
        *_of_gradients(found, doubt),
        *_of_answers(found, doubt, coupled),
        *_of_outputs(found, doubt),
        _of_budgets(found),
        _of_iterations(found),
        _of_noise(found),
    ]


def overstates(later: int, n: int) -> bool:
    """Whether a later attack broke more images that earlier ones had left standing than their number may be off by.

    Args:
        later: images that it broke.
        n: images of the evaluation.
    """
    return later > _SQUARE_MARGIN * n


def of_transfers(steps: Sequence[tuple[int, int]], *, direct: bool) -> Indicator:
    """Whether what fools a surrogate fools the target.

    Args:
        steps: of each step on a surrogate, images that fooled the surrogate, and those that the target lost.
        direct: whether other steps attack the target itself, so that nothing rests on transfer alone.
    """
    fooled, lost = sum(fooled for fooled, _ in steps), sum(lost for _, lost in steps)
    failed = sum(max(0, fooled - lost) for fooled, lost in steps)
    return _indicator(
        "Transfer from surrogates",
        f"{counted(fooled, 'time')} a surrogate was fooled, {counted(lost, 'time')} the target fell",
        "never: the target itself is attacked too" if direct else "fooled surrogates leave images standing",
        f"{failed} images fooled a surrogate and not the target, which no step attacks itself",
        fires=failed > 0 and not direct,
    )


def of_black_boxes(broken: Sequence[tuple[str, int]], n: int) -> Indicator:
    """Whether attacks without gradients broke what gradient attacks had left.

    Args:
        broken: steps that attacked without gradients, and the images that each broke.
        n: images of the evaluation.
    """
    wins = [f"{name} won {count} images" for name, count in broken if overstates(count, n)]
    return _indicator(
        "Attacks without gradients",
        f"broke {counted(sum(count for _, count in broken), 'image')} that gradient attacks had left standing, "
        f"of {n} in all",
        f"one step breaks more than {_SQUARE_MARGIN:.1%}",
        ", ".join(wins),
        fires=bool(wins),
    )


def _indicator(name: str, measured: str, rule: str, flag: str, *, fires: bool) -> Indicator:
    return Indicator(name, measured, rule, flag if fires else None)


def _of_gradients(found: Diagnostics, doubt: str) -> list[Indicator]:
    margin, entropy = _some(found.dead_margin, found), _some(found.dead_cross_entropy, found)
    return [
        _indicator(
            "Gradient of the margin",
            f"zero or not finite at {margin}",
            _MORE,
            f"{doubt}the margin has no gradient at {margin}: gradient attacks see nothing there",
            fires=_beyond_chance(found.dead_margin, found),
        ),
        _indicator(
            "Gradient of cross-entropy",
            f"zero or not finite at {entropy}",
            _MORE,
            f"cross-entropy has no gradient at {entropy}: attacks that ascend it see nothing there",
            fires=_beyond_chance(found.dead_cross_entropy, found),
        ),
        *_of_slopes(found, doubt),
    ]


def _of_slopes(found: Diagnostics, doubt: str) -> list[Indicator]:
    if found.misled is None:
        return []
    misled = _some(found.misled, found)
    return [
        _indicator(
            "Slope of the margin",
            f"a small step along it gains less than half of what it promises at {misled}",
            _MORE,
            f"{doubt}the gradient of the margin misleads at {misled}: a small step along it gains less than half of "
            "what it promises",
            fires=_beyond_chance(found.misled, found),
        )
    ]


def _of_answers(found: Diagnostics, doubt: str, coupled: bool) -> list[Indicator]:
    repeated, reordered, regrouped = (_some(n, found) for n in (found.repeated, found.reordered, found.regrouped))
    return [
        _indicator(
            "Same batch again",
            f"other bits for {repeated}",
            "any",
            f"{doubt}{repeated} got another answer when they were asked again",
            fires=found.repeated > 0,
        ),
        _indicator(
            "Same batch in another order",
            f"another label for {reordered}",
            "any, beyond rounding",
            f"{doubt}{reordered} got another label in another order of the same batch",
            fires=found.reordered > 0,
        ),
        _indicator(
            "Batches of other sizes",
            f"another label for {regrouped}",
            "never: this target answers whole batches" if coupled else "any, beyond rounding",
            f"{doubt}{regrouped} got another label in batches of other sizes",
            fires=found.regrouped > 0 and not coupled,
        ),
    ]


def _of_outputs(found: Diagnostics, doubt: str) -> list[Indicator]:
    saturated = _some(found.saturated, found)
    return [
        _indicator(
            "Probabilities instead of logits",
            f"in [0, 1] with sum 1 at {_some(found.probabilities, found)}",
            "all",
            f"{doubt}the outputs look like probabilities, whose gradients vanish",
            fires=found.probabilities == found.n,
        ),
        _indicator(
            "Scale of the logits",
            f"median gap {found.logit_gap:.3g}; cross-entropy rounds to 0 at {saturated}",
            f"more than {_SATURATED:.0%}",
            f"cross-entropy rounds to 0 at {saturated}: attacks that ascend it start blind there",
            fires=found.saturated > _SATURATED * found.n,
        ),
    ]


def _of_budgets(found: Diagnostics) -> Indicator:
    """Accuracy falls as the budget grows, and ends at zero: with the whole box allowed, every image can be anything."""
    last = found.budgets[-1].standing
    rises = [b for a, b in pairwise(found.budgets) if _beyond_chance(b.standing - a.standing, found)]
    if rises:
        flag = f"more images stand under {rises[0].multiple:.4g} times the budget than under less"
    else:
        flag = f"{_some(last, found)} stand although the whole box is allowed"
    return _indicator(
        "Budget up to the whole box",
        "standing: " + ", ".join(f"{point.standing} at {point.multiple:.4g} eps" for point in found.budgets),
        f"rises by {_MORE}, or does not end at 0",
        f"the gradient attack fails: {flag}",
        fires=bool(rises) or last > 0,
    )


def _of_iterations(found: Diagnostics) -> Indicator:
    """The one indicator that fires within chance, too, and says so: of 64 images one is more than half a point."""
    half, whole = found.iterations[-2:]
    changed = abs(half.standing - whole.standing)
    counts = f"{half.standing} of {found.n} images stand after {half.steps} steps, {whole.standing} after {whole.steps}"
    if _beyond_chance(changed, found):
        flag = f"the gradient attack has not converged: {counts}"
    else:
        flag = f"the gradient attack may not have converged: {counts}, no more than chance explains"
    return _indicator(
        "Iterations of the gradient attack",
        "standing: " + ", ".join(f"{point.standing} after {point.steps}" for point in found.iterations),
        "the last doubling changes half a point or more",
        flag,
        fires=changed > 0 and changed >= _HALF_A_POINT * found.n,
    )


def _of_noise(found: Diagnostics) -> Indicator:
    alone = _some(found.noise_alone, found)
    return _indicator(
        "Random noise of size eps",
        f"breaks {_some(found.noise, found)}, {found.noise_alone} of them standing under the gradient attack",
        "any of those",
        f"random noise broke {alone} that the gradient attack had left standing",
        fires=found.noise_alone > 0,
    )


def _beyond_chance(count: int, found: Diagnostics) -> bool:
    return count > 0 and exceeds(count, found.n, _HALF_A_POINT)


def _some(count: int, found: Diagnostics) -> str:
    return f"{count} of {found.n} images"
