"""Where JOINT's tests and intervals are shown it is said that they count coupled images as independent."""

from __future__ import annotations

import pytest

from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import write_card
from hpm_robustbench.ledger.statistics import COUPLED
from hpm_robustbench.report.cards import render_card


@pytest.fixture
def board(card, make_card, corrupted_card, make_corrupted_card, tmp_path):
    """Of each kind of card, one with JOINT and one without."""
    for each in (card, make_card("Alone"), corrupted_card, make_corrupted_card("Unmixed")):
        write_card(each, tmp_path / "cards")
    return build(tmp_path / "cards", tmp_path / "board").parent


@pytest.mark.parametrize(
    ("page", "times"),
    [
        ("index.html", 1),
        ("cifar10/Linf/resnet4b_linf2.html", 1),
        ("cifar10/Linf/Alone.html", 0),
        ("cifar10/corruptions/Hendrycks2020AugMix_WRN.html", 1),
        ("cifar10/corruptions/Unmixed.html", 0),
    ],
)
def test_a_page_says_it_once_and_only_of_joint(board, read_html, page, times):
    text = read_html(board / page).text
    assert text.count("as if images were independent") == times
    assert text.count(COUPLED) == ("corruptions" not in page and times), "on corrupted images nobody submits anything"


def test_a_terminal_says_it_beside_the_verdicts(card, make_card):
    lines = render_card(card).splitlines()
    [said] = [index for index, line in enumerate(lines) if line == COUPLED]
    assert lines[said - 1].startswith("joint B=128: HPM hurts")
    assert COUPLED not in render_card(make_card("Alone"))
