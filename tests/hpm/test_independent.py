"""HPM again, row by row in plain loops, straight from the formulas; compared over generated batches and knobs.

Inputs lie on a coarse grid, so that ties, duplicates and absent classes are common and everything else is far apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hpm.prototypes import Reference, hpm_distances, memberships
from hpm_robustbench.threat import Batching


class Row(NamedTuple):
    """A member of a batch."""

    z: np.ndarray
    w: list[float]


def softmax(logits, temperature):
    exponentials = [math.exp((a - max(logits)) / temperature) for a in logits]
    return [e / sum(exponentials) for e in exponentials]


def assign(logits, config):
    """Memberships of one row, without their backward pass."""
    q = softmax(logits, config.temperature)
    order = sorted(range(len(q)), key=lambda c: (-logits[c], c))
    if config.assignment == "soft":
        return q
    if config.assignment == "top-k":
        kept = order[: config.k]
        return [q[c] / sum(q[b] for b in kept) if c in kept else 0.0 for c in range(len(q))]
    if config.assignment == "threshold":
        assume(abs(max(q) - config.confidence) > 1e-9)
        if max(q) < config.confidence:
            return [0.0] * len(q)
    return [float(c == order[0]) for c in range(len(q))]


def mixed_prototype(c, batch, dataset, carried, beta, config):
    """P_c for a row that sees ``batch``, and how far class c is present in it."""
    lacking = math.prod(1 - row.w[c] for row in batch)
    if lacking == 1:
        source = carried if config.absent == "carry" else dataset
        prototype = (1 - beta[c]) * dataset[c] + beta[c] * source[c]
    else:
        n = sum(row.w[c] for row in batch)
        mean = sum(row.w[c] * row.z for row in batch) / n
        present = 1 - lacking
        weight = beta[c] * present * (n / (n + config.kappa))
        prototype = (1 - weight) * dataset[c] + weight * mean
        if config.absent == "carry":
            prototype = prototype + (1 - present) * beta[c] * (carried[c] - dataset[c])
    if config.normalize:
        assume(np.linalg.norm(prototype) > 1e-6)
        prototype = prototype / np.linalg.norm(prototype)
    return prototype, 1 - lacking


def distance(z, prototype, config):
    squared = sum((a - b) ** 2 for a, b in zip(z, prototype, strict=True))
    if config.distance == "squared":
        return squared
    return math.sqrt(squared) / (math.sqrt(len(z)) if config.distance == "scaled-l2" else 1)


def naive_distances(world, config, batching):
    """Distances [N, K] by the formulas."""
    rows = [Row(z, assign(logits, config)) for z, logits in zip(world.z, world.logits, strict=True)]
    fixed = [Row(z, assign(logits, config)) for z, logits in zip(world.anchors, world.anchor_logits, strict=True)]
    answers = []
    for i, row in enumerate(rows):
        others = {
            Batching.JOINT: rows[:i] + rows[i + 1 :],
            Batching.SOLO: [],
            Batching.REFERENCE: fixed,
        }[batching]
        batch = [*others, row] if config.include_self else others
        seen = [
            mixed_prototype(c, batch, world.dataset, world.carried, world.beta, config)
            for c in range(len(world.dataset))
        ]
        away = [distance(row.z, prototype, config) for prototype, _ in seen]
        if config.absent == "drop" and any(present for _, present in seen):
            away = [d if present else max(away) + 1e4 for d, (_, present) in zip(away, seen, strict=True)]
        answers.append(away)
    return np.array(answers)


class World(NamedTuple):
    z: np.ndarray
    logits: np.ndarray
    dataset: np.ndarray
    carried: np.ndarray
    beta: np.ndarray
    anchors: np.ndarray
    anchor_logits: np.ndarray

    def distances(self, config, batching, rows=slice(None), reference=None):
        tensors = World(*map(torch.from_numpy, self))
        if batching is Batching.REFERENCE and reference is None:
            reference = Reference(tensors.anchors, memberships(tensors.anchor_logits, config))
        return hpm_distances(
            tensors.z[rows],
            tensors.logits[rows],
            tensors.dataset,
            tensors.beta,
            config,
            batching,
            reference=reference,
            carried=tensors.carried,
        ).numpy()


def grid(shape):
    return arrays(np.float64, shape, elements=st.integers(-6, 6).map(lambda i: i / 2))


@st.composite
def worlds(draw):
    n, k, d, r = draw(st.tuples(st.integers(1, 6), st.integers(2, 4), st.integers(1, 3), st.integers(0, 4)))
    beta = arrays(np.float64, k, elements=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    shapes = [grid((n, d)), grid((n, k)), grid((k, d)), grid((k, d)), beta, grid((r, d)), grid((r, k))]
    return World(*map(draw, shapes))


configs = st.builds(
    HPMConfig,
    kappa=st.sampled_from([0.0, 0.5, 3.0]),
    distance=st.sampled_from(["squared", "l2", "scaled-l2"]),
    normalize=st.booleans(),
    assignment=st.sampled_from(["hard", "soft", "threshold", "top-k"]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    confidence=st.sampled_from([0.3, 0.6, 0.9]),
    k=st.integers(1, 5),
    absent=st.sampled_from(["dataset", "drop", "carry"]),
    include_self=st.booleans(),
    gradient=st.sampled_from(["full", "weights", "features", "none"]),
)


def assert_close(got, wanted, config):
    # A root turns an error of 1e-15 beside a distance of zero into 3e-8.
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9 if config.distance == "squared" else 1e-6)


@settings(max_examples=300)
@given(worlds(), configs, st.sampled_from(Batching))
def test_every_combination_of_knobs_follows_the_formulas(world, config, batching):
    assert_close(world.distances(config, batching), naive_distances(world, config, batching), config)


@given(worlds(), configs)
def test_solo_is_joint_called_on_each_row_alone(world, config):
    alone = [world.distances(config, Batching.JOINT, slice(i, i + 1)) for i in range(len(world.z))]
    assert_close(world.distances(config, Batching.SOLO), np.concatenate(alone), config)


@given(worlds(), configs)
def test_reference_is_joint_on_the_reference_and_one_row(world, config):
    got = world.distances(config, Batching.REFERENCE)
    for i in range(len(world.z)):
        joined = world._replace(
            z=np.concatenate([world.anchors, world.z[i : i + 1]]),
            logits=np.concatenate([world.anchor_logits, world.logits[i : i + 1]]),
        )
        assert_close(got[i], joined.distances(config, Batching.JOINT)[-1], config)


@given(worlds(), configs, st.randoms(use_true_random=False))
def test_joint_does_not_depend_on_the_order_of_the_batch(world, config, random):
    order = random.sample(range(len(world.z)), len(world.z))
    shuffled = world._replace(z=world.z[order], logits=world.logits[order])
    got = shuffled.distances(config, Batching.JOINT)
    assert_close(got, world.distances(config, Batching.JOINT)[order], config)


@given(worlds(), configs, st.sampled_from([Batching.SOLO, Batching.REFERENCE]), st.randoms(use_true_random=False))
def test_solo_and_reference_answer_a_row_alike_in_any_company(world, config, batching, random):
    rows = random.sample(range(len(world.z)), random.randint(1, len(world.z)))
    assert_close(world.distances(config, batching, rows), world.distances(config, batching)[rows], config)
