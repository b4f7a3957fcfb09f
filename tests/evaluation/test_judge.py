"""The judge: what counts as broken, and what does not count at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpm_robustbench.evaluation.judge import Judgement, judge, legal, perturbation_size, worst_of
from hpm_robustbench.ledger.record import Verdict
from hpm_robustbench.threat import Norm, ThreatModel

LINF = ThreatModel.parse("Linf", "8/255")


def brightness(x: torch.Tensor) -> torch.Tensor:
    """A target with a known boundary: class 1 if the mean is above one half."""
    mean = x.flatten(1).mean(dim=1)
    return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def whole(n: int) -> list[slice]:
    return [slice(0, n)]


def test_a_legal_change_of_label_breaks_a_row_and_the_target_decides() -> None:
    x = torch.full((3, 1, 2, 2), 0.49)
    x_adv = torch.stack([x[0] + 0.02, x[1] + 0.005, x[2]])
    judged = judge(brightness, x, x_adv, torch.zeros(3, dtype=torch.int64), LINF, whole(3))
    assert judged.verdict.tolist() == [Verdict.BROKEN, Verdict.STANDING, Verdict.STANDING]
    assert judged.predicted.tolist() == [1, 0, 0]
    assert judged.distance.tolist() == pytest.approx([0.02, 0.005, 0.0], abs=1e-6)
    assert judged.flags == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x + 0.04,  # outside the budget
        lambda x: torch.full_like(x, float("nan")),
        lambda x: torch.full_like(x, float("inf")),
        lambda x: x * 0 - 1e-6,  # outside the box
    ],
)
def test_an_illegal_image_does_not_count_even_if_it_fools_the_target(spoil: object) -> None:
    x = torch.full((2, 1, 2, 2), 0.49)
    x_adv = torch.cat([spoil(x[:1]), x[1:] + 0.02])  # type: ignore[operator]
    judged = judge(brightness, x, x_adv, torch.zeros(2, dtype=torch.int64), LINF, whole(2))
    assert judged.verdict.tolist() == [Verdict.INVALID, Verdict.BROKEN]
    assert any("outside the threat model" in flag for flag in judged.flags)


def test_an_attack_that_gives_up_silently_is_flagged() -> None:
    x = torch.rand(2, 1, 2, 2)
    judged = judge(brightness, x, x.clone(), brightness(x).argmax(1), LINF, whole(2))
    assert judged.flags == ("found nothing in a shard: returned its images unchanged",)


def test_a_target_that_answers_nan_has_lost_the_row_and_says_so() -> None:
    def fragile(x: torch.Tensor) -> torch.Tensor:
        return brightness(x).masked_fill(x.flatten(1).mean(dim=1, keepdim=True) > 0.5, float("nan"))

    x = torch.full((1, 1, 2, 2), 0.49)
    judged = judge(fragile, x, x + 0.02, torch.zeros(1, dtype=torch.int64), LINF, whole(1))
    assert judged.verdict.tolist() == [Verdict.BROKEN]
    assert any("NaN" in flag for flag in judged.flags)


def test_batches_reach_the_target_as_they_were_given() -> None:
    seen: list[int] = []

    def counting(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return brightness(x)

    x = torch.rand(5, 1, 2, 2)
    judge(counting, x, x, torch.zeros(5, dtype=torch.int64), LINF, [slice(0, 2), slice(2, 4), slice(4, 5)])
    assert seen == [2, 2, 1]


def moved(threat: ThreatModel, seed: int, beyond: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images well inside the box, and float32 roundings of points at eps + beyond from them."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 + 0.4 * torch.rand(4, 1, 5, 5, generator=generator)
    delta = torch.randn(4, 1, 5, 5, generator=generator, dtype=torch.float64)
    size = delta.flatten(1).abs().amax(1) if threat.norm is Norm.LINF else delta.flatten(1).norm(dim=1)
    return x, (x.double() + delta * ((float(threat.eps) + beyond) / size).view(-1, 1, 1, 1)).float()


BUDGETS = [LINF, ThreatModel.parse("L2", "0.2")]


@given(seed=st.integers(0, 2**16), threat=st.sampled_from(BUDGETS))
def test_rounding_an_in_budget_image_to_float32_keeps_it_legal(seed: int, threat: ThreatModel) -> None:
    assert legal(*moved(threat, seed, beyond=0.0), threat).all()


@given(seed=st.integers(0, 2**16), threat=st.sampled_from(BUDGETS))
def test_a_millionth_of_the_image_range_beyond_the_budget_is_illegal(seed: int, threat: ThreatModel) -> None:
    assert not legal(*moved(threat, seed, beyond=1e-6), threat).any()


def test_sizes_are_exact() -> None:
    x, x_adv = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.25, 0.5]]]])
    assert perturbation_size(x, x_adv, Norm.LINF).item() == 0.5
    assert perturbation_size(x, x_adv, Norm.L2).item() == pytest.approx(0.3125**0.5, abs=1e-15)


def judge_both(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, batches: list[slice]) -> Judgement:
    y = torch.zeros(len(x), dtype=torch.int64)
    one, other = (judge(brightness, x, x_adv, y, LINF, batches) for x_adv in (first, second))
    return worst_of(one, other, batches)


def test_a_row_is_lost_in_any_submission_and_a_batch_in_the_worst_of_them() -> None:
    """Rows 0 and 1 err in one submission each, row 2 in none; the second submission has two of three wrong."""
    x = torch.full((3, 1, 2, 2), 0.49)
    first, second = x.clone(), x.clone()
    first[1], first[2] = 0.9, 0.49 + 0.02  # out of budget; wrong
    second[0] += 0.03
    second[2] += 0.025
    judged = judge_both(x, first, second, whole(3))
    assert judged.verdict.tolist() == [Verdict.BROKEN, Verdict.STANDING, Verdict.BROKEN]
    assert judged.together.tolist() == [Verdict.BROKEN, Verdict.STANDING, Verdict.BROKEN]
    assert judged.distance.tolist() == pytest.approx([0.03, 0.0, 0.02], abs=1e-6)
    swapped = judge_both(x, second, first, whole(3))
    assert torch.equal(swapped.verdict, judged.verdict)
    assert torch.equal(swapped.together, judged.together)


def test_submissions_are_judged_batch_by_batch() -> None:
    """Each batch meets the submission that hurts it most."""
    x = torch.full((4, 1, 2, 2), 0.49)
    first, second = x.clone(), x.clone()
    first[:2] += 0.02
    second[2:] += 0.02
    judged = judge_both(x, first, second, [slice(0, 2), slice(2, 4)])
    assert judged.together.tolist() == [Verdict.BROKEN] * 4
    at_once = judge_both(x, first, second, whole(4))
    assert at_once.together.tolist() == [Verdict.BROKEN] * 2 + [Verdict.STANDING] * 2
    assert at_once.verdict.tolist() == [Verdict.BROKEN] * 4
