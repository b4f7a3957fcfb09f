"""What a fine-tuning has left goes through its publication and comes back bit for bit, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hpm_robustbench.errors import InvalidInput, UsageProblem
from hpm_robustbench.evaluation.identity import state_sha256
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.threat import ThreatModel
from hpm_robustbench.training import elsewhere, finetuned
from hpm_robustbench.training.compute import Compute
from hpm_robustbench.training.elsewhere import take_finished
from hpm_robustbench.training.finetuned import finetune_once
from hpm_robustbench.training.kept import Finetuned
from hpm_robustbench.training.published import asked_of, belongs, publications, record
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

LINF = ThreatModel.parse("Linf", "0.1")
HEAD = Tuning(find_recipe("head").with_knobs({"epochs": 1}), Control.STATIC)


@pytest.fixture
def made(wrapped, digits, tmp_path: Path) -> Finetuned:
    return finetune_once("Small", wrapped, digits, LINF, HEAD, tmp_path / "made", Compute())


def publish(made: Finetuned, place: Path, change: Callable[[dict[str, Tensor]], object] = lambda _: None) -> Path:
    """Its two files, with other tensors if they are to be changed."""
    tensors = safetensors.torch.load_file(made.folder / "classifier.safetensors")
    change(tensors)
    place.mkdir(parents=True)
    safetensors.torch.save_file(tensors, place / "model.safetensors")
    (place / "training.json").write_bytes(record(made.folder))
    return place


def leave_out_the_backbone(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("backbone.")]:
        del tensors[name]


@pytest.mark.parametrize("depth", ["", "hpm-small", "me/hpm-small"])
@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        leave_out_the_backbone,
        lambda tensors: tensors.update(reference_features=torch.zeros(2), reference_memberships=torch.ones(2)),
    ],
)
def test_it_comes_back_bit_for_bit(wrapped, digits, made: Finetuned, tmp_path: Path, depth: str, change) -> None:
    place = tmp_path / "published"
    folder = publish(made, place / depth, change)
    taken = take_finished("Small", wrapped, digits, LINF, HEAD, place)
    assert taken.folder == folder
    assert state_sha256(taken.classifier) == state_sha256(made.classifier)
    assert (taken.course.curves, taken.course.made) == (made.course.curves, made.course.made)
    assert "taken as it was found" in taken.course.reports[-1]
    assert record(folder) == record(made.folder), "and can be published again"


def test_one_is_found_among_its_controls(wrapped, digits, made: Finetuned, tmp_path: Path) -> None:
    hpm = finetune_once("Small", wrapped, digits, LINF, Tuning(HEAD.recipe), tmp_path / "made", Compute())
    place = tmp_path / "published"
    both = {HEAD: publish(made, place / "static"), Tuning(HEAD.recipe): publish(hpm, place / "hpm")}
    for tuning, folder in both.items():
        assert take_finished("Small", wrapped, digits, LINF, tuning, place).folder == folder
    with pytest.raises(UsageProblem, match="got none"):
        take_finished("Small", wrapped, digits, LINF, Tuning(HEAD.recipe, Control.FC), place)
    shutil.copytree(place / "hpm", place / "again")
    shutil.copytree(hpm.folder, place / hpm.folder.name)
    taken = take_finished("Small", wrapped, digits, LINF, Tuning(HEAD.recipe), place)
    assert state_sha256(taken.classifier) == state_sha256(hpm.classifier), "one training in three places"


def test_nothing_is_sought_below_a_publication(wrapped, digits, made: Finetuned, tmp_path: Path) -> None:
    place = publish(made, tmp_path / "published")
    other = json.loads((place / "training.json").read_text())
    other["facts"]["asked"]["budget"] = ["Linf", "1/2"]
    publish(made, place / "below")
    (place / "training.json").write_text(json.dumps(other))
    with pytest.raises(UsageProblem, match="got published, which differs in budget"):
        take_finished("Small", wrapped, digits, LINF, HEAD, place)
    other["facts"]["asked"]["recipe, knobs or seed"]["name"] = "another"
    (place / "training.json").write_text(json.dumps(other))
    shutil.copytree(made.folder, place / made.folder.name)
    with pytest.raises(UsageProblem, match="got none"):
        take_finished("Small", wrapped, digits, LINF, HEAD, place)
    shutil.rmtree(place / made.folder.name)
    (place / "training.json").unlink()
    assert take_finished("Small", wrapped, digits, LINF, HEAD, place).folder == place / "below"


def test_a_record_that_no_training_can_have_is_not_read(made: Finetuned, tmp_path: Path) -> None:
    place = publish(made, tmp_path / "published")
    assert publications(place, HEAD).keys() == {place}
    with (place / "training.json").open("a") as file:
        file.write(" " * (1 << 20))
    assert publications(place, HEAD) == {}


def test_what_was_changed_since_belongs_to_no_record(made: Finetuned) -> None:
    tensors = dict(made.classifier.state_dict())
    assert belongs(record(made.folder), {**tensors, "reference_features": torch.zeros(1)})
    assert not belongs(record(made.folder), {**tensors, "tau": tensors["tau"] + 1})
    assert not belongs(b"[]", tensors)


def test_what_is_gone_cannot_be_published(made: Finetuned) -> None:
    shutil.rmtree(made.folder)
    with pytest.raises(UsageProblem, match="bring it back, or repeat the training"):
        record(made.folder)


def test_more_epochs_than_any_memory_holds_are_only_counted(wrapped, digits, made: Finetuned) -> None:
    """A stranger's recipe says how many there were; the curves beside it do not."""
    lesson = finetuned.lesson_of(wrapped, digits, LINF, Tuning(HEAD.recipe.with_knobs({"epochs": str(10**15)})))
    assert "curves of other epochs than the recipe's" in list(elsewhere._in_claims(lesson, made.course))


