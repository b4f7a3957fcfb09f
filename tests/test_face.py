"""The face of the package: what a person writes in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hpm_robustbench
from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.ledger.model_card import read_card
from hpm_robustbench.robustbench_compat import import_robustbench
from hpm_robustbench.threat import Batching
from hpm_robustbench.zoo.builtin import DIGITS_MODEL


@pytest.fixture
def model() -> nn.Module:
    """Nearest class mean of raw pixels, as a linear head: a classifier without training."""
    train = open_dataset("digits").train()
    assert train is not None
    means = torch.stack([train.images[train.labels == label].mean(0).flatten() for label in range(10)])
    head = nn.Linear(64, 10)
    with torch.no_grad():
        head.weight.copy_(2 * means)
        head.bias.copy_(-means.square().sum(1))
    return nn.Sequential(nn.Flatten(), head)


def test_a_model_of_ones_own_in_a_few_lines(model: nn.Module, tmp_path: Path) -> None:
    source = open_dataset("digits")
    test, train = source.test(), source.train()
    assert train is not None
    outcome = hpm_robustbench.benchmark(
        model,
        (test.images, test.labels),
        (train.images, train.labels),
        name="Mine",
        dataset="scans",
        eps=0.3,
        n_ex=8,
        output=str(tmp_path),
    )
    card = read_card(tmp_path / "model_cards" / "scans" / "Linf" / "Mine.json")
    assert card == outcome.card
    assert card.hpm_bench is not None
    assert card.eps == "0.3"
    assert card.hpm_bench.weights.source == "memory:"
    assert [e.target for e in card.hpm_bench.evaluations] == ["base", "hpm", "hpm"]
    assert card.hpm_bench.verdict(Batching.SOLO) is not None


def test_the_same_call_again_gives_the_same_card_and_leaves_the_model_alone(model: nn.Module, tmp_path: Path) -> None:
    test = open_dataset("digits").test()
    model.train()
    modules = dict(model.named_modules())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (
        hpm_robustbench.benchmark(model, (test.images, test.labels), name="Mine", eps="0.3", n_ex=2, output=tmp_path)
        for _ in range(2)
    )
    assert first.card.to_text() == second.card.to_text()
    assert dict(model.named_modules()) == modules
    assert all(module.training for module in modules.values())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_cannot_be_copied_is_refused(model: nn.Module) -> None:
    test = open_dataset("digits").test()
    model.last = model(test.images[:2])  # with gradients
    with pytest.raises(InvalidInput, match=r"copy\.deepcopy.*RuntimeError.*torch\.no_grad"):
        hpm_robustbench.benchmark(model, (test.images, test.labels), name="Mine", eps="0.3")
    with pytest.raises(InvalidInput, match=r"copy\.deepcopy"):
        hpm_robustbench.wrap(model, test.images, test.labels)


@pytest.mark.parametrize("which", ["test images", "test labels", "train images", "train labels"])
def test_an_array_of_numpy_is_told_by_its_name(model: nn.Module, which: str) -> None:
    test = open_dataset("digits").test()
    given = {f"{split} {part}": getattr(test, part) for split in ("test", "train") for part in ("images", "labels")}
    given[which] = given[which].numpy()
    images, labels, train_images, train_labels = given.values()
    with pytest.raises(InvalidInput, match=rf"{which} as a torch tensor; got numpy\.ndarray.*torch\.from_numpy"):
        hpm_robustbench.benchmark(model, (images, labels), (train_images, train_labels), name="Mine", eps="0.3")


@pytest.mark.parametrize("which", ["images", "labels"])
def test_wrapping_refuses_an_array_of_numpy_too(model: nn.Module, which: str) -> None:
    test = open_dataset("digits").test()
    given = {"images": test.images, "labels": test.labels, which: getattr(test, which).numpy()}
    with pytest.raises(InvalidInput, match=rf"wanted {which} as a torch tensor; got numpy\.ndarray"):
        hpm_robustbench.wrap(model, **given)


def test_an_option_that_is_not_there_shows_those_that_are(model: nn.Module) -> None:
    test = open_dataset("digits").test()
    with pytest.raises(UsageProblem, match=r"options among n_ex, .*overwrite; got nex\."):
        hpm_robustbench.benchmark(model, (test.images, test.labels), name="Mine", eps="0.3", nex=4)
    with pytest.raises(UsageProblem, match=r"knobs of HPM among .*beta.*; got bta\."):
        hpm_robustbench.wrap(model, test.images, test.labels, bta=0.3)


def test_every_batching_can_be_tried(model: nn.Module, tmp_path: Path) -> None:
    test = open_dataset("digits").test()
    outcome = hpm_robustbench.benchmark(
        model,
        (test.images, test.labels),
        name="Mine",
        threat_model="L2",
        eps="3",
        n_ex=4,
        batchings=(Batching.REFERENCE,),
        head="1",
        output=tmp_path,
    )
    assert outcome.card.hpm_bench is not None
    assert {e.batching for e in outcome.card.hpm_bench.evaluations} == {Batching.SOLO, Batching.REFERENCE}
    assert "496 test images" in outcome.card.hpm_bench.notes["prototypes"]
    assert outcome.card.hpm_bench.notes["head"] == "1"


def test_wrapping_gives_a_classifier_with_the_known_answer(model: nn.Module) -> None:
    train = open_dataset("digits").train()
    assert train is not None
    with torch.no_grad():
        expected = model(train.images).argmax(1)
    classifier = hpm_robustbench.wrap(model, train.images, train.labels, beta=0.0)
    assert torch.equal(classifier(train.images).argmax(1), expected)
    assert torch.equal(model(train.images).argmax(1), expected), "the model itself still answers"


def test_wrapping_refuses_images_that_are_not_in_the_box(model: nn.Module) -> None:
    with pytest.raises(InvalidInput, match=r"\[0, 1\]"):
        hpm_robustbench.wrap(model, torch.full((10, 1, 8, 8), 2.0), torch.arange(10))


def test_images_that_gradients_are_kept_for_are_images(model: nn.Module, tmp_path: Path) -> None:
    test = open_dataset("digits").test()
    cards = [
        hpm_robustbench.benchmark(
            model, (images, test.labels), name="Mine", eps="0.3", n_ex=2, batchings=("solo",), output=tmp_path / place
        ).card.to_json()
        for place, images in (("with", test.images.clone().requires_grad_()), ("without", test.images))
    ]
    assert cards[0] == cards[1]


def test_robustbenchs_own_words_are_understood() -> None:
    import_robustbench()
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    asked = BenchmarkDataset.cifar_10, ThreatModel.Linf
    assert hpm_robustbench.list_models(*asked) == hpm_robustbench.list_models("cifar10", "Linf")
    assert torch.equal(
        hpm_robustbench.load_model(DIGITS_MODEL, dataset="digits", threat_model=ThreatModel.Linf).fc.weight,
        hpm_robustbench.load_model(DIGITS_MODEL).fc.weight,
    )


@pytest.mark.parametrize(
    ("option", "given"), [("name", None), ("name", 3), ("dataset", None), ("threat_model", None), ("threat_model", 8)]
)
def test_what_is_no_text_is_refused(model: nn.Module, option: str, given: Any) -> None:
    test = open_dataset("digits").test()
    asked = {"name": "Mine", "eps": "0.3", option: given}
    with pytest.raises(UsageProblem, match=f"wanted {option} as text"):
        hpm_robustbench.benchmark(model, (test.images, test.labels), **asked)


def test_models_can_be_listed_and_loaded() -> None:
    assert "Carmon2019Unlabeled" in hpm_robustbench.list_models("cifar10", "Linf")
    assert not any(name.startswith("Digits") for name in hpm_robustbench.list_models("cifar10"))
    assert len(hpm_robustbench.list_models("cifar10", "corruptions")) == 17
    name = next(name for name in hpm_robustbench.list_models("digits"))
    assert hpm_robustbench.load_model(name)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(UnknownName, match="Carmon2019Unlabeled"):
        hpm_robustbench.load_model("Carmon2019")


def test_a_dataset_without_models_shows_those_that_have_some() -> None:
    with pytest.raises(UnknownName, match="did you mean cifar10"):
        hpm_robustbench.list_models("cifar11")


def test_every_failure_can_be_caught_by_one_name() -> None:
    with pytest.raises(hpm_robustbench.HpmBenchError, match="Carmon2019Unlabeled"):
        hpm_robustbench.load_model("Carmon2019")
    with pytest.raises(AttributeError, match="no attribute 'HpmError'"):
        hpm_robustbench.HpmError  # noqa: B018


def test_a_models_peculiarity_is_told() -> None:
    from hpm_robustbench.report.models import spec_facts
    from hpm_robustbench.request.models import find_spec

    facts = spec_facts(find_spec("Chen2020Adversarial"))
    assert facts["head"] == "branch1.linear, branch2.linear, branch3.linear"
    assert "logarithm" in facts["note"]


def test_images_of_another_size_than_the_model_was_made_for_are_refused(tmp_path: Path) -> None:
    from hpm_robustbench.case import prepare
    from hpm_robustbench.data import DataSource
    from hpm_robustbench.data.known import KNOWN
    from hpm_robustbench.request.models import find_spec
    from hpm_robustbench.run_options import RunOptions

    def unread(n: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("no image is needed to see that they do not fit")

    spec = find_spec("Wong2020Fast", "imagenet")
    with pytest.raises(UsageProblem, match=r"288 x 288.*Crop288.*imagenet of 224 x 224"):
        prepare(spec, RunOptions(output=tmp_path), source=DataSource(KNOWN["imagenet"], unread))
