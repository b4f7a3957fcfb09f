"""Models of many shapes, taken apart: features and logits must be the model's own, or the refusal must say why not."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpm_robustbench.errors import HeadNotFound
from hpm_robustbench.hpm.backbone import fix_head, split

SHAPE = (3, 4, 4)
PIXELS = 48
WIDTH = 6
CLASSES = 5


def images(n=3):
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(9))


def trunk():
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, WIDTH), nn.ReLU())


class Net(nn.Module):
    """A trunk and a head called ``fc``; the variations below change what happens at the end."""

    def __init__(self):
        super().__init__()
        self.trunk = trunk()
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.fc(self.trunk(x))


class TwoClassSized(Net):
    """An auxiliary head of the same width, which is called too."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        features = self.trunk(x)
        self.auxiliary(features)
        return self.fc(features)


class Nested(nn.Module):
    """The head three modules deep, inside a list inside a wrapper."""

    def __init__(self):
        super().__init__()
        self.wrapped = nn.ModuleDict({"net": nn.ModuleList([trunk(), nn.Sequential(OrderedDict(out=nn.Linear(6, 5)))])})

    def forward(self, x):
        for module in self.wrapped["net"]:
            x = module(x)
        return x


class AliasedInOneParent(Net):
    def __init__(self):
        super().__init__()
        self.classifier = self.fc

    def forward(self, x):
        return self.classifier(self.trunk(x))


class AliasedInTwoParents(Net):
    def __init__(self):
        super().__init__()
        self.tail = nn.Sequential(self.fc)

    def forward(self, x):
        return self.tail(self.trunk(x))


class AliasedParent(Net):
    """One block under two names, so that the head inside has two names as well."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(OrderedDict(head=self.fc))
        self.second = self.first

    def forward(self, x):
        return self.second(self.trunk(x))


class ConvolutionalFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(WIDTH, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x))


class Normalising(Net):
    def forward(self, x):
        return super().forward((x - 0.5) / 0.25)


SPLITTABLE = [
    (Net, "fc"),
    (TwoClassSized, "fc"),
    (Nested, "wrapped.net.1.out"),
    (AliasedInOneParent, "fc"),
    (AliasedInTwoParents, "fc"),
    (AliasedParent, "fc"),
    (ConvolutionalFeatures, "classifier.3"),
    (Normalising, "fc"),
]


@pytest.mark.parametrize(("make", "path"), SPLITTABLE, ids=[make.__name__ for make, _ in SPLITTABLE])
@pytest.mark.parametrize("named", [False, True])
def test_the_head_is_found_and_the_logits_are_bit_equal(make, path, named):
    model = make().eval()
    head, before = model.get_submodule(path), model(images())
    backbone, fc = split(model, SHAPE, CLASSES, path if named else None)
    assert fc is head
    features = backbone(images())
    assert features.shape == (3, WIDTH)
    assert torch.equal(fc(features), before)
    assert all(module is not fc for module in backbone.modules())


@pytest.mark.parametrize("path", ["fc", "classifier"])
def test_an_aliased_head_may_be_named_by_either_name(path):
    model = AliasedInOneParent().eval()
    assert split(model, SHAPE, CLASSES, path).fc.out_features == CLASSES


def test_the_features_are_those_that_enter_the_head():
    model = Net().eval()
    wanted = model.trunk(images())
    assert torch.equal(split(model, SHAPE, CLASSES).backbone(images()), wanted)


def test_a_head_as_wide_as_its_input_is_told_from_its_features():
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES), nn.Linear(CLASSES, CLASSES)).eval()
    head = model[2]
    assert split(model, SHAPE, CLASSES).fc is head


def test_splitting_leaves_weights_and_random_state_alone():
    model = ConvolutionalFeatures().eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    backbone, fc = split(model, SHAPE, CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    kept = {**backbone.state_dict(), **{f"classifier.3.{name}": value for name, value in fc.state_dict().items()}}
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    assert not any(module._forward_hooks for module in [*backbone.modules(), fc])


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(dim=1)


class EditedLogits(Net):
    """Writes into what its head returned, so that it looks as if the head had returned that."""

    def forward(self, x):
        return super().forward(x).mul_(2)


class FunctionalHead(Net):
    def forward(self, x):
        return F.linear(self.trunk(x), self.fc.weight, self.fc.bias)


class RenormalisedHead(Net):
    """Reaches into its head by name before calling it."""

    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.copy_(F.normalize(self.fc.weight, dim=1))
        return self.fc(self.trunk(x))


class ReshapedLogits(Net):
    """Breaks when its head is gone: the features do not fit the shape."""

    def forward(self, x):
        return self.fc(self.trunk(x)).reshape(len(x), CLASSES)


class HeadUsedTwice(Net):
    """Its logits are the head's last output, but the head feeds itself."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
        self.fc = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        return self.fc(self.fc(self.trunk(x)))


class HeadOverPixels(nn.Module):
    """Linear layers act on the last axis, so these features are 4-D."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(x)


class NoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 4)

    def forward(self, x):
        return self.conv(x).flatten(1)


class TwoEqualHeads(Net):
    """Twins: both outputs are the model's output, and nothing tells which is meant."""

    def __init__(self):
        super().__init__()
        self.twin = nn.Linear(WIDTH, CLASSES)
        self.twin.load_state_dict(self.fc.state_dict())

    def forward(self, x):
        features = self.trunk(x)
        self.twin(features)
        return self.fc(features)


