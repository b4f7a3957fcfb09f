"""The folded network is the same function as the backbone, follows its weights, and is left out where it is not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training import folding
from hpm_robustbench.training.folding import fold
from hpm_robustbench.training.learner import Learner
from hpm_robustbench.training.loop import Lesson, Loop
from hpm_robustbench.training.recipe import Tuning

LINF = ThreatModel.parse("Linf", "0.1")


def norm(channels: int, **knobs: bool) -> nn.BatchNorm2d:
    """With statistics and weights as a trained one may have them, a negative scale among them."""
    layer = nn.BatchNorm2d(channels, **knobs)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        if tensor is not None:
            nn.init.normal_(tensor)
    if layer.running_var is not None:
        nn.init.uniform_(layer.running_var, 0.2, 3)
    return layer


class Block(nn.Module):
    """Before the first convolution a normalisation, between the two another; the sum has one on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after, self.aside = norm(4), norm(8), norm(8), norm(8)
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        inner = F.relu(self.inner(self.first(F.relu(x))))
        return F.relu(self.after(self.second(inner) + self.aside(self.shortcut(x))))


class Twice(nn.Module):
    """One convolution for two places, and one whose own output is needed too: folding either would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.seen = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.one, self.two, self.three = norm(4), norm(4), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(self.two(self.shared(F.relu(self.one(self.shared(x))))))
        return self.three(seen) * seen


class Step(torch.autograd.Function):
    """Rounding whose gradient is that of the identity."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x * 16).round() / 16

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class Rounded(nn.Module):
    """Rounds what it sees and differentiates as if it did not, in two ways; symbols know nothing of either."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.function, self.convolution, self.norm = function, nn.Conv2d(4, 8, 3), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        if self.function:
            return self.norm(self.convolution(Step.apply(x)))
        with torch.no_grad():
            away = (x * 16).round() / 16 - x
        return self.norm(self.convolution(x + away))


class Keeps(nn.Module):
    """Keeps something of the first images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.grid = nn.Conv2d(4, 8, 3), norm(8), None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = x.new_ones(x.shape[2:])
        if self.grid.sum() > 0:
            x = x * self.grid
        return self.norm(self.convolution(x))


class Fickle(nn.Module):
    """What it does depends on what it sees, which symbols cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(4, 8, 3), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convolution(x))
        return x if x.mean() > 0 else -x


def learner_of(middle: nn.Module, channels: int = 8) -> Learner:
    """In float64, where equality means equality."""
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = HPMClassifier(Split(backbone, nn.Linear(channels, 5)), torch.randn(5, channels), HPMConfig())
    return Learner(classifier, ("backbone", "fc", "tau"), torch.float32).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(6, 3, 8, 8, dtype=torch.float64)


def gradient(embed, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    features, logits = embed(leaf)
    (found,) = torch.autograd.grad(features.square().sum() + logits.sum(), leaf)
    return found


@pytest.mark.parametrize(
    ("middle", "channels", "pairs"),
    [
        (Block, 8, 3),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), norm(8), nn.ReLU(inplace=True)), 8, 1),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 1), norm(8), norm(8)), 8, 1),
        (lambda: nn.Sequential(Block(), nn.Conv2d(8, 4, 1), norm(4), Twice()), 8, 4),
    ],
)
def test_features_logits_and_gradients_are_those_of_the_backbone(x, middle, channels, pairs) -> None:
    learner = learner_of(middle(), channels)
    state = list(learner.state_dict())
    folded = fold(learner, x)
    assert folded is not None
    left = sum(isinstance(layer, nn.BatchNorm2d) for layer in folded.network.modules())
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in learner.modules()) - left == pairs
    torch.testing.assert_close(folded.embed(x), learner.embed(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(folded.embed, x), gradient(learner.embed, x), rtol=1e-9, atol=1e-12)
    assert list(learner.state_dict()) == state
    assert all(parameter.requires_grad for parameter in learner.classifier.backbone.parameters())


def test_it_follows_weights_that_have_changed(x) -> None:
    learner = learner_of(Block())
    folded = fold(learner, x)
    assert folded is not None
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(1.1)
    assert not torch.allclose(folded.embed(x).features, learner.embed(x).features)
    folded.refresh()
    torch.testing.assert_close(folded.embed(x), learner.embed(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("middle", "channels"),
    [
        (Fickle, 8),
        (Keeps, 8),
        (lambda: Rounded(function=True), 8),
        (lambda: Rounded(function=False), 8),
        (lambda: nn.Sequential(nn.ReLU(), norm(4)), 4),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), norm(4, affine=False)), 4),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), norm(4, track_running_stats=False)), 4),
        (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), norm(4)), 4),
    ],
)
def test_what_cannot_be_folded_is_left_as_it_is(x, middle, channels, caplog: pytest.LogCaptureFixture) -> None:
    learner, untouched = learner_of(middle(), channels), None
    if middle is not Keeps:
        untouched = learner.embed(x)
    with caplog.at_level(logging.INFO):
        assert fold(learner, x) is None
    assert "normalisation is not folded: " in caplog.text
    after = learner.embed(x)
    assert after.features.isfinite().all()
    if untouched is not None:
        torch.testing.assert_close(after, untouched, rtol=0, atol=0)


def test_memory_that_ends_is_not_taken_for_a_network_that_cannot_be_folded(x, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(folding.fx, "symbolic_trace", full)
    with pytest.raises(RuntimeError, match="allocate memory"):
        fold(learner_of(Block()), x)


def test_the_proof_does_not_depend_on_the_precision_of_training_and_needs_one_image_at_a_time(x) -> None:
    learner = learner_of(Block()).float()
    learner.precision = torch.bfloat16
    met, embed = [], learner.classifier.embed

    def counted(images: Tensor) -> object:
        met.append(len(images))
        return embed(images)

    learner.classifier.embed = counted
    folded = fold(learner, x.float())
    assert folded is not None
    assert met == [1] * len(x)
    torch.testing.assert_close(folded.exact(x.float()), embed(x.float()), rtol=1e-4, atol=1e-4)
    assert not torch.equal(folded.embed(x.float()).features, folded.exact(x.float()).features)


def test_a_wrong_fold_is_not_used(x, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    right = folding.fuse_conv_bn_weights
    monkeypatch.setattr(folding, "fuse_conv_bn_weights", lambda *given: (right(*given)[0], right(*given)[1] + 0.5))
    with caplog.at_level(logging.INFO):
        assert fold(learner_of(Block()), x) is None
    assert "it would be another function" in caplog.text


def test_a_step_attacks_through_it_unless_the_network_is_compiled_or_nobody_attacks(wrapped, digits, quick) -> None:
    loop, alone = (Loop(Lesson(wrapped.classifier, digits, LINF, Tuning(quick))) for _ in range(2))
    met = []
    assert loop.folded is not None
    loop.folded.network.register_forward_hook(lambda *_: met.append(1))
    alone.position.compiled = True
    for either in (loop, alone):
        either.step()
    assert len(met) == quick.attack_steps
    assert alone.folded is None
    for mine, other in zip(loop.learner.parameters(), alone.learner.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    unattacked = Tuning(quick.with_knobs({"attack_steps": 0}))
    assert Loop(Lesson(wrapped.classifier, digits, LINF, unattacked)).folded is None
