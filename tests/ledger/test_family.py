"""Which verdicts Holm's adjustment counts: the SOLO ones on the board that could have rejected."""

from __future__ import annotations

import json

import pytest

from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, write_card
from hpm_robustbench.ledger.rows import Row, tracks
from hpm_robustbench.training.recipe import Tuning, find_recipe


@pytest.fixture
def alike(make_card):
    """Everything falls, with and without HPM: the two sides differ in no image."""
    return make_card("Alike", base=1.5, hpm=1.5)


def rows_of(*cards: ModelCard) -> dict[str, Row]:
    return {row.bench.model_id: row for track in tracks(cards) for row in track.rows}


def test_verdicts_without_a_differing_image_are_not_counted(make_card, alike):
    helped, hurt = make_card("Helped", base=0.3, hpm=0.25), make_card("Hurt", base=0.25, hpm=0.35)
    rows = rows_of(helped, hurt, alike)
    assert (rows["Alike"].verdict.only_base, rows["Alike"].verdict.only_hpm, rows["Alike"].p_value) == (0, 0, 1.0)
    assert rows["Alike"].p_holm is rows["Alike"].flat()["p_holm"] is None
    assert [rows[name].can_reject for name in ("Helped", "Hurt", "Alike")] == [True, True, False]
    least, greatest = sorted([rows["Helped"].p_value, rows["Hurt"].p_value])
    assert {rows["Helped"].p_holm, rows["Hurt"].p_holm} == {2 * least, max(2 * least, greatest)}
    assert rows_of(hurt, alike)["Hurt"].p_holm == rows["Hurt"].p_value


def test_joint_verdicts_are_not_counted(card, make_card):
    assert len(card.hpm_bench.verdicts) == 2
    rows = rows_of(card, make_card("Hurt", base=0.25, hpm=0.35))
    assert rows["Hurt"].p_holm == 2 * rows["Hurt"].p_value


@pytest.mark.parametrize(("fc", "counts"), [(0, False), (3, True)])
def test_a_base_that_differs_nowhere_counts_where_c1_does(spec, make_tuned_card, fc, counts):
    """HPM could have hurt beside C1, so the verdict was at risk."""
    tuned = make_tuned_card(spec, Tuning(find_recipe("uniform-v1")), controls={"fc": 0.3})
    solo = tuned.hpm_bench.verdicts[0].model_copy(update={"only_base": 0, "only_hpm": 0, "p_value": 1.0})
    c1 = tuned.hpm_bench.controls[0].model_copy(update={"only_control": 0, "only_hpm": fc})
    bench = tuned.hpm_bench.model_copy(update={"verdicts": [solo], "controls": [c1]})
    assert Row(1, tuned.model_copy(update={"hpm_bench": bench})).can_reject is counts


def test_the_index_says_what_is_counted(make_card, alike, tmp_path, read_html):
    for each in (make_card("Hurt", base=0.25, hpm=0.35), make_card("Worse", base=0.25, hpm=0.36), alike):
        write_card(each, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    text = read_html(index).text
    assert "counts the SOLO verdicts of the cards on this page in which any image differs, 2 in all" in text
    assert "undecided p = 1.000, no image differs" in text
    assert text.count("adjusted p") == 1 + 2, "the legend, and two cells"
    lines = json.loads((index.parent / "leaderboard.json").read_text())["rows"]
    assert [line["model"] for line in lines if line["p_holm"] is None] == ["Alike"]
