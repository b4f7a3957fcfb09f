"""Worlds small enough to work out by hand: two features, two or three classes, every number derived in the comments.

The first world: three rows on the plane, FC puts rows 0 and 1 into class 0 (row 1 by a tie) and row 2 into class 1;
class 2 has no member.
"""

from __future__ import annotations

from math import log, sqrt

import pytest
import torch

from hpm_robustbench.hpm import prototypes
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import (
    Reference,
    class_means,
    distances,
    ema_update,
    hard_assignment,
    hpm_distances,
    memberships,
)
from hpm_robustbench.threat import Batching


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


Z = tensor([[1, 0], [3, 0], [1, 1]])
LOGITS = tensor([[2, 1, 0], [1, 1, 0], [0, 3, 1]])
DATASET = tensor([[0, 0], [4, 0], [0, 4]])
REFERENCE = Reference(tensor([[2, 2], [6, 0]]), tensor([[1, 0, 0], [0, 1, 0]]))
CARRIED = tensor([[9, 9], [9, 9], [2, 2]])


def solve(batching, beta=0.5, reference=None, carried=None, **knobs):
    config = HPMConfig(beta=beta if isinstance(beta, float) else 0.5, **knobs)
    weight = tensor([beta] * 3 if isinstance(beta, float) else beta)
    return hpm_distances(Z, LOGITS, DATASET, weight, config, batching, reference=reference, carried=carried)


def assert_equal(got, wanted):
    torch.testing.assert_close(got, tensor(wanted), rtol=0, atol=1e-14)


def test_hard_assignment_gives_ties_to_the_lowest_index():
    logits = tensor([[2, 1, 0], [1, 1, 0], [0, 5, 5], [3, 3, 3]])
    assert hard_assignment(logits).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_hard_memberships_are_exactly_zero_or_one():
    """In float32 h + q - q rounds; the forward pass is h itself."""
    logits = 3 * torch.randn((2000, 10), generator=torch.Generator().manual_seed(0))
    assert torch.equal(memberships(logits, HPMConfig()), hard_assignment(logits))


# JOINT: class 0 has mean ((1 + 3) / 2, 0) = (2, 0), class 1 has mean (1, 1), class 2 is absent.


def test_joint_with_equal_parts():
    # P = (1, 0), (2.5, 0.5), (0, 4)
    # row 0 - P = (0, 0), (-1.5, -0.5), (1, -4);  row 1 - P = (2, 0), (0.5, -0.5), (3, -4)
    # row 2 - P = (0, 1), (-1.5, 0.5), (1, -3)
    assert_equal(solve(Batching.JOINT), [[0, 2.5, 17], [4, 0.5, 25], [1, 2.5, 10]])


def test_joint_with_dataset_prototypes_alone():
    # rows - mD: (1, 0), (-3, 0), (1, -4);  (3, 0), (-1, 0), (3, -4);  (1, 1), (-3, 1), (1, -3)
    assert_equal(solve(Batching.JOINT, beta=0.0), [[1, 9, 17], [9, 1, 25], [2, 10, 10]])


def test_joint_with_batch_prototypes_alone():
    # P = (2, 0), (1, 1), (0, 4); row 2 is the only member of class 1, so its distance is zero
    assert_equal(solve(Batching.JOINT, beta=1.0), [[1, 1, 17], [1, 5, 25], [2, 0, 10]])


def test_joint_with_one_beta_per_class():
    # P = (2, 0) from beta 1, (4, 0) from beta 0, (0, 4)
    assert_equal(solve(Batching.JOINT, beta=[1.0, 0.0, 0.5]), [[1, 9, 17], [1, 1, 25], [2, 10, 10]])


