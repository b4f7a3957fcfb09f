"""Ensembles and mixtures, taken apart: their answers are unchanged, their features are those of the named heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import HeadNotFound, InvalidInput
from hpm_robustbench.hpm.composite import mean_log_probability, split_composite
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.load import wrap
from hpm_robustbench.threat import Dataset
from hpm_robustbench.zoo.spec import HeadRule

SHAPE, CLASSES, WIDTHS = (3, 4, 4), 5, (6, 7)
HEADS = ("members.0.2", "members.1.2")


def images(n: int = 4) -> Tensor:
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(9))


class Ensemble(nn.Module):
    """Two networks; what they say together is for subclasses to decide."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.members = nn.ModuleList(
                nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Linear(width, CLASSES)) for width in WIDTHS
            )
        self.scale = scale

    def logits(self, x: Tensor) -> list[Tensor]:
        return [member(x) for member in self.members]


class MeanProbability(Ensemble):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([one.softmax(1) for one in self.logits(x)]).mean(0)


class Mixture(Ensemble):
    def forward(self, x: Tensor) -> Tensor:
        first, second = (one.softmax(1) for one in self.logits(x))
        return (0.3 * first + 0.7 * second).log()


class CallsTwice(Ensemble):
    def forward(self, x: Tensor) -> Tensor:
        self.members[0](x)
        return MeanProbability.forward(self, x)


def test_an_ensemble_keeps_its_probabilities_and_shows_its_members_features() -> None:
    model, x = MeanProbability(), images()
    expected = model(x)
    backbone, fc = split_composite(model, SHAPE, CLASSES, HEADS, "probabilities")
    out = backbone(x)
    torch.testing.assert_close(fc(out).softmax(1), expected)
    assert torch.equal(fc(out).argmax(1), expected.argmax(1))
    features = torch.cat([member[1](x.flatten(1)) for member in model.members], dim=1)
    assert torch.equal(fc.features(out), features)
    assert (fc.in_features, fc.out_features) == (sum(WIDTHS), CLASSES)


def test_a_mixture_keeps_its_own_logits_bit_for_bit() -> None:
    model, x = Mixture(), images()
    backbone, fc = split_composite(model, SHAPE, CLASSES, HEADS[1:], "logits")
    assert torch.equal(fc(backbone(x)), model(x))
    assert torch.equal(fc.features(backbone(x)), model.members[1][1](x.flatten(1)))


def test_small_probabilities_keep_their_logarithm_and_their_gradient() -> None:
    logits = torch.tensor([[0.0, 200.0, 400.0]], requires_grad=True)
    combined = mean_log_probability([logits, logits])
    torch.testing.assert_close(combined, torch.tensor([[-400.0, -200.0, 0.0]]))
    (gradient,) = torch.autograd.grad(combined[0, 0], logits)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, -1.0]]))
    assert logits.softmax(1)[0, 0] == 0  # whose logarithm would have neither


def test_gradients_reach_the_images_through_features_and_logits() -> None:
    backbone, fc = split_composite(MeanProbability(), SHAPE, CLASSES, HEADS, "probabilities")
    for part in (fc, fc.features):
        x = images().requires_grad_()
        (gradient,) = torch.autograd.grad(part(backbone(x)).square().sum(), x)
        assert gradient.isfinite().all()
        assert gradient.flatten(1).abs().amax(1).min() > 0


@pytest.mark.parametrize(
    ("model", "heads", "output", "word"),
    [
        (MeanProbability, ("members.0.2", "members.7.2"), "probabilities", "no layer members.7.2"),
        (CallsTwice, HEADS, "probabilities", "2, 1 times"),
        (Mixture, HEADS, "probabilities", "another answer"),
        (Mixture, HEADS[:1], "probabilities", "another answer"),
        (MeanProbability, HEADS[:1], "probabilities", "another answer"),
    ],
)
def test_what_is_not_as_it_was_said_to_be_is_refused(
    model: type[nn.Module], heads: tuple[str, ...], output: str, word: str
) -> None:
    with pytest.raises(HeadNotFound, match=word):
        split_composite(model(), SHAPE, CLASSES, heads, output)


@pytest.fixture
def training() -> ExampleSet:
    return ExampleSet(Dataset("small", CLASSES, SHAPE), "train", images(40), torch.arange(40) % CLASSES)


def test_an_ensemble_is_wrapped_and_attacked_like_any_model(training: ExampleSet) -> None:
    model, x = MeanProbability(), images(6)
    expected = model(x)
    wrapped = wrap(model, training, HPMConfig(beta=0.4), head=HeadRule(members=HEADS, output="probabilities"))
    torch.testing.assert_close(wrapped.base(x).softmax(1), expected)
    classifier = wrapped.classifier
    embedding = classifier.embed(x)
    assert embedding.features.shape == (6, sum(WIDTHS))
    squared = (embedding.features[:, None] - classifier.prototypes).square().sum(2)
    chosen = torch.nn.functional.one_hot(expected.argmax(1), CLASSES)
    by_hand = -squared * (1 - 0.4 * chosen).square() / classifier.tau
    torch.testing.assert_close(classifier(x), by_hand)


def test_an_ensemble_has_no_fc_rows_to_start_from(training: ExampleSet) -> None:
    rule = HeadRule(members=HEADS, output="probabilities")
    with pytest.raises(InvalidInput, match="class-means"):
        wrap(MeanProbability(), training, HPMConfig(init="fc-rows"), head=rule)


class Coupled(nn.Module):
    """Centers its features over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Flatten(), nn.Linear(48, 6)), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        return self.head(features - features.mean(0) * (len(x) > 1))


@pytest.mark.parametrize("known", [True, False], ids=["said", "found out"])
def test_a_network_that_couples_its_batch_sees_one_image_at_a_time(
    training: ExampleSet, known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = Coupled(), images(5)
    alone = torch.cat([model(image) for image in x.split(1)])
    assert not torch.allclose(model(x), alone)
    wrapped = wrap(model, training, head=HeadRule(one_by_one=known))
    torch.testing.assert_close(wrapped.base(x), alone)
    torch.testing.assert_close(wrapped.classifier(x)[:1], wrapped.classifier(x[:1]))
    assert ("answered alone" in wrapped.about) is not known
    assert ("answered alone" in caplog.text) is not known


def test_an_ordinary_network_has_nothing_peculiar(training: ExampleSet) -> None:
    ordinary = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    assert wrap(ordinary, training).about == ""
