"""What follows from the definition: P1 to P3 of the method, its two ends in beta, and the limit of the soft one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import (
    Reference,
    gather,
    hard_assignment,
    hpm_distances,
    memberships,
    mix,
    squared_distances,
)
from hpm_robustbench.threat import Batching

N, K, D, R = 200, 5, 4, 20


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decided(n, seed):
    """FC logits with a clear winner among the first three classes; the others stay absent."""
    return 2 * normal(n, K, seed=seed).sigmoid() + 5 * F.one_hot(torch.arange(n) % 3, K)


ANCHORS, ANCHOR_LOGITS = normal(R, D, seed=4), decided(R, seed=5)
Z, LOGITS, DATASET, CARRIED = normal(N, D, seed=0), normal(N, K, seed=1), normal(K, D, seed=2), normal(K, D, seed=3)


def distances_of(config, batching, z=Z, logits=LOGITS):
    return hpm_distances(
        z,
        logits,
        DATASET,
        torch.full((K,), config.beta, dtype=z.dtype),
        config,
        batching,
        reference=Reference(ANCHORS, memberships(ANCHOR_LOGITS, config)) if batching is Batching.REFERENCE else None,
        carried=CARRIED,
    )


def test_p1_static_prototypes_are_a_linear_head():
    scores = -squared_distances(Z, DATASET)
    linear = 2 * Z @ DATASET.T - DATASET.square().sum(dim=1)
    assert torch.equal(scores.argmax(dim=1), linear.argmax(dim=1))
    torch.testing.assert_close(scores + Z.square().sum(dim=1, keepdim=True), linear)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1.0])
def test_p2_solo_discounts_the_fc_class_and_nothing_else(beta):
    static = squared_distances(Z, DATASET)
    chosen = hard_assignment(LOGITS).bool()
    wanted = torch.where(chosen, (1 - beta) ** 2 * static, static)
    torch.testing.assert_close(distances_of(HPMConfig(beta=beta), Batching.SOLO), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1.0])
def test_p2_error_region_is_exact(beta):
    predictions = distances_of(HPMConfig(beta=beta), Batching.SOLO).argmin(dim=1).tolist()
    static, labels, g = (
        squared_distances(Z, DATASET).tolist(),
        normal(N, K, seed=6).argmax(dim=1).tolist(),
        (1 - beta) ** 2,
    )
    errors = 0
    for away, fc, y, predicted in zip(static, LOGITS.argmax(dim=1).tolist(), labels, predictions, strict=True):
        if fc == y:
            wrong = any(away[c] < g * away[y] for c in range(K) if c != y)
        else:
            wrong = g * away[fc] < away[y] or any(away[c] < away[y] for c in range(K) if c not in (y, fc))
        assert wrong == (predicted != y)
        errors += wrong
    assert 0 < errors < N


def test_p3_each_row_pulls_its_own_prototype():
    """z_i - P_k = (1 - beta/n) z_i - (1-beta) mD_k - beta (n-1)/n mean(others)."""
    beta, config = 0.3, HPMConfig(beta=0.3)
    batch = gather(Z, memberships(LOGITS, config), config, Batching.JOINT, None)
    prototypes = mix(DATASET, batch, torch.full((K,), beta, dtype=Z.dtype), config, CARRIED)
    classes = LOGITS.argmax(dim=1)
    for i in range(N):
        mates = (classes == classes[i]) & (torch.arange(N) != i)
        n = int(mates.sum()) + 1
        others = beta * (n - 1) / n * Z[mates].mean(dim=0)
        wanted = (1 - beta / n) * Z[i] - (1 - beta) * DATASET[classes[i]] - others
        torch.testing.assert_close(Z[i] - prototypes[classes[i]], wanted)


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("assignment", ["hard", "soft", "threshold", "top-k"])
@pytest.mark.parametrize("absent", ["dataset", "carry"])
def test_beta_zero_is_static_under_every_batching(batching, assignment, absent):
    config = HPMConfig(beta=0.0, assignment=assignment, absent=absent)
    torch.testing.assert_close(distances_of(config, batching), squared_distances(Z, DATASET))


@pytest.mark.parametrize("absent", ["dataset", "drop"])
@pytest.mark.parametrize("distance", ["squared", "l2", "scaled-l2"])
def test_beta_one_alone_predicts_as_fc_does(absent, distance):
    config = HPMConfig(beta=1.0, absent=absent, distance=distance)
    assert torch.equal(distances_of(config, Batching.SOLO).argmin(dim=1), LOGITS.argmax(dim=1))


def test_regrouping_changes_joint_answers():
    """The reason why JOINT is declared batch-coupled."""
    config = HPMConfig()
    whole = distances_of(config, Batching.JOINT).argmin(dim=1)
    halves = [distances_of(config, Batching.JOINT, Z[rows], LOGITS[rows]) for rows in (slice(0, 100), slice(100, 200))]
    assert (whole != torch.cat(halves).argmin(dim=1)).any()


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("absent", ["dataset", "carry"])
@pytest.mark.parametrize("include_self", [True, False])
def test_soft_tends_to_hard_as_fast_as_the_memberships_do(batching, absent, include_self):
    z, logits = Z[:12], decided(12, seed=7)
    knobs = {"absent": absent, "include_self": include_self}
    hard = distances_of(HPMConfig(**knobs), batching, z, logits)
    for temperature in (2.0, 1.0, 0.5, 0.3, 0.2, 0.1):
        config = HPMConfig(assignment="soft", temperature=temperature, **knobs)
        apart = max((memberships(a, config) - hard_assignment(a)).abs().max() for a in (logits, ANCHOR_LOGITS))
        assert (distances_of(config, batching, z, logits) - hard).abs().max() <= 100 * apart + 1e-12
    assert apart < 1e-9


@pytest.mark.parametrize("batching", Batching)
def test_soft_tends_to_hard_also_where_absent_classes_are_dropped(batching):
    z, logits = Z[:12], decided(12, seed=7)
    hard = distances_of(HPMConfig(absent="drop"), batching, z, logits)
    soft = distances_of(HPMConfig(assignment="soft", temperature=0.01, absent="drop"), batching, z, logits)
    torch.testing.assert_close(soft, hard)