def test_joint_with_count_aware_beta():
    # kappa 2: class 0 weighs 1/2 * 2/(2+2) = 1/4, P = (1/2, 0); class 1 weighs 1/2 * 1/(1+2) = 1/6, P = (7/2, 1/6)
    # row 0: 1/4, (5/2)^2 + 1/36;  row 1: (5/2)^2, 1/4 + 1/36;  row 2: 1/4 + 1, (5/2)^2 + (5/6)^2
    wanted = [[1 / 4, 6.25 + 1 / 36, 17], [6.25, 1 / 4 + 1 / 36, 25], [1.25, 6.25 + 25 / 36, 10]]
    assert_equal(solve(Batching.JOINT, kappa=2.0), wanted)


def test_joint_without_oneself():
    # row 0 sees class 0 = {row 1}: P = (1.5, 0);  row 1 sees {row 0}: P = (0.5, 0);  both see class 1 = {row 2}
    # row 2 sees class 0 = {rows 0, 1}: P = (1, 0), and no member of class 1: P = (4, 0)
    wanted = [[0.25, 2.5, 17], [6.25, 0.5, 25], [1, 10, 10]]
    assert_equal(solve(Batching.JOINT, include_self=False), wanted)


def test_joint_drops_an_absent_class_behind_all_others():
    far = 1e4  # beyond the farthest class of the row: 17, 25, 10
    assert_equal(solve(Batching.JOINT, absent="drop"), [[0, 2.5, 17 + far], [4, 0.5, 25 + far], [1, 2.5, 10 + far]])


def test_joint_carries_the_last_batch_prototype_of_an_absent_class():
    # P_2 = ((0, 4) + (2, 2)) / 2 = (1, 3): rows - P_2 = (0, -3), (2, -3), (0, -2); present classes do not look at it
    wanted = [[0, 2.5, 9], [4, 0.5, 13], [1, 2.5, 4]]
    assert_equal(solve(Batching.JOINT, absent="carry", carried=CARRIED), wanted)


@pytest.mark.parametrize(("distance", "scale"), [("l2", 1), ("scaled-l2", sqrt(2))])
def test_unsquared_distances(distance, scale):
    wanted = [[0, sqrt(2.5), sqrt(17)], [2, sqrt(0.5), 5], [1, sqrt(2.5), sqrt(10)]]
    assert_equal(solve(Batching.JOINT, distance=distance) * scale, wanted)


# SOLO: each row alone is its own batch prototype, so its FC class k has z - P_k = (1 - beta) (z - mD_k).


@pytest.mark.parametrize(
    ("beta", "wanted"),
    [
        (0.0, [[1, 9, 17], [9, 1, 25], [2, 10, 10]]),
        (0.5, [[1 / 4, 9, 17], [9 / 4, 1, 25], [2, 10 / 4, 10]]),
        (1.0, [[0, 9, 17], [0, 1, 25], [2, 0, 10]]),
    ],
)
def test_solo_discounts_the_fc_class(beta, wanted):
    assert_equal(solve(Batching.SOLO, beta=beta), wanted)


def test_solo_with_count_aware_beta():
    # kappa 1: a lone member weighs 1/2 * 1/(1+1) = 1/4, so the squared distance is multiplied by 9/16
    assert_equal(solve(Batching.SOLO, kappa=1.0), [[9 / 16, 9, 17], [81 / 16, 1, 25], [2, 90 / 16, 10]])


def test_solo_without_oneself_is_static():
    assert_equal(solve(Batching.SOLO, include_self=False), [[1, 9, 17], [9, 1, 25], [2, 10, 10]])


def test_solo_keeps_only_the_fc_class_when_absent_ones_are_dropped():
    far = 1e4
    wanted = [[1 / 4, 17 + far, 17 + far], [9 / 4, 25 + far, 25 + far], [10 + far, 10 / 4, 10 + far]]
    assert_equal(solve(Batching.SOLO, absent="drop"), wanted)