def torn(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def other_facts(folder: Path) -> None:
    file = folder / "training.json"
    file.write_text(file.read_text().replace('"held_out": 16', '"held_out": 17'))


def other_tensors(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["fc.bias"] += 1
    safetensors.torch.save_file(tensors, file)


@pytest.mark.parametrize(
    "spoil", [torn, other_facts, other_tensors, lambda folder: (folder / "model.safetensors").unlink()]
)
def test_files_that_do_not_belong_together_are_refused(
    wrapped, digits, made: Finetuned, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil
) -> None:
    folder = publish(made, tmp_path / "published")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    spoil(folder)
    assert before != {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageProblem, match="published, which is not whole or not what its name says"):
        take_finished("Small", wrapped, digits, LINF, HEAD, folder)
    assert "ignoring" in caplog.text


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 100_000, '{"facts": [], "sha256": ""}', '{"facts": {}}', "\xff"])
def test_a_record_that_is_none_is_no_training(wrapped, digits, made: Finetuned, tmp_path: Path, text: str) -> None:
    folder = publish(made, tmp_path / "published")
    (folder / "training.json").write_text(text, encoding="latin-1")
    with pytest.raises(UsageProblem, match="got none"):
        take_finished("Small", wrapped, digits, LINF, HEAD, folder)
    with pytest.raises(InvalidInput, match="tells what its training was asked for"):
        asked_of(folder)


def test_the_knobs_are_those_before_a_control_changed_them(made: Finetuned, tmp_path: Path) -> None:
    folder = publish(made, tmp_path / "published")
    assert made.classifier.config.beta == 0
    assert asked_of(folder) == (HPMConfig(), 0)


@pytest.mark.parametrize(
    ("knobs", "seed", "match"),
    [
        ({"beta": "0.5"}, 0, "beta in"),
        ({"beta": 10**400}, 0, "too large|beta in"),
        ({"\x1b[2J\x1b]0;owned\x07": 1}, 0, "among the knobs"),
        ({"knob" * 10**5: 1}, 0, "among the knobs"),
        ({"distance": "\x1b[2J" * 10**5}, 0, "distance"),
        ([], 0, "AttributeError"),
        ({}, -1, "the seed -1"),
        ({}, True, "the seed True"),
        ({}, "\x1b" * 10**5, "the seed"),
        ({}, 2**63, "the seed 9223372036854775808"),
    ],
)
def test_a_strangers_record_is_refused_in_one_short_line(made: Finetuned, tmp_path: Path, knobs, seed, match) -> None:
    folder = publish(made, tmp_path / "published")
    told = json.loads((folder / "training.json").read_text())
    told["facts"]["asked"]["knobs of HPM"] = knobs
    told["facts"]["asked"]["recipe, knobs or seed"]["seed"] = seed
    (folder / "training.json").write_text(json.dumps(told))
    with pytest.raises(InvalidInput, match=match) as refused:
        asked_of(folder)
    assert len(refused.value.got) < 300
    assert refused.value.got.isprintable()