class BareLinear(nn.Linear):
    """Nothing but the head, over rows of pixels."""

    def __init__(self):
        super().__init__(4, CLASSES)


REFUSED = {
    BareLinear: "other logits, or features that are not [N, D]",
    Probabilities: "candidates: fc (6 -> 5)",
    EditedLogits: "candidates: fc (6 -> 5).",
    FunctionalHead: "fc (6 -> 5, not called)",
    RenormalisedHead: "other logits, or features that are not [N, D]",
    ReshapedLogits: "other logits, or features that are not [N, D]",
    HeadUsedTwice: "other logits, or features that are not [N, D]",
    HeadOverPixels: "other logits, or features that are not [N, D]",
    NoLinear: "candidates: none",
    TwoEqualHeads: "got 2; candidates: fc (6 -> 5, its output is the model output); twin",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_model_without_a_provable_head_is_refused_with_what_was_seen(make):
    with pytest.raises(HeadNotFound) as caught:
        split(make().eval(), SHAPE, CLASSES)
    assert REFUSED[make] in str(caught.value)
    assert make.__name__ in caught.value.wanted


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_refused_model_is_left_as_it_was(make):
    model = make().eval()
    before, modules = model(images()), list(model.named_modules(remove_duplicate=False))
    with pytest.raises(HeadNotFound):
        split(model, SHAPE, CLASSES)
    assert list(model.named_modules(remove_duplicate=False)) == modules
    torch.testing.assert_close(model(images()), before)


class Pointwise(nn.Module):
    """Ends in a 1x1 convolution over a 1x1 map."""

    def __init__(self, end):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, WIDTH, 4), nn.ReLU())
        self.fc = nn.Conv2d(WIDTH, CLASSES, 1)
        self.end = end

    def forward(self, x):
        return self.end(self.fc(self.trunk(x)))


@pytest.mark.parametrize("end", [nn.Flatten(), lambda maps: maps[..., 0, 0]], ids=["flatten", "index"])
def test_a_pointwise_convolution_is_a_linear_head(end):
    model = Pointwise(end).eval()
    before, features = model(images()), model.trunk(images()).flatten(1)
    backbone, fc = split(model, SHAPE, CLASSES)
    assert torch.equal(backbone(images()), features)
    assert torch.equal(fc(backbone(images())), before)
    assert (fc.in_features, fc.out_features) == (WIDTH, CLASSES)
    torch.testing.assert_close(F.linear(features, fc.weight, fc.conv.bias), before)


class RewrittenHead(Net):
    """As RobustBench's Pang2020Boosting: normalises the weights of whatever linear layers its head holds."""

    def forward(self, x):
        features = self.trunk(x)
        for module in self.fc.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = F.normalize(module.weight, p=2, dim=1)
        return self.fc(features)


def test_a_head_that_is_rewritten_on_every_pass_can_be_fixed():
    model = RewrittenHead().eval()
    with torch.no_grad():
        expected = model(images())
    fix_head(model, SHAPE, "fc")
    weight = model.fc.weight.clone()
    torch.testing.assert_close(model(images()), expected)
    assert torch.equal(model.fc.weight, weight)
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(CLASSES))
    backbone, fc = split(model, SHAPE, CLASSES, "fc")
    assert torch.equal(fc(backbone(images())), F.linear(model.trunk(images()), weight, fc.bias))


def test_only_a_linear_head_can_be_fixed():
    with pytest.raises(HeadNotFound, match="got Sequential"):
        fix_head(Net(), SHAPE, "trunk")


def test_naming_the_head_decides_between_twins():
    model = TwoEqualHeads().eval()
    fc = model.fc
    assert split(model, SHAPE, CLASSES, "fc").fc is fc


@pytest.mark.parametrize("path", ["auxiliary", "trunk.1", "nowhere"])
def test_naming_a_layer_that_is_not_the_head_is_refused(path):
    with pytest.raises(HeadNotFound, match=f"named '{path}'.*candidates: fc .*auxiliary"):
        split(TwoClassSized().eval(), SHAPE, CLASSES, path)


def test_the_wrong_number_of_classes_is_refused():
    with pytest.raises(HeadNotFound, match="7 logits"):
        split(Net().eval(), SHAPE, 7)


@pytest.mark.slow
def test_robustbench_families():
    from hpm_robustbench.robustbench_compat import import_robustbench

    import_robustbench()
    from robustbench.model_zoo.architectures.dm_wide_resnet import DMWideResNet
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet, ResNet18
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    models = [
        WideResNet(depth=10, widen_factor=1),
        DMWideResNet(num_classes=10, depth=10, width=1, activation_fn=nn.SiLU),
        PreActResNet(PreActBlock, [1, 1, 1, 1]),
        ResNet18(),
    ]
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    for model in models:
        before = model.eval()(x)
        backbone, fc = split(model, (3, 32, 32), 10)
        assert torch.equal(fc(backbone(x)), before)
