"""How a network is prepared for its trial: faster where it can be, and never another classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

import hpm_robustbench
from hpm_robustbench.data import ExampleSet, open_dataset
from hpm_robustbench.kernels import full_precision_kernels
from hpm_robustbench.load import wrap


class Flattening(nn.Module):
    """A small convolutional classifier that flattens in its own way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.convs = how, nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3))
        self.head = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convs(x).relu()
        return self.head(maps.flatten(1) if self.how == "flatten" else maps.view(len(maps), -1))


@pytest.fixture(scope="module")
def training() -> ExampleSet:
    training = open_dataset("digits").train()
    assert training is not None
    return training


@pytest.mark.parametrize(("how", "channels_last"), [("flatten", True), ("view", False)])
def test_weights_lie_channels_last_where_the_model_can_run_so(
    training: ExampleSet, how: str, channels_last: bool
) -> None:
    model = Flattening(how).eval()
    with torch.no_grad():
        expected = model(training.images[:50])
    wrapped = wrap(model, training)
    assert torch.allclose(wrapped.base(training.images[:50]), expected, atol=1e-5)
    weight = wrapped.classifier.backbone.convs[1].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


Settings: TypeAlias = tuple[bool, bool, str, str, str, str]


def settings() -> Settings:
    cudnn = torch.backends.cudnn
    products = torch.backends.cuda.matmul.fp32_precision
    here = torch.backends.mkldnn.conv.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    return cudnn.allow_tf32, cudnn.deterministic, cudnn.conv.fp32_precision, products, *here


EXACT = (False, True, "ieee", "ieee", "ieee", "ieee")


class Seen(list[Settings]):
    """What a model and its copies have seen, all in one."""

    def __deepcopy__(self, _memo: object) -> Seen:
        return self


class Watching(nn.Module):
    """A linear classifier that writes down under which settings it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(settings())
        return self.net(x)


@pytest.fixture(params=["the older way", "the newer way"])
def hasty(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings of somebody who would rather have it fast, in both of torch's ways to say so."""
    product, before = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    if request.param == "the older way":
        torch.set_float32_matmul_precision("medium")
    else:
        product.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix"):
            torch.get_float32_matmul_precision()
    yield settings()
    torch.set_float32_matmul_precision(before)


def test_every_pass_of_a_trial_meets_full_precision_kernels_and_leave_the_settings_alone(
    training: ExampleSet, tmp_path: Path, hasty: Settings
) -> None:
    model, images = Watching(), training.images
    labels = model(images).argmax(dim=1)  # right about every image, so that there is something to attack
    seen = model.seen
    seen.clear()
    hpm_robustbench.benchmark(model, (images, labels), name="Watching", eps="0.5", n_ex=2, output=tmp_path)
    assert set(seen[1:]) == {EXACT}  # the first pass only counts the classes
    assert len(seen) > 10
    assert settings() == hasty


def test_a_model_is_taken_apart_with_full_precision_kernels(training: ExampleSet, hasty: Settings) -> None:
    model = Watching()
    wrapped = wrap(model, training)
    assert set(model.seen) == {EXACT}
    assert settings() == hasty
    wrapped.base(training.images[:2])
    assert settings() == hasty


def test_the_settings_come_back_when_the_last_has_left_and_after_an_error(hasty: Settings) -> None:
    one, other = full_precision_kernels(), full_precision_kernels()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)  # as of two threads
    assert settings() == EXACT
    other.__exit__(None, None, None)
    assert settings() == hasty
    with pytest.raises(ValueError, match="inside"), full_precision_kernels():
        raise ValueError("inside")
    assert settings() == hasty


def test_settings_that_were_inherited_are_inherited_afterwards() -> None:
    product = torch.backends.mkldnn.matmul
    product.fp32_precision = "none"
    try:
        with full_precision_kernels():
            assert product.fp32_precision == "ieee"
        torch.backends.fp32_precision = "tf32"
        assert product.fp32_precision == "tf32"
        with full_precision_kernels():
            assert product.fp32_precision == "ieee"
        torch.backends.fp32_precision = "ieee"
        assert product.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
