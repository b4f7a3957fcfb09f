"""Numbers from unlike images are never ranked in one list, and a list says of which images it is."""

from __future__ import annotations

import csv
import io
import json

import pytest

from hpm_robustbench.ledger.corruption_rows import corruption_tracks
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, write_card
from hpm_robustbench.ledger.rows import tracks

USUAL = "5e" * 32
OTHER = "c0ffee" + "00" * 29


def on_other_images(card: ModelCard, fingerprint: str = OTHER) -> ModelCard:
    data = card.to_json()
    for evaluation in data["hpm_bench"]["evaluations"]:
        evaluation["fingerprint"] = fingerprint
    return ModelCard.model_validate_json(json.dumps(data))


@pytest.fixture
def two_sets(make_card):
    """The strongest of three cards met other images than the two others."""
    return [make_card("A", hpm=0.2), make_card("B", hpm=0.3), on_other_images(make_card("C", hpm=0.1))]


def test_a_rank_is_among_cards_of_the_same_images(two_sets):
    usual, other = tracks(two_sets)
    assert [(row.rank, row.bench.model_id) for row in usual.rows] == [(1, "A"), (2, "B")]
    assert [(row.rank, row.bench.model_id) for row in other.rows] == [(1, "C")]
    assert (usual.images.fingerprint, other.images.fingerprint) == (USUAL, OTHER)
    assert (usual.name, other.anchor) == (
        "cifar10 Linf 2/255, n = 400, images 5e5e5e5e5e5e",
        "cifar10-Linf-2-255-400-c0ffee000000",
    )


def test_only_where_images_differ_they_are_named(make_card, two_sets):
    """Addresses of tracks with one set of images stay what they were."""
    for track in (*tracks(two_sets[:2]), *tracks(two_sets[2:])):
        assert (track.images, track.anchor) == (None, "cifar10-Linf-2-255")
    apart = tracks([*two_sets[:2], on_other_images(make_card("Wide", eps="8/255"))])
    assert [track.images for track in apart] == [None, None], "another budget is another track anyway"


def test_the_larger_set_comes_first(make_card):
    card = on_other_images(make_card("Few"), "00" * 32)
    solo = card.hpm_bench.headline
    less = solo.model_copy(update={"n": 100})
    few = card.model_copy(update={"hpm_bench": card.hpm_bench.model_copy(update={"evaluations": [less]})})
    assert [track.images.n for track in tracks([few, make_card("Many")])] == [400, 100]


def test_corruption_tracks_keep_images_apart_too(make_corrupted_card):
    cards = [make_corrupted_card("A"), make_corrupted_card("B", strength=0.8)]
    [alone] = corruption_tracks(cards)
    assert (alone.anchor, alone.name) == ("cifar10-corruptions", "cifar10 corruptions")
    first, second = corruption_tracks([cards[0], on_other_images(cards[1])])
    assert [row.rank for track in (first, second) for row in track.rows] == [1, 1]
    assert second.anchor == "cifar10-corruptions-400-c0ffee000000"


def test_the_board_says_which_images_a_list_is_of(two_sets, make_corrupted_card, tmp_path, read_html):
    corrupted = [make_corrupted_card("D"), on_other_images(make_corrupted_card("E"))]
    for card in (*two_sets, *corrupted):
        write_card(card, tmp_path / "cards")
    index = build(tmp_path / "cards", tmp_path / "board")
    page, text = read_html(index), " ".join(read_html(index).text.split())
    assert "A rank is among models that were tried on the same images" in text
    assert "Linf, eps = 2/255, n = 400, images c0ffee000000" in text
    assert "corruptions, n = 400, images c0ffee000000" in text
    links = [a["href"].lstrip("#") for tag, a in page.tags if tag == "a" and a["href"].startswith("#")]
    assert len(set(links)) == 4
    assert set(links) <= page.ids
    for place in ("Linf/C", "corruptions/E"):
        model = read_html(index.parent / f"cifar10/{place}.html")
        assert "n = 400, images c0ffee000000" in model.text
        [back] = [a["href"] for tag, a in model.tags if tag == "a" and "index.html#" in a["href"]]
        assert back.partition("#")[2] in page.ids
    for name in ("leaderboard", "corruptions"):
        lines = csv.DictReader(io.StringIO((index.parent / f"{name}.csv").read_text()))
        assert OTHER in {line["fingerprint"] for line in lines}


def test_a_board_of_one_set_says_nothing_of_images(two_sets, tmp_path, read_html):
    for card in two_sets[:2]:
        write_card(card, tmp_path / "cards")
    text = read_html(build(tmp_path / "cards", tmp_path / "board")).text
    assert "same images. A dataset" not in text
    assert "5e5e5e" not in text


def test_a_hostile_fingerprint_still_makes_an_address(make_card):
    tracked = tracks([make_card("A"), on_other_images(make_card("B"), '" x\u202e\n<b>#/1')])
    assert {track.anchor for track in tracked} == {"cifar10-Linf-2-255-400-5e5e5e5e5e5e", "cifar10-Linf-2-255-400-xb1"}
