"""The committed cards are valid, and the committed board is what they give."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest

from hpm_robustbench.attacks.protocols import find_protocol
from hpm_robustbench.ledger.leaderboard import check
from hpm_robustbench.ledger.model_card import card_path, read_card
from hpm_robustbench.ledger.plan import MSA
from hpm_robustbench.threat import Batching

ROOT = Path(__file__).parent.parent
CARDS = sorted((ROOT / "model_cards").glob("*/*/*.json"))


def test_there_are_cards() -> None:
    assert any(path.stem.startswith("Digits") for path in CARDS)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_committed_card_is_valid_and_in_its_place(path: Path) -> None:
    card = read_card(path)
    assert card.hpm_bench is not None
    assert card_path(card, ROOT / "model_cards") == path


@pytest.mark.parametrize("path", [path for path in CARDS if path.parts[-3] == "digits"], ids=lambda path: path.stem)
def test_the_digits_cards_are_of_the_embedded_weights(path: Path) -> None:
    shipped = json.loads(files("hpm_robustbench.embedded").joinpath("digits-resnet.json").read_text())
    card = read_card(path)
    assert card.hpm_bench is not None
    assert card.hpm_bench.weights.sha256 == [shipped["sha256"]]
    if card.hpm_bench.tuning is None:
        assert card.hpm_bench.evaluation("base", Batching.SOLO).clean.count == shipped["test_score"]["clean"]


def test_the_committed_board_is_what_the_cards_give() -> None:
    check(ROOT / "model_cards", ROOT / "leaderboard", partial(find_protocol, MSA))
