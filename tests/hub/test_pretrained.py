"""Saved and loaded back: the same tensors, the same logits bit for bit, and nothing that was not published."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import hpm_robustbench
from hpm_robustbench.data import open_dataset
from hpm_robustbench.errors import IntegrityError, InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.hub.classifier import HPMClassifier
from hpm_robustbench.hub.origin import Origin, base_spec
from hpm_robustbench.ledger import atomic
from hpm_robustbench.load import wrap
from hpm_robustbench.threat import Batching, Dataset
from hpm_robustbench.training.checkpoint import Saved, write_saved
from hpm_robustbench.training.published import record
from hpm_robustbench.training.recipe import RECIPES, Control, Tuning, find_recipe
from hpm_robustbench.weights import load_weights
from hpm_robustbench.zoo.builtin import builtin_specs
from hpm_robustbench.zoo.catalog import catalog
from hpm_robustbench.zoo.spec import WeightsRef

DIGITS = open_dataset("digits")
TRAIN = DIGITS.train().take(range(200))
[SPEC] = builtin_specs()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return DIGITS.test().images[:40]


def made(batching: Batching = Batching.SOLO, **knobs: object) -> HPMClassifier:
    """The embedded model, wrapped."""
    wrapped = wrap(load_weights(SPEC, Path("models")).model, TRAIN, HPMConfig(**knobs))
    reference = TRAIN.images[:30] if batching is Batching.REFERENCE else None
    origin = Origin(SPEC, DIGITS.dataset, wrapped.prototypes_from)
    return HPMClassifier.of(wrapped.classifier.with_batching(batching, reference), origin)


@pytest.mark.parametrize("include_backbone", [False, True], ids=["head", "model"])
@pytest.mark.parametrize("batching", Batching)
def test_the_circle_gives_the_same_logits_bit_for_bit(batching, include_backbone, images, tmp_path):
    classifier = made(batching, beta=0.3, kappa=1.0, normalize=True, absent="carry")
    classifier.save_pretrained(tmp_path, include_backbone=include_backbone)
    back = HPMClassifier.from_pretrained(str(tmp_path))
    assert torch.equal(back(images), classifier(images))
    assert state_sha256(back) == state_sha256(classifier)
    assert (back.config, back.batching) == (classifier.config, batching)
    assert back.origin == classifier.origin
    assert not back.training and not any(p.requires_grad for p in back.parameters())
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("backbone.") for name in stored) is include_backbone


def test_equal_classifiers_are_equal_files(tmp_path):
    for folder in ("one", "other"):
        made().save_pretrained(tmp_path / folder)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_loaded_classifier_is_saved_again_as_it_was(tmp_path):
    made().save_pretrained(tmp_path / "one", include_backbone=False)
    HPMClassifier.from_pretrained(str(tmp_path / "one")).save_pretrained(tmp_path / "other", include_backbone=False)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_what_was_trained_further_is_not_saved_without_its_backbone(images, tmp_path):
    classifier = made()
    with torch.no_grad():
        next(classifier.backbone.parameters()).add_(0.01)
        classifier.fc.weight.mul_(1.5)
        classifier.beta[3] = 0.25
    with pytest.raises(InvalidInput, match=r"backbone of Digits2026ResNet-Linf.*include the backbone"):
        classifier.save_pretrained(tmp_path, include_backbone=False)
    assert list(tmp_path.iterdir()) == []
    classifier.save_pretrained(tmp_path)
    assert torch.equal(HPMClassifier.from_pretrained(str(tmp_path))(images), classifier(images))


def test_weights_that_nobody_else_has_are_not_pointed_at(tmp_path):
    classifier = made()
    classifier.origin = replace(classifier.origin, spec=replace(SPEC, weights=WeightsRef("file", ("/home/me/x.pt",))))
    with pytest.raises(InvalidInput, match=r"others can fetch.*file:x\.pt\. Next: include the backbone"):
        classifier.save_pretrained(tmp_path, include_backbone=False)


class Own(torch.nn.Module):
    """A network that the catalog does not have, and whose answer depends on the batch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7), torch.nn.Tanh())
            self.fc = torch.nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layers(x)
        return self.fc(features + features.mean(dim=0))


def test_a_network_of_ones_own_is_brought_by_the_caller_and_never_imported(images, tmp_path):
    spec = replace(SPEC, name="Own", factory="python:os:abort", weights=WeightsRef("memory", ()))
    wrapped = wrap(Own(0), TRAIN)
    classifier = HPMClassifier.of(wrapped.classifier, Origin(spec, DIGITS.dataset, wrapped.prototypes_from))
    classifier.save_pretrained(tmp_path)
    with pytest.raises(UnknownName, match="Own"):
        HPMClassifier.from_pretrained(str(tmp_path))
    back = HPMClassifier.from_pretrained(str(tmp_path), network=Own(1))
    assert torch.equal(back(images), classifier(images))


