"""The backward pass: exact where the forward pass is smooth, as documented where it is not, finite everywhere."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import Reference, hpm_distances, memberships, solo_discount, squared_distances
from hpm_robustbench.threat import Batching

N, K, D, R = 6, 4, 3, 5


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference_of(config):
    return Reference(normal(R, D, seed=5), memberships(normal(R, K, seed=6), config))


def distances_of(z, logits, config, batching, *, dataset=None, beta=None):
    return hpm_distances(
        z,
        logits,
        normal(K, D, seed=3) if dataset is None else dataset,
        torch.full((K,), config.beta, dtype=z.dtype) if beta is None else beta,
        config,
        batching,
        reference=reference_of(config) if batching is Batching.REFERENCE else None,
        carried=normal(K, D, seed=4),
    )


SMOOTH = [
    HPMConfig(assignment=assignment, absent=absent, include_self=include_self, **knobs)
    for assignment, absent, include_self, knobs in itertools.product(
        ("soft", "top-k"),
        ("dataset", "carry"),
        (True, False),
        ({}, {"distance": "l2"}, {"distance": "scaled-l2", "kappa": 2.0}, {"normalize": True, "temperature": 0.5}),
    )
]


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("config", SMOOTH, ids=lambda c: f"{c.assignment}-{c.absent}-{c.include_self}-{c.distance}")
def test_soft_assignments_have_exact_gradients(config, batching):
    inputs = [normal(N, D), normal(N, K, seed=1), normal(K, D, seed=3), normal(K, seed=8).sigmoid()]

    def function(z, logits, dataset, beta):
        return distances_of(z, logits, config, batching, dataset=dataset, beta=beta)

    torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs], fast_mode=True)


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("distance", ["squared", "l2", "scaled-l2"])
def test_hard_assignment_has_exact_gradients_towards_all_but_the_logits(distance, batching):
    config, logits = HPMConfig(distance=distance), normal(N, K, seed=1)
    inputs = [normal(N, D), normal(K, D, seed=3), normal(K, seed=8).sigmoid()]

    def function(z, dataset, beta):
        return distances_of(z, logits, config, batching, dataset=dataset, beta=beta)

    torch.autograd.gradcheck(function, [value.requires_grad_() for value in inputs])


def test_static_distances_have_exact_gradients():
    inputs = [normal(N, D).requires_grad_(), normal(K, D, seed=3).requires_grad_()]
    torch.autograd.gradcheck(squared_distances, inputs)


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.5}, {"assignment": "threshold", "confidence": 0.2}])
def test_straight_through_backward_of_memberships_is_the_softmax_jacobian(knobs):
    """dw_ic / da_ij = q_ic (1[c = j] - q_ij) / T."""
    config, logits = HPMConfig(**knobs), normal(K, seed=1)
    q = F.softmax(logits / config.temperature, dim=0)
    got = torch.autograd.functional.jacobian(lambda a: memberships(a.unsqueeze(0), config)[0], logits)
    torch.testing.assert_close(got, (q.diag() - q.outer(q)) / config.temperature)


def test_an_image_below_the_threshold_sends_nothing_back():
    config = HPMConfig(assignment="threshold", confidence=0.99)
    got = torch.autograd.functional.jacobian(lambda a: memberships(a.unsqueeze(0), config)[0], normal(K, seed=1))
    assert torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("gradient", ["full", "weights", "features", "none"])
def test_straight_through_gradients_of_joint_follow_the_chain_rule(gradient):
    """With G the gradient towards squared distances, the prototypes receive g_c = -2 sum_i G_ic (z_i - P_c), and

        dL/dz_i  = 2 sum_c G_ic (z_i - P_c)  +  sum_c beta / n_c h_ic g_c                         (features)
        dL/da_ij = sum_c beta / n_c (z_i - mBt_c) . g_c  q_ic (1[c = j] - q_ij) / T               (weights)

    over the classes present. Absent classes send nothing back.
    """
    temperature, beta = 0.7, 0.5
    config = HPMConfig(gradient=gradient, temperature=temperature, beta=beta)
    z, logits, dataset, G = normal(N, D), normal(N, K, seed=1), normal(K, D, seed=3), normal(N, K, seed=7)
    logits[:, 3] = -9.0  # nobody's class
    h, q = F.one_hot(logits.argmax(dim=1), K).to(z.dtype), F.softmax(logits / temperature, dim=1)
    want_z, want_a, prototypes = torch.zeros_like(z), torch.zeros_like(logits), dataset.clone()
    present = [c for c in range(K) if h[:, c].sum() > 0]
    assert len(present) == 3
    means = {c: z[h[:, c] == 1].mean(dim=0) for c in present}
    for c in present:
        prototypes[c] = (1 - beta) * dataset[c] + beta * means[c]
    for i in range(N):
        want_z[i] = sum(2 * G[i, c] * (z[i] - prototypes[c]) for c in range(K))
    for c in present:
        share = beta / h[:, c].sum()
        g = sum(-2 * G[i, c] * (z[i] - prototypes[c]) for i in range(N))
        for i in range(N):
            if gradient in ("full", "features"):
                want_z[i] += share * h[i, c] * g
            if gradient in ("full", "weights"):
                jacobian = q[i, c] * (F.one_hot(torch.tensor(c), K) - q[i]) / temperature
                want_a[i] += share * (z[i] - means[c]).dot(g) * jacobian
    z, logits = z.requires_grad_(), logits.requires_grad_()
    loss = (G * distances_of(z, logits, config, Batching.JOINT, dataset=dataset)).sum()
    got_z, got_a = torch.autograd.grad(loss, (z, logits), allow_unused=True)
    torch.testing.assert_close(got_z, want_z)
    torch.testing.assert_close(torch.zeros_like(logits) if got_a is None else got_a, want_a)


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("assignment", ["hard", "soft", "threshold", "top-k"])
def test_gradient_knob_changes_the_backward_pass_alone(assignment, batching):
    z, logits = normal(N, D), normal(N, K, seed=1)
    knobs = {"assignment": assignment, "confidence": 0.3}
    values = [
        distances_of(z, logits, HPMConfig(gradient=gradient, **knobs), batching)
        for gradient in ("full", "weights", "features", "none")
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


@pytest.mark.parametrize("kappa", [0.0, 2.0])
@pytest.mark.parametrize("gradient", ["full", "weights", "features", "none"])
@pytest.mark.parametrize("assignment", ["hard", "soft", "threshold", "top-k"])
@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.REFERENCE])
def test_gradients_do_not_depend_on_how_a_batching_is_computed(batching, assignment, gradient, kappa):
    """SOLO has a shortcut; its gradients are those of JOINT on each row alone (P2 holds for the backward pass too)."""
    config = HPMConfig(assignment=assignment, gradient=gradient, kappa=kappa, confidence=0.3)
    z, logits = normal(N, D).requires_grad_(), normal(N, K, seed=1).requires_grad_()
    mixture = normal(N, K, seed=7)
    got = torch.autograd.grad(
        (mixture * distances_of(z, logits, config, batching)).sum(), (z, logits), materialize_grads=True
    )
    fixed = reference_of(config)
    anchors = normal(R, K, seed=6) if batching is Batching.REFERENCE else normal(0, K)
    features = fixed.features if batching is Batching.REFERENCE else normal(0, D)
    rows = [
        distances_of(
            torch.cat([features, z[i : i + 1]]), torch.cat([anchors, logits[i : i + 1]]), config, Batching.JOINT
        )[-1]
        for i in range(N)
    ]
    want = torch.autograd.grad((mixture * torch.stack(rows)).sum(), (z, logits), materialize_grads=True)
    torch.testing.assert_close(got, want)


def test_the_count_in_count_aware_beta_carries_no_gradient():
    """n_c is an integer: a batch of one has mean w z / w = z whatever w, so nothing at all reaches the logits."""
    z, logits = normal(1, D).requires_grad_(), normal(1, K, seed=1).requires_grad_()
    got = distances_of(z, logits, HPMConfig(kappa=1.0), Batching.JOINT)
    (gradient,) = torch.autograd.grad((normal(1, K, seed=7) * got).sum(), logits)
    assert gradient.abs().max() < 1e-12


EDGES = {
    "absent classes": (normal(3, D), torch.tensor([[4.0, 0, 0, 0]] * 3)),
    "one member each": (normal(K, D), 3 * torch.eye(K)),
    "identical images": (normal(1, D).repeat(N, 1), normal(1, K).repeat(N, 1)),
    "a batch of one": (normal(1, D), normal(1, K)),
    "ties everywhere": (normal(N, D), torch.zeros(N, K)),
    "extreme logits": (normal(N, D), 1e4 * normal(N, K, seed=1)),
    "extreme features": (1e4 * normal(N, D), normal(N, K, seed=1)),
    "features at zero": (torch.zeros(N, D), normal(N, K, seed=1)),
    "features at a prototype": (normal(K, D, seed=3), 3 * torch.eye(K)),
}
BRANCHES = list(
    itertools.product(
        ("hard", "soft", "threshold", "top-k"), ("dataset", "drop", "carry"), ("squared", "l2"), (True, False)
    )
)


@pytest.mark.parametrize("batching", Batching)
@pytest.mark.parametrize("edge", EDGES)
def test_nothing_is_nan_or_infinite_at_the_edges(edge, batching):
    z, logits = (value.to(torch.float32) for value in EDGES[edge])
    dataset, carried = (normal(K, D, seed=seed, dtype=torch.float32) for seed in (3, 4))
    for assignment, absent, distance, include_self in BRANCHES:
        config = HPMConfig(assignment=assignment, absent=absent, distance=distance, include_self=include_self)
        reference = Reference(*(part.float() for part in reference_of(config)))
        # beta 1 puts the prototype of a single member exactly on it
        inputs = [value.clone().requires_grad_() for value in (z, logits, dataset, torch.tensor([1.0, 1.0, 0.0, 1.0]))]
        got = hpm_distances(
            *inputs,
            config,
            batching,
            reference=reference if batching is Batching.REFERENCE else None,
            carried=carried,
        )
        assert got.isfinite().all(), config
        for gradient in torch.autograd.grad(got.sum(), inputs, materialize_grads=True):
            assert gradient.isfinite().all(), config


def test_a_soft_batch_without_oneself_never_divides_by_a_rounded_zero():
    """In float32 (1 + 4e-8) - 1 is 0, while 1 - 4e-8 still says that there is a member."""
    logits = torch.tensor([[0.0, 40.0], [17.0, 0.0]], requires_grad=True)
    config = HPMConfig(assignment="soft", include_self=False)
    z, dataset = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.zeros(2, 2)
    got = hpm_distances(z, logits, dataset, torch.full((2,), 0.5), config, Batching.JOINT)
    (gradient,) = torch.autograd.grad(got.sum(), logits)
    # row 0 sees nearly nobody in class 1, and row 1 fully in class 0: P = (3, 5) / 2 and 0; row 1 the other way round
    torch.testing.assert_close(got, torch.tensor([[0.5, 5.0], [34.0, 6.25 + 16.0]]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("distance", ["l2", "scaled-l2"])
def test_an_unsquared_distance_of_zero_has_gradient_zero(distance):
    config = HPMConfig(beta=1.0, distance=distance)
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    got = hpm_distances(z, torch.tensor([[5.0, 0.0]]), torch.zeros(2, 2), torch.ones(2), config, Batching.SOLO)
    assert got[0, 0] == 0
    (gradient,) = torch.autograd.grad(got[0, 0], z)
    assert torch.equal(gradient, torch.zeros_like(z))


def test_solo_discount_is_the_squared_share_that_is_left():
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    beta = torch.tensor([0.5, 0.25])
    assert solo_discount(w, beta, HPMConfig()).tolist() == [[0.25, 1.0], [1.0, 0.5625]]
    assert solo_discount(w, beta, HPMConfig(kappa=1.0)).tolist() == [[0.5625, 1.0], [1.0, 0.765625]]
