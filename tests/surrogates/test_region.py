"""The region decides exactly as the classifier does, whatever the batching."""

from __future__ import annotations

import pytest
import torch

from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.surrogates.region import is_exact, region_of
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Batching

every_batching = pytest.mark.parametrize("batching", Batching)


@pytest.mark.parametrize("distance", ["squared", "l2", "scaled-l2"])
@pytest.mark.parametrize("kappa", [0.0, 2.0])
@pytest.mark.parametrize("include_self", [True, False])
@every_batching
def test_decides_as_the_classifier_does(classifier, images, distance, kappa, include_self, batching):
    defence = classifier(HPMConfig(distance=distance, kappa=kappa, include_self=include_self), batching).freeze()
    defence.beta.copy_(torch.tensor([0.2, 0.5, 0.9, 1.0]))
    x = images(60)
    region = region_of(defence, x)
    chosen = torch.nn.functional.one_hot(region.fc.argmax(dim=1), 4).bool()
    answer = torch.where(chosen, region.chosen, region.distances)
    torch.testing.assert_close(-answer / defence.tau, defence(x))


@pytest.mark.parametrize(
    "knobs",
    [
        {"assignment": "soft"},
        {"assignment": "top-k"},
        {"assignment": "threshold", "confidence": 0.7},
        {"absent": "drop"},
        {"absent": "carry"},
        {"normalize": True},
    ],
    ids=str,
)
def test_other_definitions_decide_otherwise_and_the_region_says_so(classifier, images, knobs):
    """Its view has the target asked at every point of a search, then (``attacks/conjunction.py``)."""
    defence, x = classifier(HPMConfig(**knobs), Batching.SOLO).freeze(), images(200)
    defence.carried.add_(1.0)
    region = region_of(defence, x)
    chosen = torch.nn.functional.one_hot(region.fc.argmax(dim=1), 4).bool()
    answer = torch.where(chosen, region.chosen, region.distances)
    assert not torch.allclose(-answer / defence.tau, defence(x))
    assert is_exact(HPMConfig())
    assert not is_exact(defence.config)
    assert not make_view("hpm", Subject(defence, defence)).region_is_exact


@every_batching
def test_shows_the_side_of_the_jump_that_an_image_is_not_on(classifier, images, batching):
    """Had FC chosen another class for one image, its answer would be the one that the region foretells."""
    defence, x = classifier(None, batching).freeze(), images(7)
    region = region_of(defence, x)
    row, other = 2, int((region.fc[2].argmax() + 1) % 4)

    class Swayed(torch.nn.Linear):
        def forward(self, z):
            fc = super().forward(z).clone()
            fc[row, other] += 1e6
            return fc

    defence.fc.__class__ = Swayed
    foretold = region.distances[row].clone()
    foretold[other] = region.chosen[row, other]
    torch.testing.assert_close(-foretold / defence.tau, defence(x)[row])


def test_mates_are_constants(classifier, images):
    x = images(6).requires_grad_()
    region = region_of(classifier(None, Batching.JOINT).freeze(), x)
    (gradient,) = torch.autograd.grad(region.distances[0].sum() + region.chosen[0].sum(), x)
    assert (gradient[1:] == 0).all()
    assert gradient[0].abs().max() > 0