def test_a_network_under_a_known_name_is_not_taken_for_the_known_one(tmp_path):
    classifier = made()
    classifier.origin = replace(classifier.origin, spec=replace(SPEC, factory="python:os:abort"))
    classifier.save_pretrained(tmp_path)
    with pytest.raises(UsageProblem, match="one that python:os:abort builds"):
        HPMClassifier.from_pretrained(str(tmp_path))


def changed(folder: Path, **values: object) -> None:
    written = json.loads((folder / "config.json").read_text())
    base = {key.removeprefix("base_"): values.pop(key) for key in list(values) if key.startswith("base_")}
    written |= values
    written["base"] |= base
    (folder / "config.json").write_text(json.dumps(written))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"schema_version": "9.0"}, "schema_version"),
        ({"library_name": "transformers"}, "library_name"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"image_shape": [3, 100_000, 100_000]}, "larger than any"),
        ({"image_shape": [1, 8]}, "image_shape"),
        ({"defence": {"beta": 7.0}}, "beta in"),
        ({"defence": {"unheard": 1}}, "unheard"),
        ({"batching": "both"}, "batching"),
        ({"sha256": "0"}, "sha256"),
        ({"base_name": "../../x"}, "base.name"),
        ({"base_eps": "1/0"}, "eps"),
        ({"base_threat_model": "L7"}, "L7"),
        ({"tuned_by": ["--recipe", "$(id)"]}, "tuned_by.1"),
        ({"tuned_by": ["head; id"]}, "tuned_by.0"),
        ({"tuned_by": ["head\n"]}, "tuned_by.0"),
        ({"tuned_by": ["\x1b]0;owned\x07"]}, "tuned_by.0"),
        ({"base_factory": "\x1b[2Jos:abort"}, "base.factory"),
        ({"base_weights": "gdrive:\u202e"}, "base.weights"),
        ({"prototypes": "means\r\n"}, "prototypes"),
    ],
)
def test_a_description_that_means_nothing_is_refused_by_field(values, problem, tmp_path):
    made().save_pretrained(tmp_path)
    changed(tmp_path, **values)
    with pytest.raises(InvalidInput, match=problem) as caught:
        HPMClassifier.from_pretrained(str(tmp_path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("control", [None, *Control])
@pytest.mark.parametrize("name", RECIPES)
def test_every_fine_tuning_can_be_described(name, control, tmp_path):
    knobs = {"learned": "backbone,fc,tau,beta", "learning_rate": "1.2345678901234567e-05", "epochs": "3"}
    tuning = Tuning(find_recipe(name).with_knobs(knobs), control)
    assert any(option.endswith("e-05") for option in tuning.options)
    classifier = made()
    classifier.origin = replace(classifier.origin, tuned_by=tuple(tuning.options))
    classifier.save_pretrained(tmp_path)
    assert HPMClassifier.from_pretrained(str(tmp_path)).origin == classifier.origin


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        ({"state_sha256": "0" * 64}, IntegrityError, "not all equal"),
        ({"n_classes": 9}, InvalidInput, "logits of shape"),
        ({"image_shape": [3, 8, 8]}, InvalidInput, "logits of shape"),
        ({"batching": "reference"}, IntegrityError, "reference_features"),
        ({"base_sha256": ["0" * 64]}, IntegrityError, "sha256 0000"),
        ({"base_sha256": []}, InvalidInput, "0 sha256"),
        ({"base_weights": "hf:owner/name@main:x.safetensors"}, InvalidInput, "a branch or tag"),
        ({"base_weights": "hf:../x"}, UsageProblem, "weights written as"),
        ({"base_model": "Unheard"}, UnknownName, "Unheard"),
    ],
)
def test_a_description_of_something_else_loads_nothing(values, kind, problem, tmp_path):
    made().save_pretrained(tmp_path, include_backbone=False)
    changed(tmp_path, **values)
    with pytest.raises(kind, match=problem):
        HPMClassifier.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("name", ["Bai2024MixedNUTS", "Diffenderfer2021Winning_LRR_CARD_Deck"])
def test_a_base_whose_weights_lie_on_the_hub_is_read_as_the_catalogs_own(name):
    [spec] = [spec for spec in catalog().specs("cifar10") if spec.name == name]
    files = ",".join(f"owner/name@{'a' * 40}:{i}.safetensors" for i in range(len(spec.weights.locators)))
    elsewhere = WeightsRef("hf", tuple(files.split(",")), ("0" * 64,) * len(spec.weights.locators))
    origin = Origin(replace(spec, weights=elsewhere), Dataset("cifar10", 10, (3, 32, 32)), "class means")
    found = base_spec(origin.to_base(), own=False).weights
    assert found == elsewhere.read_like(spec.weights)
    assert (found.leftover, found.constants, found.parts) != ((), (), ())
    assert (found.source, found.locators) == ("hf", elsewhere.locators)


