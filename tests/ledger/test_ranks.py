"""Models are ranked; their controls stand below them, and a row of C1 tells which numbers are C1's."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from hpm_robustbench.ledger.corruption_rows import corruption_tracks
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, write_card
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.threat import Batching
from hpm_robustbench.training.recipe import Control, Tuning, find_recipe

TUNING = Tuning(find_recipe("uniform-v1"))
TUNED = "resnet4b_linf2_uniform-v1"


@pytest.fixture(scope="module")
def control_of(make_tuned_card):
    """The card of a control of a model, by the strength of the attacks on it."""

    def make(model, name: str, strength: float) -> ModelCard:
        return make_tuned_card(model, replace(TUNING, control=Control(name)), base=0.35, hpm=strength, controls={})

    return make


@pytest.fixture(scope="module")
def cards(spec, make_card, make_tuned_card, control_of) -> list[ModelCard]:
    """Two models, the better one with two controls that beat both, and one whose own card is not here."""
    return [
        make_card("Weak", hpm=0.4),
        make_tuned_card(spec, TUNING, hpm=0.2, controls={"fc": 0.3}),
        control_of(spec, "shuffled", 0.05),
        control_of(spec, "fc", 0.1),
        control_of(replace(spec, name="Absent"), "static", 0.01),
    ]


def test_controls_have_no_rank_and_stand_below_their_model(cards):
    [track] = tracks(cards)
    assert [(row.rank, row.bench.model_id) for row in track.rows] == [
        (1, TUNED),
        (None, f"{TUNED}_fc"),
        (None, f"{TUNED}_shuffled"),
        (2, "Weak"),
        (None, "Absent_uniform-v1_static"),
    ]


def test_they_change_no_adjusted_p_value(cards):
    [with_controls], [without] = tracks(cards), tracks(cards[:2])
    adjusted = {row.bench.model_id: row.p_holm for row in with_controls.rows if row.rank}
    assert adjusted == {row.bench.model_id: row.p_holm for row in without.rows}


def test_a_row_of_c1_tells_its_own_numbers_as_c1s(cards):
    [track] = tracks(cards)
    [row] = [row for row in track.rows if row.bench.control == "fc"]
    own, line = row.bench.evaluation("base", Batching.SOLO), row.flat()
    for name, metric in (("clean", own.clean), ("autoattack", own.autoattack), ("best_known", own.robust)):
        assert (line[f"c1_{name}"], line[f"base_{name}"]) == (metric.value, None)
    assert line["autoattack_accuracy"] == row.solo.autoattack.value != own.autoattack.value
    [other] = [row for row in track.rows if row.bench.control == "shuffled"]
    assert (other.flat()["c1_clean"], other.flat()["base_clean"]) == (None, other.base.clean.value)


def test_board_and_files_say_so(cards, tmp_path, read_html):
    for card in cards:
        write_card(card, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    page = read_html(index)
    assert "2 models, ranked by the best known robust accuracy of HPM SOLO, and 3 controls of theirs" in page.text
    assert f"– HPM on the backbone of C1 C1: FC head alone {TUNED}_fc" in page.text
    assert f"– C3: shuffled memberships {TUNED}_shuffled" in page.text
    assert [a.get("class") for tag, a in page.tags if tag == "tr"].count("control") == 3
    own = read_html(index.parent / f"cifar10/Linf/{TUNED}_fc.html").text
    assert "What this page calls the base model is C1 itself" in own
    shuffled = read_html(index.parent / f"cifar10/Linf/{TUNED}_shuffled.html").text
    assert "calls the base model" not in shuffled and "Nothing here speaks for or against HPM" in shuffled
    ranks = [row["rank"] for row in json.loads((index.parent / "leaderboard.json").read_text())["rows"]]
    lines = csv.DictReader(io.StringIO((index.parent / "leaderboard.csv").read_text()))
    assert ranks == [1, None, None, 2, None]
    assert [line["rank"] for line in lines] == ["1", "", "", "2", ""]


def test_a_board_without_controls_says_nothing_of_them(cards, tmp_path, read_html):
    write_card(cards[0], tmp_path / "cards")
    text = read_html(build(tmp_path / "cards", tmp_path / "board")).text
    assert "without a rank" not in text


def test_corruption_tracks_rank_no_control_either(make_corrupted_card):
    def tuned(name: str, strength: float, control: str) -> ModelCard:
        data = make_corrupted_card(f"{name}_t_{control}", strength=strength).to_json()
        data["hpm_bench"]["defence"]["tuning"] = {"name": f"t_{control}", "control": control}
        return ModelCard.model_validate_json(json.dumps(data))

    cards = [make_corrupted_card("M_t", strength=0.8), make_corrupted_card("N"), tuned("M", 0.95, "fc")]
    [track] = corruption_tracks(cards)
    assert [(row.rank, row.bench.model_id) for row in track.rows] == [(1, "N"), (2, "M_t"), (None, "M_t_fc")]
    assert (track.rows[2].base, track.rows[2].flat()["rank"]) == (None, None)
