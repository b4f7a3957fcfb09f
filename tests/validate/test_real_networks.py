"""On real weights and real images: MSA is no weaker than any member, invents nothing, and nobody else finds more."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cifar10 import images_of
from real_networks import resnet4b, resnet20
from torch import nn
from validation.independent import misclassified
from validation.trial import record_of

import hpm_robustbench
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.card_evaluation import DOUBT
from hpm_robustbench.ledger.plan import AUTOATTACK
from hpm_robustbench.ledger.record import RunRecord, Verdict
from hpm_robustbench.pipeline import Outcome
from hpm_robustbench.state_dict import load_into
from hpm_robustbench.threat import Batching
from hpm_robustbench.weights import STRICT
from hpm_robustbench.weights.converted import read_tensors
from hpm_robustbench.weights.trust import measure

pytestmark = pytest.mark.validate

IMAGES, TRAINING = 20, 2500
MISSED = 0
"""Half a point of 20 images is none."""
NOISE = 1
"""Images that one search may find and another, no weaker, may not."""


@dataclass(frozen=True)
class Real:
    """A published network for CIFAR-10, and the budget in Linf at which it is tried."""

    factory: Callable[[], nn.Module]
    weights: str
    eps: str


ROBUST = Real(resnet4b, "resnet4b.pth", "2/255")
UNDEFENDED = Real(resnet20, "resnet20-12fca82f.th", "8/255")


@pytest.fixture(scope="module")
def data() -> Path:
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA names no folder of real checkpoints and images")
    return Path(os.environ["HPM_BENCH_REAL_DATA"])


@dataclass(frozen=True)
class Tried:
    """A network with its images, after its trial."""

    network: nn.Module
    test: ExampleSet
    train: ExampleSet
    outcome: Outcome

    def record(self, target: str, batching: Batching = Batching.SOLO) -> RunRecord:
        return record_of(self.outcome, target, batching)

    def standing(self, target: str, batching: Batching = Batching.SOLO, group: str | None = None) -> np.ndarray:
        return np.array(self.record(target, batching).standing(group))


def attempt(real: Real, data: Path, folder: Path, batchings: tuple[Batching, ...], **knobs: float) -> Tried:
    test, train = images_of(data / "cifar10", "test", IMAGES), images_of(data / "cifar10", "train", TRAINING)
    outcome = hpm_robustbench.benchmark(
        loaded(real, data, folder),
        (test.images, test.labels),
        (train.images, train.labels),
        name="Real",
        eps=real.eps,
        n_ex=IMAGES,
        joint_size=IMAGES,
        batchings=batchings,
        output=folder,
        defence=HPMConfig(**knobs),
    )
    return Tried(loaded(real, data, folder), test, train, outcome)


def loaded(real: Real, data: Path, folder: Path) -> nn.Module:
    network, path = real.factory(), data / "weights" / real.weights
    load_into(network, read_tensors(path, measure(path), folder, STRICT), real.weights)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def robust(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return attempt(ROBUST, data, tmp_path_factory.mktemp("robust"), (Batching.JOINT,))


def test_msa_is_never_weaker_than_autoattack_or_any_member(robust: Tried) -> None:
    for batching in (Batching.SOLO, Batching.JOINT):
        record, msa = robust.record("hpm", batching), robust.standing("hpm", batching)
        assert 0 < msa.sum() < IMAGES
        for step in record.plan.steps:
            assert not (msa & (np.array(record[step.name].verdict) == Verdict.BROKEN)).any(), step.name
    assert not (robust.standing("hpm") & ~robust.standing("hpm", group=AUTOATTACK)).any()


@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_an_attacker_of_other_making_finds_nothing_more(robust: Tried, batching: Batching) -> None:
    hpm = hpm_robustbench.wrap(deepcopy(robust.network), robust.train.images, robust.train.labels).with_batching(
        batching
    )
    x, y = robust.test.images, robust.test.labels
    eps = float(robust.record("hpm").plan.threat.eps)
    wrong = misclassified(hpm, x, y, eps, restarts=18, steps=40).numpy()
    assert wrong.sum() > 0
    assert (robust.standing("hpm", batching) & wrong).sum() <= MISSED


def test_at_beta_1_the_rows_are_autoattack_s_on_the_network_itself(data: Path, tmp_path: Path) -> None:
    tried = attempt(ROBUST, data, tmp_path, (), beta=1.0)
    assert 0 < tried.standing("base").sum() < IMAGES
    assert (tried.standing("hpm") != tried.standing("base")).sum() <= NOISE


def test_an_undefended_network_falls_and_raises_no_alarm(data: Path, tmp_path: Path) -> None:
    tried = attempt(UNDEFENDED, data, tmp_path, (Batching.JOINT,))
    assert np.array(tried.record("base").clean_correct).sum() > 0.8 * IMAGES
    assert not any(tried.standing(target).any() for target in ("base", "hpm"))
    assert not tried.standing("hpm", Batching.JOINT).any()
    bench = tried.outcome.card.hpm_bench
    assert bench is not None
    assert not [flag for e in bench.evaluations if e.target == "base" for flag in e.all_flags if flag.startswith(DOUBT)]
