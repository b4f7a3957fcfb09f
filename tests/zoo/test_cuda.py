"""Networks of many kinds are on a GPU what they are on a CPU, whichever they were built beside."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from hpm_robustbench.architectures import build
from hpm_robustbench.data import ExampleSet
from hpm_robustbench.data.known import KNOWN
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.load import wrap
from hpm_robustbench.threat import Dataset
from hpm_robustbench.zoo.from_robustbench import robustbench_specs
from hpm_robustbench.zoo.spec import ModelSpec

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*saved_variables.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
]
KINDS = (
    "cifar10/Linf/Wong2020Fast",
    "cifar10/Linf/Rade2021Helper_R18_extra",  # keeps copies of its constants where it first meets a GPU
    "cifar10/Linf/Rebuffi2021Fixing_28_10_cutmix_ddpm",  # so do wide networks
    "cifar10/Linf/Chen2020Adversarial",  # an ensemble that returns probabilities
    "cifar10/Linf/Ding2020MMA",  # normalises each image by itself
    "cifar10/Linf/Pang2020Boosting",  # normalises the weights of its head
    "cifar10/Linf/Debenedetti2022Light_XCiT-S12",  # from timm
    "cifar10/Linf/Bai2024MixedNUTS",  # a mixture whose constants lie on the GPU as published
    "cifar10/corruptions/Diffenderfer2021Winning_Binary",  # its head is a 1x1 convolution
    "imagenet/Linf/Salman2020Do_R18",
)
ZOO = {f"{spec.dataset}/{spec.threat.name}/{spec.name}": spec for spec in robustbench_specs()}


@pytest.fixture(autouse=True)
def _exactly() -> Iterator[None]:
    """As in a trial, and with nothing left for the next."""
    torch.manual_seed(0)
    with full_precision_kernels():
        yield
    gc.collect()
    torch.cuda.empty_cache()


def few_images(spec: ModelSpec) -> ExampleSet:
    known = KNOWN[spec.dataset]
    images = torch.rand((4, *known.image_shape), generator=torch.Generator().manual_seed(1))
    return ExampleSet(Dataset(spec.dataset, known.n_classes, known.image_shape), "train", images, torch.arange(4))


@pytest.mark.parametrize("key", KINDS)
def test_it_has_the_same_state_and_the_same_answers(key: str) -> None:
    spec = ZOO[key]
    network, examples = build(spec), few_images(spec)
    wrapped = wrap(network, examples, head=spec.head)
    models = wrapped.base, wrapped.classifier
    assert all(tensor.device.type == "cpu" for model in models for tensor in model.state_dict().values())
    before, x = [state_sha256(model) for model in models], examples.images[2:] * 0.9
    here = [model(x).detach() for model in models]
    on_gpu = x.cuda().requires_grad_()
    for model, expected, state in zip(models, here, before, strict=True):
        answer = model.cuda()(on_gpu)
        (gradient,) = torch.autograd.grad(answer.sum(), on_gpu)
        assert gradient.isfinite().all()
        assert state_sha256(model) == state
        assert float((answer.detach().cpu() - expected).norm()) <= 1e-3 * float(expected.norm())
    for model, expected, state in zip(models, here, before, strict=True):
        assert state_sha256(model.cpu()) == state  # nothing was kept from the time on the GPU
        torch.testing.assert_close(model(x).detach(), expected)
