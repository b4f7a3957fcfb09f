"""Victims of a coupled batch, one at a time: where nobody changes FC's mind, what can be broken has a closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching, ThreatModel

LINF = ThreatModel.parse("Linf", "0.05")
EPS, BETA, N_PIXELS = 0.05, 0.6, 9


class _ByMarker(nn.Linear):
    """An FC head that looks at the first pixel alone, which no attack within eps moves across the middle."""

    def __init__(self) -> None:
        super().__init__(N_PIXELS, 2)
        weight = torch.zeros(2, N_PIXELS)
        weight[:, 0] = torch.tensor([-100.0, 100.0])
        self.load_state_dict({"weight": weight, "bias": torch.tensor([50.0, -50.0])})


@pytest.fixture
def world() -> tuple[Subject, Tensor, Tensor]:
    """HPM over the pixels themselves; images of either class lie anywhere between the middle and beyond a prototype."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.stack([torch.full((N_PIXELS,), 0.45), torch.full((N_PIXELS,), 0.55)])
    classifier = HPMClassifier(Split(nn.Flatten(), _ByMarker()), prototypes, HPMConfig(beta=BETA), tau=1.0).freeze()
    y = torch.arange(40) % 2
    x = 0.5 + (2 * y[:, None] - 1) * 0.12 * torch.rand(40, 1, generator=generator)
    x = x + 0.1 * (torch.rand(40, N_PIXELS, generator=generator) - 0.5)
    x[:, 0] = 0.42 + 0.16 * y
    subject = Subject(classifier.with_batching(Batching.JOINT), nn.Sequential(nn.Flatten(), _ByMarker()))
    return subject, x.view(40, 1, 3, 3), y


def most_wrong(x: Tensor, y: Tensor, row: int) -> float:
    """The highest margin of a row, pixel by pixel: its own pixel on a grid, and the sums of its mates' at their ends.

    The square of its distance from its own prototype is convex in their sum; the other prototype can be put as near
    as its members reach. Both count n of n images, by BETA.
    """
    low, high = ((x.flatten(1).double() + move).clamp(0, 1) for move in (-EPS, EPS))
    own, other = (y == y[row]), (y != y[row])
    mates = own & (torch.arange(len(y)) != row)
    centers = (0.45, 0.55) if y[row] == 0 else (0.55, 0.45)
    total = 0.0
    for k in range(N_PIXELS):
        z = torch.linspace(float(low[row, k]), float(high[row, k]), 2001, dtype=torch.float64)
        ends = [(1 - BETA) * centers[0] + BETA * (z + side[mates, k].sum()) / own.sum() for side in (low, high)]
        from_own = torch.stack([(z - end).square() for end in ends]).amax(0)
        nearest, farthest = ((1 - BETA) * centers[1] + BETA * side[other, k].mean() for side in (low, high))
        from_other = (nearest - z).clamp_min(0) + (z - farthest).clamp_min(0)
        total += float((from_own - from_other.square()).max())
    return total


def taken(subject: Subject, x: Tensor, y: Tensor, **parameters: int) -> Tensor:
    view, active = make_view("hpm", subject), subject.target_logits(x).argmax(1) == y
    answers = [*run_attack(Step("hpm", "in-turns", "msa", parameters), view, x, y, active, LINF, 0, len(x))]
    return active & torch.stack([subject.target_logits(x_adv).argmax(1) != y for x_adv in answers]).any(0)


def test_takes_what_the_closed_form_allows_and_nothing_else(world) -> None:
    subject, x, y = world
    right = subject.target_logits(x).argmax(1) == y
    margins = torch.tensor([most_wrong(x, y, row) for row in range(len(x))])
    clearly = right & (margins > 2e-3)
    assert 5 < clearly.sum() < right.sum() - 5
    won = taken(subject, x, y)
    assert not (won & (margins < 0)).any()
    assert (won & clearly).sum() == clearly.sum()


def test_the_mates_are_what_it_takes(world) -> None:
    """Beside mates that stay clean some of these rows cannot fall: the closed form again, with nobody else moving."""
    subject, x, y = world
    assert taken(subject, x, y, turns=0).sum() < taken(subject, x, y).sum()


def test_an_image_without_mates_moves_alone(world) -> None:
    subject, x, y = world
    for row in range(4):
        lone = slice(row, row + 1)
        solo = Subject(subject.classifier.with_batching(Batching.SOLO), subject.base)
        view, active = make_view("hpm", solo), torch.ones(1, dtype=torch.bool)
        step = Step("hpm", "conjunction", "msa", {"softness": 0.1})
        [x_adv] = run_attack(step, view, x[lone], y[lone], active, LINF, 0, 1)
        assert taken(subject, x[lone], y[lone]).item() == (solo.target_logits(x_adv).argmax(1) != y[lone]).item()


def test_a_row_that_fell_on_the_way_is_left_alone(world) -> None:
    subject, x, _ = world
    view, active = make_view("hpm", subject), torch.ones(len(x), dtype=torch.bool)
    wrong = 1 - subject.target_logits(x).argmax(1)
    answers = [*run_attack(Step("hpm", "in-turns", "msa"), view, x, wrong, active, LINF, 0, len(x))]
    assert len(answers) == 1, "everybody is wrong in the first submission"
    assert view.cost.forward < 40 * len(x)


def test_a_failure_is_shown_to_the_judge_once(world) -> None:
    subject, x, y = world
    far, threat = 2 * y[:, None, None, None] * 0.5 + 0 * x, ThreatModel.parse("Linf", "0.001")
    view, active = make_view("hpm", subject), subject.target_logits(far).argmax(1) == y
    assert active.all()
    answers = [*run_attack(Step("hpm", "in-turns", "msa", {"steps": 2}), view, far, y, active, threat, 0, len(x))]
    assert len(answers) == 1
    assert (subject.target_logits(answers[0]).argmax(1) == y).all()
