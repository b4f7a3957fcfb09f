"""One contract, every model: built with random weights, each is taken apart, wrapped and ready to be attacked.

A dozen of many kinds here; all of them in ``tox -e zoo``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from hpm_robustbench.architectures import build
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.load import Wrapped, wrap
from hpm_robustbench.threat import Dataset
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec

ZOO = {f"{spec.dataset}/{spec.threat.name}/{spec.name}": spec for spec in robustbench_specs()}
REPRESENTATIVE = {
    "cifar10/Linf/Chen2020Adversarial",  # an ensemble that returns probabilities
    "cifar10/Linf/Ding2020MMA",  # normalises each image by itself
    "cifar10/Linf/Engstrom2019Robustness",
    "cifar10/Linf/Rade2021Helper_R18_extra",
    "cifar10/Linf/Debenedetti2022Light_XCiT-S12",  # from timm
    "cifar10/Linf/Wong2020Fast",
    "cifar10/L2/Rice2020Overfitting",
    "cifar10/L2/Sehwag2021Proxy_R18",
    "cifar10/corruptions/Diffenderfer2021Winning_Binary",  # its head is a 1x1 convolution
    "cifar100/Linf/Rice2020Overfitting",
    "imagenet/Linf/Salman2020Do_R18",
    "imagenet/Linf/Wong2020Fast",  # 288 x 288
}
N = 3


CASES = [
    pytest.param(spec, id=key, marks=() if key in REPRESENTATIVE else pytest.mark.zoo)
    for key, spec in sorted(ZOO.items())
]


def images_of(spec: ModelSpec) -> ExampleSet:
    known = KNOWN[spec.dataset]
    shape = (3, 288, 288) if spec.preprocessing == "Crop288" else known.image_shape
    images = torch.rand((2 * N, *shape), generator=torch.Generator().manual_seed(1))
    return ExampleSet(Dataset(spec.dataset, known.n_classes, shape), "train", images, torch.arange(2 * N))


@pytest.fixture(autouse=True)
def _memory_returned() -> Iterator[None]:
    yield
    gc.collect()


def test_all_are_there() -> None:
    assert len(ZOO) == 206
    assert set(ZOO) >= REPRESENTATIVE


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*saved_variables.*:DeprecationWarning")
@pytest.mark.parametrize("spec", CASES)
def test_every_model_keeps_the_contract(spec: ModelSpec) -> None:
    examples = images_of(spec)
    others = examples.images[N:]  # an image that is its class's prototype has no gradient towards it
    wrapped = wrap(build(spec), examples.head(N), head=spec.head)  # proves that the model's answer is unchanged
    _is_frozen(wrapped)
    _shows_gradients_everywhere(wrapped, others[:2])
    _answers_each_image_for_itself(wrapped, others)


def _is_frozen(wrapped: Wrapped) -> None:
    assert not any(module.training for module in wrapped.classifier.modules())
    assert not any(parameter.requires_grad for parameter in wrapped.classifier.parameters())


def _shows_gradients_everywhere(wrapped: Wrapped, images: torch.Tensor) -> None:
    before = state_sha256(wrapped.classifier, wrapped.base)
    for model in (wrapped.classifier, wrapped.base):
        x = images.clone().requires_grad_()
        logits = model(x)
        assert logits.isfinite().all()
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).abs().amax(1).min() > 0
    assert state_sha256(wrapped.classifier, wrapped.base) == before


def _answers_each_image_for_itself(wrapped: Wrapped, images: torch.Tensor) -> None:
    with torch.no_grad():
        for model in (wrapped.classifier, wrapped.base):
            together, alone = model(images), torch.cat([model(image) for image in images.split(1)])
            scale = together.abs().max()
            assert (together - alone).abs().max() <= 1e-4 * scale
