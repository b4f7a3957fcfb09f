"""What attacks on a batch-coupled classifier share: whole batches, and the few iterates of each that are submitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpm_robustbench.attacks.base import Attack, Parameter, Submissions, View
from hpm_robustbench.shapes import Images, Labels, Losses, Mask
from hpm_robustbench.threat import ThreatModel

_MOST_KEPT = 16
"""Iterates of one batch that are held at a time."""


def batchwise(attack_batch: Callable[..., Submissions]) -> Attack:
    """An attack that moves consecutive whole batches, each from the same seed; one without active rows is left alone.

    ``attack_batch(view, x, y, active, threat, seed, **parameters)`` answers for one batch.
    """

    def search(
        view: View,
        x: Images,
        y: Labels,
        active: Mask,
        threat: ThreatModel,
        seed: int,
        batch_size: int,
        **parameters: Parameter,
    ) -> Submissions:
        answers: list[Sequence[Tensor]] = []
        for rows in torch.split(torch.arange(len(x), device=x.device), batch_size):
            if active[rows].any():
                answers.append(attack_batch(view, x[rows], y[rows], active[rows], threat, seed, **parameters))
            else:
                answers.append((x[rows],))
        return side_by_side(answers)

    return Attack(search, requires_row_independence=False)


@dataclass(frozen=True)
class _Iterate:
    x: Images
    wrong: Mask
    score: tuple[int, float]


class Cover:
    """Few iterates of one batch that together have every row wrong that any iterate had wrong.

    The first is the one with the most active rows wrong on the true target, ties by summed loss.
    """

    def __init__(self, view: View, y: Labels, active: Mask) -> None:
        self._view, self._y, self._active = view, y, active
        self._kept: list[_Iterate] = []
        self._wrong = torch.zeros_like(active)

    @property
    def submissions(self) -> Submissions:
        """What was kept, the best as a whole first."""
        return tuple(iterate.x for iterate in self._kept)

    def observe(self, x: Images, losses: Losses) -> bool:
        """Look at one iterate; True when no active row is left to win by one submission."""
        wrong = self._active & (self._view.target_logits(x).argmax(dim=1) != self._y)
        score = int(wrong.sum()), float(losses.sum())
        if not self._kept or score > self._kept[0].score or bool((wrong & ~self._wrong).any()):
            self._keep(_Iterate(x, wrong, score))
        return score[0] == int(self._active.sum())

    def _keep(self, iterate: _Iterate) -> None:
        """Take it in; of all that are held, the ones stay that add rows to those with a higher score."""
        best, *rest = sorted([*self._kept, iterate], key=lambda held: held.score, reverse=True)
        self._kept, self._wrong = [best], best.wrong
        for held in rest:
            if len(self._kept) < _MOST_KEPT and bool((held.wrong & ~self._wrong).any()):
                self._kept.append(held)
                self._wrong = self._wrong | held.wrong


def side_by_side(answers: Sequence[Sequence[Tensor]]) -> Submissions:
    """Submissions of consecutive batches as submissions of all rows; a batch with fewer repeats its first."""
    most = max(len(answer) for answer in answers)
    return tuple(torch.cat([answer[k if k < len(answer) else 0] for answer in answers]) for k in range(most))
