"""On real weights and real images: MSA is no weaker than AutoAttack, invents nothing, and nobody else finds more."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar10 import images_of
from real_networks import lenet5, resnet4b, resnet20
from torch import nn
from validation.independent import misclassified, misclassified_one_by_one
from validation.trial import record_of

import hpm_robustbench
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.data.idx import open_idx
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.ledger.card_evaluation import DOUBT
from hpm_robustbench.ledger.plan import AUTOATTACK
from hpm_robustbench.ledger.record import RunRecord
from hpm_robustbench.pipeline import Outcome
from hpm_robustbench.robustbench_compat import import_autoattack
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
    """A published network, and the budget in Linf at which it is tried; ``dataset`` is a folder of the real data."""

    factory: Callable[[], nn.Module]
    weights: str
    eps: str
    dataset: str = "cifar10"

    def images(self, data: Path) -> tuple[ExampleSet, ExampleSet]:
        """Some to evaluate and others to make prototypes of."""
        folder = data / self.dataset
        if self.dataset == "cifar10":
            return images_of(folder, "test", IMAGES), images_of(folder, "train", TRAINING)
        some = open_idx("mnist", folder).test(IMAGES + TRAINING)  # the training images are not there
        return some.take(range(IMAGES)), some.take(range(IMAGES, IMAGES + TRAINING))


ROBUST = Real(resnet4b, "resnet4b.pth", "2/255")
MISLEADING = Real(lenet5, "mnist_lenet5_advtrained.pt", "0.3", "mnist")
"""Its gradients lead astray at many images: Square breaks what they leave."""
UNDEFENDED = Real(resnet20, "resnet20-12fca82f.th", "8/255")
HARDLY_ATTACKED = replace(UNDEFENDED, eps="1/510")
"""So little that most images stand."""


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

    def broken(self, batching: Batching) -> np.ndarray:
        """What MSA takes from HPM of the images that are right without any attack."""
        return np.array(self.record("hpm", batching).clean_correct) & ~self.standing("hpm", batching)

    def standing(self, target: str, batching: Batching = Batching.SOLO, group: str | None = None) -> np.ndarray:
        return np.array(self.record(target, batching).standing(group))


def attempt(real: Real, data: Path, folder: Path, batchings: tuple[Batching, ...], **knobs: float) -> Tried:
    test, train = real.images(data)
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


@pytest.fixture(scope="module", params=[ROBUST, MISLEADING], ids=["cifar10", "mnist"])
def robust(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return attempt(request.param, data, tmp_path_factory.mktemp("robust"), (Batching.JOINT,))


def by_stock_autoattack(network: nn.Module, tried: Tried) -> torch.Tensor:
    """The images that the installed AutoAttack makes of all that the network has right."""
    eps = float(tried.record("hpm").plan.threat.eps)
    stock = import_autoattack().AutoAttack(network, norm="Linf", eps=eps, seed=0, version="standard")
    images: torch.Tensor = stock.run_standard_evaluation(tried.test.images, tried.test.labels, batch_size=IMAGES)[0]
    return images


def test_msa_is_never_weaker_than_stock_autoattack_on_hpm_or_carried_over_from_the_base_model(robust: Tried) -> None:
    hpm = hpm_robustbench.wrap(deepcopy(robust.network), robust.train.images, robust.train.labels)
    for attacked, against in ((hpm, Batching.SOLO), (robust.network, Batching.SOLO), (robust.network, Batching.JOINT)):
        found = by_stock_autoattack(attacked, robust)
        wrong = (hpm.with_batching(against)(found).argmax(1) != robust.test.labels).numpy()
        msa = robust.standing("hpm", against)
        assert 0 < msa.sum() < wrong.size
        assert wrong.any()
        assert not (msa & wrong).any(), (against, "a row stands that stock AutoAttack has broken")


@pytest.mark.parametrize("batching", [Batching.SOLO, Batching.JOINT])
def test_an_attacker_of_other_making_finds_nothing_more(robust: Tried, batching: Batching) -> None:
    hpm = hpm_robustbench.wrap(deepcopy(robust.network), robust.train.images, robust.train.labels).with_batching(
        batching
    )
    x, y = robust.test.images, robust.test.labels
    eps = float(robust.record("hpm").plan.threat.eps)
    wrong = misclassified(hpm, x, y, eps, restarts=18, steps=40).numpy()
    broken = robust.broken(batching)
    assert (wrong & broken).sum() > broken.sum() / 2, "he is weak himself"
    assert (robust.standing("hpm", batching) & wrong).sum() <= MISSED


def test_nor_does_he_after_one_image_at_a_time(robust: Tried) -> None:
    """All of the batch moves for it, and some of what MSA broke is there for him to find, too."""
    hpm = hpm_robustbench.wrap(deepcopy(robust.network), robust.train.images, robust.train.labels)
    left = robust.standing("hpm", Batching.JOINT).nonzero()[0].tolist()
    fell = robust.broken(Batching.JOINT).nonzero()[0].tolist()[:4]
    x, y, eps = robust.test.images, robust.test.labels, float(robust.record("hpm").plan.threat.eps)
    joint = hpm.with_batching(Batching.JOINT)
    wrong = misclassified_one_by_one(joint, x, y, eps, fell + left, restarts=4, steps=40).numpy()
    assert left
    assert wrong[fell].sum() > len(fell) / 2, "he is weak himself"
    assert wrong[left].sum() <= MISSED


@pytest.mark.parametrize("real", [ROBUST, HARDLY_ATTACKED], ids=["robust", "undefended"])
def test_at_beta_1_the_rows_are_autoattack_s_on_the_network_itself(real: Real, data: Path, tmp_path: Path) -> None:
    tried = attempt(real, data, tmp_path, (), beta=1.0)
    plain = tried.standing("base", group=AUTOATTACK)
    assert 0 < plain.sum() < IMAGES
    assert (tried.standing("hpm") != plain).sum() <= NOISE


def test_an_undefended_network_falls_and_raises_no_alarm(data: Path, tmp_path: Path) -> None:
    tried = attempt(UNDEFENDED, data, tmp_path, (Batching.JOINT,))
    assert np.array(tried.record("base").clean_correct).sum() > 0.8 * IMAGES
    assert not any(tried.standing(target).any() for target in ("base", "hpm"))
    assert not tried.standing("hpm", Batching.JOINT).any()
    bench = tried.outcome.card.hpm_bench
    assert bench is not None
    assert not [flag for e in bench.evaluations if e.target == "base" for flag in e.all_flags if flag.startswith(DOUBT)]
