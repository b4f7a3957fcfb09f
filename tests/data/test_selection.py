"""Which images are evaluated and which make prototypes."""

from __future__ import annotations

import logging

import pytest
import torch

from hpm_robustbench.data import DataSource, selection
from hpm_robustbench.data.selection import select
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.threat import Dataset

DATASET = Dataset("scans", 2, (1, 2, 2))
ONE_IMAGE = 16  # bytes


class Reader:
    """A split of distinct images that remembers how many rows were asked for."""

    def __init__(self, n: int, first: int = 0) -> None:
        self.images = torch.arange(first, first + n).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous() / 1000
        self.asked: list[int | None] = []

    def __call__(self, n: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(n)
        return self.images[:n], torch.arange(len(self.images[:n])) % 2


def test_no_more_test_images_are_read_than_are_evaluated() -> None:
    test, train = Reader(50), Reader(30, first=100)
    evaluated, training = select(DataSource(DATASET, test, train), 7)
    assert (len(evaluated), len(training)) == (7, 30)
    assert test.asked == [7]


def test_a_request_for_more_than_there_is_takes_all() -> None:
    evaluated, _ = select(DataSource(DATASET, Reader(5), Reader(30, first=100)), 1000)
    assert len(evaluated) == 5


def test_training_images_that_are_evaluated_are_left_out() -> None:
    evaluated, training = select(DataSource(DATASET, Reader(50), Reader(30, first=5)), 10)
    assert len(training) == 25
    assert not {float(i[0, 0, 0]) for i in evaluated.images} & {float(i[0, 0, 0]) for i in training.images}
    with pytest.raises(InvalidInput, match="apart from"):
        select(DataSource(DATASET, Reader(50), Reader(10)), 10)


def test_without_training_images_the_rest_of_the_test_images_serves() -> None:
    evaluated, training = select(DataSource(DATASET, Reader(50)), 20)
    assert (len(evaluated), len(training), training.split) == (20, 30, "test")
    with pytest.raises(InvalidInput, match="lower --n-ex"):
        select(DataSource(DATASET, Reader(50)), 40)


@pytest.mark.parametrize(("held", "cut_from"), [(40, 40), (20, None)])
def test_training_images_know_how_many_there_were_where_the_room_did_not_take_them_all(
    monkeypatch: pytest.MonkeyPatch, held: int, cut_from: int | None
) -> None:
    monkeypatch.setattr(selection, "_MOST_BYTES", 20 * ONE_IMAGE)
    _, training = select(DataSource(DATASET, Reader(5), Reader(held, first=100), lambda: held), 5)
    assert (len(training), training.cut_from) == (20, cut_from)


@pytest.mark.parametrize("with_train", [True, False])
def test_prototypes_take_no_more_images_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, with_train: bool
) -> None:
    monkeypatch.setattr(selection, "_MOST_BYTES", 25 * ONE_IMAGE + 3)
    test, train = Reader(200), Reader(200, first=300)
    with caplog.at_level(logging.INFO):
        evaluated, training = select(DataSource(DATASET, test, train if with_train else None), 10)
    assert (len(evaluated), len(training)) == (10, 25)
    assert test.asked == [10 if with_train else 35]
    assert "first 25" in caplog.text


def test_there_is_always_room_for_ten_images_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_MOST_BYTES", 3 * ONE_IMAGE)
    _, training = select(DataSource(DATASET, Reader(200)), 10)
    assert len(training) == 20


def test_a_class_without_training_images_is_refused() -> None:
    def one_class(n: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = Reader(30, first=100)(n)
        return images, torch.zeros_like(labels)

    with pytest.raises(InvalidInput, match="none of class 1 among 30"):
        select(DataSource(DATASET, Reader(50), one_class), 10)
