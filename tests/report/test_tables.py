"""Plain text tables: what stands on the right in them."""

from __future__ import annotations

import pytest

from hpm_robustbench.report.tables import render_facts, render_table


def test_hashes_that_begin_with_digits_are_text() -> None:
    assert render_table(["run", "steps"], [["8817f931b2c9", "3/11"], ["05e21b", "11/11"]]).splitlines() == [
        "run           steps",
        "------------  -----",
        "8817f931b2c9   3/11",
        "05e21b        11/11",
    ]


@pytest.mark.parametrize("cell", ["7", "65.40", "57.84-63.88", "8/255", "1.25x", "124.1k", "3e-05", "-"])
def test_numbers_with_units_shares_and_intervals_stand_on_the_right(cell: str) -> None:
    *_, row = render_table(["a longer header"], [[cell]]).splitlines()
    assert row == cell.rjust(len("a longer header"))


def test_no_cell_steers_the_terminal() -> None:
    table = render_table(["step"], [["\x1b]0;owned\x07"], ["a\nb"]])
    assert table.splitlines() == ["step", "----------", "?]0;owned?", "a?b"]
    assert render_facts({"title": "\x1b[2J", "link": None}) == "title  ?[2J\nlink   -"
