"""What attacks on a batch-coupled classifier share: whole batches, and the few iterates of each that are submitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch

from hpm_robustbench.attacks.base import Attack, Parameter, Submissions, Task, View
from hpm_robustbench.shapes import Images, Labels, Logits, Losses, Mask

_MOST_KEPT = 17
"""Iterates of one batch that are held at a time: the best as a whole, and one for each of up to sixteen victims."""


def batchwise(attack_batch: Callable[..., Submissions]) -> Attack:
    """An attack that moves consecutive whole batches, each from the same seed; one without active rows is left alone.

    ``attack_batch(view, x, y, active, threat, seed, **parameters)`` answers for one batch. Answers of several batches
    are submitted side by side; a batch that has no more repeats its last.
    """

    def search(task: Task, **parameters: Parameter) -> Iterator[Images]:
        x, y, active = task.x, task.y, task.active
        batches = torch.split(torch.arange(len(x), device=x.device), task.batch_size)
        answers = [
            iter(attack_batch(task.view, x[rows], y[rows], active[rows], task.threat, task.seed, **parameters))
            if active[rows].any()
            else iter(())
            for rows in batches
        ]
        latest = [x[rows] for rows in batches]
        for k in count():
            fresh = [next(answer, None) for answer in answers]
            if k and not any(x_adv is not None for x_adv in fresh):
                return
            latest = [old if new is None else new for old, new in zip(latest, fresh, strict=True)]
            yield torch.cat(latest)

    return Attack(search, requires_row_independence=False)


class Remembering:
    """A view that does not ask the target again for what itself, being the target, has just answered."""

    def __init__(self, view: View) -> None:
        self.name, self.row_independent, self.is_target = view.name, view.row_independent, view.is_target
        self._view = view
        self._asked: Images | None = None
        self._answer: Logits | None = None

    def __call__(self, x: Images) -> Logits:
        """Logits of the view."""
        logits = self._view(x)
        self._asked, self._answer = x.detach(), logits.detach().clone()  # the caller may write into what he gets
        return logits

    def target_logits(self, x: Images) -> Logits:
        """Logits of the target; those of the last call, if it was for the same images."""
        if self.is_target and self._answer is not None and self._asked is not None and torch.equal(x, self._asked):
            return self._answer
        return self._view.target_logits(x)


@dataclass(frozen=True)
class _Iterate:
    x: Images
    wrong: Mask
    score: tuple[int, float]


class Cover:
    """Few iterates of one batch that together have every row wrong that any iterate had wrong, as far as they suffice.

    The first is the one with the most active rows wrong on the true target, ties by summed loss. ``victims`` are the
    rows for whose sake it is searched, if not all at once; what breaks one of up to sixteen always stays.
    """

    def __init__(self, view: View, y: Labels, active: Mask, victims: Mask | None = None) -> None:
        self.view = view
        self._y, self._active, self._victims = y, active, victims
        self._kept: list[_Iterate] = []
        self._wrong = torch.zeros_like(active)

    @property
    def submissions(self) -> tuple[Images, ...]:
        """What was kept, the best as a whole first."""
        return tuple(iterate.x for iterate in self._kept)

    @property
    def wrong(self) -> Mask:
        """Active rows that are wrong in some iterate that is kept."""
        return self._wrong

    def observe(self, x: Images, losses: Losses) -> bool:
        """Look at one iterate; True when all is won: the victims in any iterates, or else all active rows in this."""
        return self.take(x, self.view.target_logits(x), losses)

    def take(self, x: Images, target_logits: Logits, losses: Losses) -> bool:
        """As ``observe``, for an iterate whose true logits are known."""
        wrong = self._active & (target_logits.argmax(dim=1) != self._y)
        score = int(wrong.sum()), float(losses.sum())
        if not self._kept or score > self._kept[0].score or bool((wrong & ~self._wrong).any()):
            self._keep(_Iterate(x, wrong, score))
        if self._victims is None:
            return score[0] == int(self._active.sum())
        return bool((self._wrong | ~self._victims).all())

    def _keep(self, iterate: _Iterate) -> None:
        """Take it in; of all that are held, those stay that add victims to better ones, then those that add rows."""
        best, *rest = sorted([*self._kept, iterate], key=lambda held: held.score, reverse=True)
        self._kept, self._wrong = [best], best.wrong
        for wanted in (self._active if self._victims is None else self._victims, self._active):
            for held in rest:
                if len(self._kept) < _MOST_KEPT and bool((held.wrong & wanted & ~self._wrong).any()):
                    self._kept.append(held)
                    self._wrong = self._wrong | held.wrong