def test_solo_carries_prototypes_of_all_other_classes():
    # carried P = (4.5, 4.5), (6.5, 4.5), (1, 3) wherever FC did not put the row
    # row 0: P_1: 5.5^2 + 4.5^2 = 50.5, P_2: 9;  row 1: P_1: 3.5^2 + 4.5^2 = 32.5, P_2: 4 + 9;  row 2: P_0: 2 * 3.5^2
    wanted = [[1 / 4, 50.5, 9], [9 / 4, 32.5, 13], [24.5, 10 / 4, 4]]
    assert_equal(solve(Batching.SOLO, absent="carry", carried=CARRIED), wanted)


# REFERENCE: (2, 2) is in class 0 and (6, 0) in class 1; each row joins them alone.


def test_reference_adds_one_row_to_the_fixed_set():
    # row 0: class 0 mean (1.5, 1), P = (0.75, 0.5); class 1 mean (6, 0), P = (5, 0)
    # row 1: class 0 mean (2.5, 1), P = (1.25, 0.5); class 1 as before
    # row 2: class 0 mean (2, 2), P = (1, 1); class 1 mean (3.5, 0.5), P = (3.75, 0.25)
    wanted = [[1 / 16 + 1 / 4, 16, 17], [1.75**2 + 1 / 4, 4, 25], [0, 2.75**2 + 0.75**2, 10]]
    assert_equal(solve(Batching.REFERENCE, reference=REFERENCE), wanted)


def test_reference_without_oneself_is_the_fixed_set_alone():
    # P = (1, 1), (5, 0), (0, 4) for every row
    wanted = [[1, 16, 17], [5, 4, 25], [0, 17, 10]]
    assert_equal(solve(Batching.REFERENCE, reference=REFERENCE, include_self=False), wanted)


# The other assignments, on one or two rows.


def test_threshold_counts_confident_images_only():
    z, logits, dataset = tensor([[2, 0]]), tensor([[log(3), 0]]), tensor([[0, 0], [0, 2]])  # q = 3/4, 1/4
    for confidence, wanted in [(0.7, [[1, 8]]), (0.8, [[4, 8]])]:
        config = HPMConfig(assignment="threshold", confidence=confidence)
        assert_equal(hpm_distances(z, logits, dataset, tensor([0.5, 0.5]), config, Batching.SOLO), wanted)


def test_top_k_shares_an_image_among_its_best_classes():
    logits = tensor([[log(4), log(1), log(2)]])
    assert_equal(memberships(logits, HPMConfig(assignment="top-k", k=2)), [[2 / 3, 0, 1 / 3]])
    assert_equal(memberships(logits, HPMConfig(assignment="top-k", k=1)), [[1, 0, 0]])
    assert_equal(memberships(logits, HPMConfig(assignment="top-k", k=9)), [[4 / 7, 1 / 7, 2 / 7]])


def test_top_k_keeps_k_classes_and_gives_ties_to_the_lowest_index():
    assert memberships(tensor([[0, 1, 1, 1]]), HPMConfig(assignment="top-k", k=2)).tolist() == [[0, 0.5, 0.5, 0]]
    assert memberships(tensor([[1, 1]]), HPMConfig(assignment="top-k", k=1)).tolist() == [[1, 0]]


def test_temperature_of_soft_memberships():
    config = HPMConfig(assignment="soft", temperature=2.0)  # log(9) / 2 = log(3)
    assert_equal(memberships(tensor([[log(9), 0]]), config), [[3 / 4, 1 / 4]])


def test_a_lone_soft_member_is_present_by_its_membership():
    # w = (3/4, 1/4) and the mean is z itself: P_c = mD_c + 1/2 w_c (z - mD_c), so z - P_c = (1 - w_c / 2) (z - mD_c)
    z, logits, dataset = tensor([[2, 0]]), tensor([[log(3), 0]]), tensor([[0, 0], [0, 2]])
    wanted = [[4 * (5 / 8) ** 2, 8 * (7 / 8) ** 2]]
    config = HPMConfig(assignment="soft")
    assert_equal(hpm_distances(z, logits, dataset, tensor([0.5, 0.5]), config, Batching.SOLO), wanted)


