"""Losses against worked examples and against the reference's own."""

import pytest
import torch

from hpm_robustbench.attacks import losses
from hpm_robustbench.robustbench_compat import import_autoattack

LOGITS = torch.tensor([[4.0, 1.0, 3.0, 2.0], [0.0, 5.0, 1.0, 2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 3])


def test_worked_examples():
    # Row 0: own 4, best other 3, spread 4 - 2. Row 1: own 2, best other 5, spread 5 - 1.
    assert losses.margin(LOGITS, LABELS).tolist() == [-1, 3]
    assert losses.dlr(LOGITS, LABELS).tolist() == pytest.approx([-1 / 2, 3 / 4])
    # Targets 1 and 0: spread 4 - (2 + 1) / 2, and 5 - (1 + 0) / 2.
    targets = torch.tensor([1, 0])
    assert losses.targeted_margin(LOGITS, LABELS, targets).tolist() == [-3, -2]
    assert losses.targeted_dlr(LOGITS, LABELS, targets).tolist() == pytest.approx([-3 / 2.5, -2 / 4.5])
    assert losses.ranked_others(LOGITS, LABELS).tolist() == [[2, 3, 1], [1, 2, 0]]


def test_equal_to_the_reference():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 10, generator=generator)
    y, target = torch.arange(50) % 10, (torch.arange(50) + 3) % 10
    reference = import_autoattack().autopgd_base.APGDAttack_targeted(None, eps=0.1)
    reference.y_target = target
    torch.testing.assert_close(losses.dlr(logits, y), reference.dlr_loss(logits, y))
    torch.testing.assert_close(losses.targeted_dlr(logits, y, target), reference.dlr_loss_targeted(logits, y))


def test_few_classes_fall_back_to_the_margin():
    y, target = torch.tensor([0, 1]), torch.tensor([1, 0])
    assert torch.equal(losses.dlr(LOGITS[:, :2], y), losses.margin(LOGITS[:, :2], y))
    assert torch.equal(losses.targeted_dlr(LOGITS[:, :3], y, target), losses.targeted_margin(LOGITS[:, :3], y, target))


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_positive_exactly_where_misclassified(name):
    logits = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    y = torch.arange(200) % 5
    assert torch.equal(losses.UNTARGETED[name](logits, y) > 0, logits.argmax(1) != y)
