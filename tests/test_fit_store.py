"""Prototypes and tau are computed once, and kept only as what they are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpm_robustbench.data import ExampleSet, open_dataset
from hpm_robustbench.errors import StorageProblem
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.load import Wrapped, wrap


class Counting(nn.Module):
    """A small network that counts the images it has seen."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()), nn.Linear(12, 10)
        self.scale, self.seen = scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.head(self.scale * self.features(x))


@pytest.fixture(autouse=True)
def _random_state_kept():
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="module")
def training() -> ExampleSet:
    training = open_dataset("digits").train()
    assert training is not None
    return training


def fitted(training: ExampleSet, folder: Path | None, scale: float = 1.0, **knobs: object) -> tuple[Wrapped, int]:
    model = Counting(scale)
    wrapped = wrap(model, training, HPMConfig(**knobs), keep=folder)
    return wrapped, model.seen


def test_a_long_fit_says_how_far_it_is(
    training: ExampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hpm_robustbench.evaluation.progress._SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    fitted(training, tmp_path)
    told = [line for line in caplog.messages if f"dataset prototypes of {len(training)} images" in line]
    assert told[-1].endswith(f"{-(-len(training) // 250)} model calls")


def test_a_second_fit_reads_what_the_first_has_left(training: ExampleSet, tmp_path: Path) -> None:
    alone, _ = fitted(training, None)
    first, seen_first = fitted(training, tmp_path)
    second, seen_second = fitted(training, tmp_path)
    assert seen_first > len(training) > 10 * seen_second
    for wrapped in (first, second):
        assert torch.equal(wrapped.classifier.prototypes, alone.classifier.prototypes)
        assert torch.equal(wrapped.classifier.tau, alone.classifier.tau)


@pytest.mark.parametrize(
    "change", [{"beta": 0.3}, {"init": "fc-rows"}, {"normalize": True}, {"tau": 2.0}, {"scale": 2.0}, "images"], ids=str
)
def test_another_network_definition_or_set_of_images_is_fitted_anew(
    training: ExampleSet, tmp_path: Path, change: object
) -> None:
    fitted(training, tmp_path)
    others = training.head(1000) if change == "images" else training
    settings = change if isinstance(change, dict) else {}
    kept, _ = fitted(others, tmp_path, **settings)
    alone, _ = fitted(others, None, **settings)
    assert torch.equal(kept.classifier.prototypes, alone.classifier.prototypes)
    assert torch.equal(kept.classifier.tau, alone.classifier.tau)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["torn", "edited", "foreign"])
def test_a_damaged_file_is_ignored_said_and_made_again(
    training: ExampleSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    fitted(training, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    torn, edited = good[:-40], good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    path.write_bytes({"torn": torn, "edited": edited, "foreign": b"no tensors"}[damage])
    with caplog.at_level(logging.WARNING):
        wrapped, _ = fitted(training, tmp_path)
    assert f"ignoring {path}" in caplog.text
    assert path.read_bytes() == good
    assert torch.equal(wrapped.classifier.prototypes, fitted(training, None)[0].classifier.prototypes)


def test_a_folder_that_cannot_be_written(training: ExampleSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageProblem, match="--output"):
        fitted(training, tmp_path / "file")
