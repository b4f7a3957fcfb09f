"""One is no plural, wherever something is counted."""

from __future__ import annotations

from hpm_robustbench.ledger.indicators import of_transfers
from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import write_card
from hpm_robustbench.ledger.words import counted


def test_one_is_no_plural():
    assert [counted(n, "held-out image") for n in (0, 1, 2)] == [
        "0 held-out images",
        "1 held-out image",
        "2 held-out images",
    ]


def test_the_board_counts_so(make_card, tmp_path, read_html):
    write_card(make_card("Alone"), tmp_path / "cards")
    text = read_html(build(tmp_path / "cards", tmp_path / "board")).text
    assert "1 model, ranked" in text
    told = of_transfers([(1, 0), (0, 0)], direct=True).measured
    assert told == "1 time a surrogate was fooled, 0 times the target fell"