def test_each_file_of_a_base_has_a_checksum_whoever_brings_the_network():
    [spec] = [spec for spec in catalog().specs("cifar10", "Linf") if spec.name == "Wong2020Fast"]
    two = tuple(f"evil/weights@{'a' * 40}:{name}.safetensors" for name in ("first", "second"))
    origin = Origin(replace(spec, weights=WeightsRef("hf", two, ("0" * 64,))), Dataset("cifar10", 10, (3, 32, 32)), "")
    for own in (True, False):
        with pytest.raises(InvalidInput, match="1 sha256"):
            base_spec(origin.to_base(), own=own)


def test_a_base_of_other_weights_has_none_of_the_published_figures():
    [spec] = [spec for spec in catalog().specs("cifar10", "Linf") if spec.name == "Wong2020Fast"]
    assert spec.paper.autoattack_acc is not None
    elsewhere = WeightsRef("hf", (f"evil/weights@{'a' * 40}:model.safetensors",), ("0" * 64,))
    images = Dataset("cifar10", 10, (3, 32, 32))
    found = base_spec(Origin(replace(spec, weights=elsewhere), images, "class means").to_base(), own=False)
    assert (found.paper.clean_acc, found.paper.autoattack_acc, found.paper.reported) == (None, None, None)
    own = replace(spec.weights, sha256=("0" * 64,))
    assert base_spec(Origin(replace(spec, weights=own), images, "").to_base(), own=False).paper == spec.paper


def test_what_cannot_be_described_is_refused_before_anything_is_written(tmp_path):
    classifier = made()
    classifier.origin = replace(classifier.origin, tuned_by=("--recipe", "head; id"))
    with pytest.raises(InvalidInput, match=r"'tuned_by\.1'.*check its card"):
        classifier.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_tensors_are_refused(images, tmp_path):
    classifier = made()
    classifier.save_pretrained(tmp_path, include_backbone=False)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="sha256"):
        HPMClassifier.from_pretrained(str(tmp_path))
    state = safetensors.torch.load(whole)
    for other in ({k: v for k, v in state.items() if k != "tau"}, {**state, "extra": torch.ones(1)}):
        changed(tmp_path, **described(other, file))
        with pytest.raises(IntegrityError, match="weights for"):
            HPMClassifier.from_pretrained(str(tmp_path))
    changed(tmp_path, **described({**state, "tau": torch.tensor(3.0)}, file))
    with pytest.raises(IntegrityError, match="not all equal"):
        HPMClassifier.from_pretrained(str(tmp_path))
    backbone = {
        f"backbone.{name}": (tensor + 1).contiguous() for name, tensor in classifier.backbone.state_dict().items()
    }
    changed(tmp_path, **described({**state, **backbone}, file))
    assert torch.equal(HPMClassifier.from_pretrained(str(tmp_path))(images), classifier(images))  # a head has none


def described(state: dict[str, torch.Tensor], file: Path) -> dict[str, object]:
    """Write other tensors, and what a description has to say of them."""
    import hashlib

    safetensors.torch.save_file(state, file)
    return {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_pickles_and_absent_files_are_no_way_in(tmp_path):
    made().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageProblem, match=r"model\.safetensors in"):
        HPMClassifier.from_pretrained(str(tmp_path))
    with pytest.raises(UsageProblem, match=r"a folder that is there, or a repository .* as owner/name; got .*absent"):
        HPMClassifier.from_pretrained(str(tmp_path / "absent"))


def test_double_precision_is_refused_before_anything_is_written(tmp_path):
    classifier = made()
    classifier.tau.data = classifier.tau.data.double()
    with pytest.raises(InvalidInput, match=r"another in tau.*\.float\(\)"):
        classifier.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_classifier_has_its_name_at_the_front_door():
    assert hpm_robustbench.HPMClassifier is HPMClassifier
    assert made().origin.images == Dataset("digits", 10, (1, 8, 8))
    with pytest.raises(AttributeError, match="no attribute 'HPMclassifier'"):
        _ = hpm_robustbench.HPMclassifier


def test_a_record_of_training_goes_with_its_tensors_and_with_no_others(tmp_path):
    classifier = made()
    write_saved(tmp_path / "classifier.safetensors", Saved(dict(classifier.state_dict()), {"key": "x"}))
    told = ("--recipe", "prototypes")
    plain, tuned = classifier.origin, replace(classifier.origin, tuned_by=told, training=record(tmp_path))
    classifier.origin = tuned
    classifier.save_pretrained(tmp_path / "saved")
    back = HPMClassifier.from_pretrained(str(tmp_path / "saved"))
    assert back.origin == tuned
    back.beta += 0.25
    with pytest.raises(InvalidInput, match=r"got others, changed since.*replace\(origin, training=None\)"):
        back.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    classifier.origin = plain
    classifier.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_is_written_again_has_a_description_only_when_it_is_whole(tmp_path, monkeypatch):
    made().save_pretrained(tmp_path)
    write = atomic.write_atomic

    def killed_at_the_description(path, content):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(atomic, "write_atomic", killed_at_the_description)
    with pytest.raises(KeyboardInterrupt):
        made().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]