def test_two_soft_members():
    # w = (3/4, 1/4), (1/4, 3/4); means 1 and 3 on the first axis; present 1 - 1/4 * 3/4 = 13/16 in both classes
    # P_0 = 13/32 * 1, P_1 = 13/32 * 3 on the first axis, as mD = 0
    z, logits = tensor([[0, 0], [4, 0]]), tensor([[log(3), 0], [0, log(3)]])
    wanted = [[(13 / 32) ** 2, (39 / 32) ** 2], [(4 - 13 / 32) ** 2, (4 - 39 / 32) ** 2]]
    config = HPMConfig(assignment="soft")
    got = hpm_distances(z, logits, torch.zeros((2, 2), dtype=z.dtype), tensor([0.5, 0.5]), config, Batching.JOINT)
    assert_equal(got, wanted)


def test_normalized_prototypes():
    # mean (0.6, 0.8); P_0 = (0.8, 0.4) / |.| = (2, 1) / sqrt(5), z . P_0 = 2 / sqrt(5); P_1 = (0, 1), z . P_1 = 0.8
    # on the unit sphere |z - P|^2 = 2 - 2 z . P
    z, logits, dataset = tensor([[0.6, 0.8]]), tensor([[1, 0]]), tensor([[1, 0], [0, 1]])
    config = HPMConfig(normalize=True)
    for batching in (Batching.JOINT, Batching.SOLO):
        got = hpm_distances(z, logits, dataset, tensor([0.5, 0.5]), config, batching)
        assert_equal(got, [[2 - 4 / sqrt(5), 0.4]])


# What stands around the batch.


def test_distances_from_squared_ones():
    squared = tensor([[0, 4, 9]])
    assert_equal(distances(squared, 4, HPMConfig()), [[0, 4, 9]])
    assert_equal(distances(squared, 4, HPMConfig(distance="l2")), [[0, 2, 3]])
    assert_equal(distances(squared, 4, HPMConfig(distance="scaled-l2")), [[0, 1, 1.5]])


@pytest.mark.parametrize("at_once", [1, 12, 2**24])
def test_distances_do_not_depend_on_how_many_classes_are_taken_at_a_time(monkeypatch, at_once):
    monkeypatch.setattr(prototypes, "_DIFFERENCES_AT_ONCE", at_once)
    wanted = [[1, 9, 17], [9, 1, 25], [2, 10, 10]]
    assert_equal(prototypes.squared_distances(Z, DATASET), wanted)
    assert_equal(prototypes.squared_distances(Z, DATASET.repeat(3, 1, 1)), wanted)


def test_class_means_and_a_class_without_examples():
    z, labels = tensor([[1, 0], [3, 0], [2, 6]]), torch.tensor([0, 0, 2])
    assert_equal(class_means(z, labels, 3), [[2, 0], [2, 2], [2, 6]])  # class 1: the mean of all


def test_class_means_are_accumulated_in_double():
    """A running float32 sum of 1 + 2^-12 over 2^16 examples loses the fraction."""
    z = torch.full((2**16, 1), 1 + 2**-12)
    assert class_means(z, torch.zeros(2**16, dtype=torch.int64), 1).item() == 1 + 2**-12


def test_ema_moves_only_the_classes_that_occur():
    z = tensor([[1, 0], [3, 0], [2, 6]]).requires_grad_()
    got = ema_update(DATASET, z, torch.tensor([1, 1, 2]), momentum=0.75)
    # class 1: 3/4 (4, 0) + 1/4 (2, 0);  class 2: 3/4 (0, 4) + 1/4 (2, 6)
    assert_equal(got, [[0, 0], [3.5, 0], [0.5, 4.5]])
    assert not got.requires_grad
