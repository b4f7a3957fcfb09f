"""A card tells which step took which image, and nobody can tell it otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hpm_robustbench.cli import cli
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.model_card import read_card, write_card
from hpm_robustbench.ledger.provenance import fates

Told = dict[str, str]


def test_it_equals_an_independent_recount(card, records) -> None:
    for evaluation, record in zip(card.hpm_bench.evaluations, records, strict=True):
        wrong = np.array([np.isin(step.verdict, (0, 2)) for step in record.steps])  # clean wrong, or broken
        first = wrong.argmax(axis=0)
        expected = {
            row: (record.steps[first[row]].name, record.steps[first[row]].predicted[row])
            for row in wrong.any(axis=0).nonzero()[0].tolist()
        }
        assert fates(evaluation.provenance) == expected
        assert len(expected) == evaluation.n - evaluation.robust.count
        assert record.lost_to == [expected[row][0] if row in expected else None for row in range(record.n)]


def a_row_falls_twice(told: Told) -> None:
    told["apgd-t@hpm"] = told["apgd-ce@hpm"].split()[0] + " " + told["apgd-t@hpm"].split(" ", 1)[1]


def a_row_is_left_out(told: Told) -> None:
    told["clean"] = told["clean"].rsplit(" ", 1)[0]


def a_row_is_none_of_the_images(told: Told) -> None:
    told["clean"] = "400:1 " + told["clean"].split(" ", 1)[1]


def a_step_took_what_another_did(told: Told) -> None:
    told["apgd-ce@hpm"], told["apgd-t@hpm"] = told["apgd-t@hpm"], told["apgd-ce@hpm"]


def nobody_knows_the_step(told: Told) -> None:
    told["a guess"] = told.pop("square@hpm")


def a_row_has_no_class(told: Told) -> None:
    told["clean"] = told["clean"].split(":")[0]


def a_class_is_none_of_the_dataset(told: Told) -> None:
    told["clean"] = told["clean"].rsplit(":", 1)[0] + ":10"


def a_class_is_negative(told: Told) -> None:
    told["clean"] = told["clean"].rsplit(":", 1)[0] + ":-1"


def other_rows_fell(told: Told) -> None:
    """As many as the counts say, but not those that the verdict was made from."""
    spared = next(row for row in range(400) if row not in fates(told))
    told["clean"] = f"{spared}:1 " + told["clean"].split(" ", 1)[1]


@pytest.mark.parametrize(
    ("forge", "problem"),
    [
        (a_row_falls_twice, "fell to apgd-ce@hpm and to apgd-t@hpm"),
        (a_row_is_left_out, "not as many as each step broke"),
        (a_row_is_none_of_the_images, "not among the images"),
        (a_step_took_what_another_did, "not as many as each step broke"),
        (nobody_knows_the_step, "not as many as each step broke"),
        (a_row_has_no_class, "pattern"),
        (a_class_is_none_of_the_dataset, "a class that the dataset does not have"),
        (a_class_is_negative, "pattern"),
        (other_rows_fell, "does not fit the rows that fell"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_forgery_is_refused(card, tmp_path: Path, forge: Callable[[Told], None], problem: str) -> None:
    path = write_card(card, tmp_path)
    data = json.loads(path.read_text())
    forge(data["hpm_bench"]["evaluations"][1]["provenance"])
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInput, match=problem):
        read_card(path)


def test_a_card_from_before_is_a_card(card, tmp_path: Path) -> None:
    path = write_card(card, tmp_path)
    data = json.loads(path.read_text())
    for evaluation in data["hpm_bench"]["evaluations"]:
        del evaluation["provenance"]
    path.write_text(json.dumps(data))
    assert read_card(path).hpm_bench.headline.fallen is None
    assert read_card(path).to_json() == data
    told = CliRunner().invoke(cli, ["card", "rows", str(path)], obj=[], catch_exceptions=False)
    assert told.stdout == "a card that does not tell of rows\n"


def test_the_command_line_shows_one_line_for_each_image_that_fell(card, tmp_path: Path) -> None:
    arguments = ["card", "rows", str(write_card(card, tmp_path))]
    human = CliRunner().invoke(cli, arguments, obj=[], catch_exceptions=False).stdout.splitlines()
    rows = json.loads(CliRunner().invoke(cli, [*arguments, "--format", "json"], obj=[], catch_exceptions=False).stdout)
    evaluations = card.hpm_bench.evaluations
    assert len(human) - 2 == len(rows) == sum(e.n - e.robust.count for e in evaluations)
    assert rows[0].keys() == {"target", "batching", "seed", "row", "step", "class"}
    taken = [row for row in rows if (row["target"], row["batching"], row["step"]) == ("hpm", "solo", "conjunction@hpm")]
    assert len(taken) == evaluations[1].steps[-1].broken > 0
    assert all(row["class"] == row["row"] % 10 for row in rows)


def test_ten_thousand_images_make_a_line_not_a_book(card) -> None:
    """About six characters for each image that fell."""
    text = json.dumps(card.hpm_bench.headline.provenance)
    assert len(text) < 8 * (card.hpm_bench.headline.n - card.hpm_bench.headline.robust.count) + 200
