"""RobustBench's published figures on a page of their own: all of them, in its order, and none of ours."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.pages import render_published
from hpm_robustbench.ledger.published_rows import published_tables
from hpm_robustbench.threat import parse_threat
from hpm_robustbench.zoo.from_robustbench import PublishedEntry, published_entries
from hpm_robustbench.zoo.spec import Paper

TABLES = published_tables(published_entries())


def entry(name: str, clean: str, attacked: str, external: str | None = None, **more: object) -> PublishedEntry:
    paper = Paper(title=f"Paper {name}", clean_acc=clean, autoattack_acc=attacked, external=external, **more)
    return PublishedEntry("cifar10", parse_threat("Linf", "8/255"), name, paper, True)


def test_all_published_entries_are_there():
    counts = {(table.dataset, table.threat_name): len(table.rows) for table in TABLES}
    assert counts == {
        ("cifar10", "Linf"): 99,
        ("cifar10", "L2"): 21,
        ("cifar10", "corruptions"): 23,
        ("cifar100", "Linf"): 38,
        ("cifar100", "corruptions"): 13,
        ("imagenet", "Linf"): 30,
        ("imagenet", "corruptions"): 12,
    }
    assert Counter(row.entry.has_weights for table in TABLES for row in table.rows) == {True: 206, False: 30}


def test_the_order_is_robustbenchs():
    entries = [
        entry("B", "90", "60.5"),
        entry("A", "90", "60.50"),
        entry("C", "80", "70", "9.5"),
        entry("D", "9", "61"),
    ]
    [table] = published_tables(entries)
    assert [(row.rank, row.entry.name) for row in table.rows] == [(1, "D"), (2, "A"), (3, "B"), (4, "C")]


def test_every_figure_is_shown_as_it_was_published(tmp_path, read_html):
    if "HPM_BENCH_REAL_DATA" not in os.environ:
        pytest.skip("HPM_BENCH_REAL_DATA is not set, so RobustBench's published figures are not at hand")
    page = build(tmp_path, tmp_path / "board").parent / "published.html"
    text = read_html(page).text
    with (Path(os.environ["HPM_BENCH_REAL_DATA"]) / "robustbench_published.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            figures = [f"{row['clean_acc']}%", *(f"{row[k]}%" for k in ("autoattack_acc", "corruptions_acc") if row[k])]
            assert re.search(rf"(?<!\S){re.escape(row['model'])} {' '.join(map(re.escape, figures))}", text), row


def test_columns_are_robustbenchs(read_html, tmp_path):
    headers = read_html(build(tmp_path, tmp_path / "board").parent / "published.html").headers
    shared = ["Rank", "Method", "Standard accuracy"]
    ends = ["Extra data", "Architecture", "Venue"]
    attacked = ["AutoAttack robust accuracy", "Best known robust accuracy", "AA eval. potentially unreliable", "eps"]
    first = headers.index("Rank")
    assert headers[first : first + 10] == [*shared, *attacked, *ends]
    assert [*shared, "Robust accuracy", "mCE", "Robust accuracy (3DCC)", "mCE (3DCC)", *ends] in [
        headers[start : start + 10] for start in range(len(headers))
    ]


def test_unknown_and_missing_are_not_called_no_or_zero(read_html, tmp_path):
    (tmp_path / "page.html").write_text(render_published(published_tables([entry("A", "90", "60")])), encoding="utf-8")
    assert "Paper A A 90% 60% 60% unknown 8/255" in read_html(tmp_path / "page.html").text
    known = [entry("A", "90", "60", unreliable=True)]
    (tmp_path / "page.html").write_text(render_published(published_tables(known)), encoding="utf-8")
    assert "60% 60% yes 8/255" in read_html(tmp_path / "page.html").text


def test_a_break_in_a_venue_is_a_space_and_everything_else_is_text(read_html, tmp_path):
    known = [entry("A", "90", "60", venue="GitHub,<br>Sep 2019<b>")]
    (tmp_path / "page.html").write_text(render_published(published_tables(known)), encoding="utf-8")
    page = read_html(tmp_path / "page.html")
    assert "GitHub, Sep 2019<b>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}


def test_the_page_says_whose_numbers_these_are_and_leads_back(read_html, tmp_path):
    board = build(tmp_path, tmp_path / "board").parent
    page = read_html(board / "published.html")
    assert "None of these numbers was measured here" in page.text
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "href" in attributes]
    assert "index.html" in links
    assert all(link.startswith(("http", "#", "index.html", "leaderboard.", "published.html")) for link in links)
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= page.ids
