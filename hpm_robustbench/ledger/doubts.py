"""Flags that follow from how many images stood and fell: a run raises them by these rules, and its card keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from hpm_robustbench.ledger.card_block import DOUBT
from hpm_robustbench.ledger.indicators import overstates
from hpm_robustbench.ledger.plan import BLACK_BOXES, MSA


def of_run(groups: Sequence[str], standing: Sequence[int], left: int, autoattack: int | None, n: int) -> list[str]:
    """What a run's counts raise.

    Args:
        groups: those of the attacks of its own, in their order.
        standing: images that are right on clean input, and those that stand after each of these attacks.
        left: those that stand after everything, what was made for others included.
        autoattack: images that stand under standard AutoAttack, if that met the target.
        n: images of the evaluation.
    """
    more = 0 if autoattack is None else autoattack - left
    late = standing[-2] - standing[-1] if [*groups[-1:]] == [MSA] else 0
    overstated = f"{DOUBT}: other attacks broke {more} images that it had left standing"
    # MSA ends with its last resort, as AutoAttack alone does not; while that wins rows, the number is not yet a floor.
    unfinished = f"the last attack still broke {late} images: more attacks would probably break more"
    return [*([overstated] if overstates(more, n) else []), *([unfinished] if late else [])]


def of_step(attack: str, broken: int, invalid: int, n: int, *, of_autoattack: bool) -> list[str]:
    """Why a number may be too high, as far as the verdicts of a step on what it met tell.

    Args:
        attack: its name.
        broken: images that it broke.
        invalid: images that came back outside the threat model.
        n: images of the evaluation.
        of_autoattack: whether it is part of standard AutoAttack.
    """
    doubts = []
    if of_autoattack and invalid:
        doubts.append(f"{DOUBT}: {invalid} images came back outside the threat model and do not count")
    if attack in BLACK_BOXES and overstates(broken, n):
        doubt = f"{DOUBT}: " if of_autoattack else ""
        doubts.append(f"{doubt}{attack.capitalize()} broke {broken} images that the gradient attacks had left standing")
    return doubts
