"""A card is hostile text: whatever it says, the pages keep their structure, run nothing and fetch nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hpm_robustbench.ledger.leaderboard import build
from hpm_robustbench.ledger.model_card import ModelCard, write_card
from hpm_robustbench.ledger.pages import web_address
from hpm_robustbench.ledger.plan import AUTOATTACK

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)' autofocus='",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    " JavaScript:alert(1)",
    "java\tscript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:msgbox(1)",
    "//evil.example/x",
    "{{ 7 * 7 }}{% include 'layout.html' %}",
    "]]>&lt;b&gt;&#60;i&#62;",
    "\u202egnp.exe\u0000",
    "=cmd|'/c calc'!A1",
    "x" * 5000,
]
CONSTRAINED = {
    "dataset", "eps", "eps_exact", "clean_acc", "autoattack_acc", "external", "model_id", "base_model", "run_key",
    "schema_version", "target", "batching", "norm", "verdict", "sha256", "reported", "published", "corruptions_acc",
    "protocol", "rule",
}  # fmt: skip
"""Fields that take no free text; the card's own tests show that they refuse it."""


def poisoned(value: Any, text: str, key: str = "") -> Any:
    """The same JSON with ``text`` in place of every free text, and in place of every free key."""
    if key in CONSTRAINED:
        return value
    if isinstance(value, dict):
        if value.get("group") == AUTOATTACK:  # what its steps are is no free text either, but for their names
            return {**value, "name": text}
        free = key in {"notes", "software", "environment", "defence", "parameters"}
        return {f"{text}{k}" if free else k: poisoned(v, text, k) for k, v in value.items()}
    if key == "flags":  # those that follow from the counts stay
        return [*value, text]
    if isinstance(value, list):
        return [poisoned(item, text, key) for item in value]
    return text if isinstance(value, str) else value


@pytest.fixture
def site_of(card, corrupted_card, tmp_path):
    def make(text: str) -> Path:
        for each in (corrupted_card, card):
            data = poisoned(each.to_json(), text)
            for evaluation in data["hpm_bench"]["evaluations"]:
                evaluation.pop("provenance", None)  # it would not fit steps that all have one name
            if each is card:
                data["unreliable"] = True  # as its own step of AutoAttack says
            write_card(ModelCard.model_validate_json(json.dumps(data)), tmp_path / "cards")
        return build(tmp_path / "cards", tmp_path / "board").parent

    return make


PAGES = [
    "index.html",
    "cifar10/Linf/resnet4b_linf2.html",
    "cifar10/corruptions/Hendrycks2020AugMix_WRN.html",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_changes_no_tag_and_no_attribute(site_of, read_html, text):
    harmless = [read_html(site_of("harmless") / page).structure for page in PAGES]
    site = site_of(text)
    for page, structure in zip(PAGES, harmless, strict=True):
        assert read_html(site / page).structure == structure


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_runs_nothing(site_of, read_html, text):
    site = site_of(text)
    for page in PAGES:
        parsed = read_html(site / page)
        for tag, attributes in parsed.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            assert tag != "script" or attributes["type"] == "application/json"
            assert urlsplit(attributes.get("href", "")).scheme in {"", "http", "https", "mailto"}
    stored = json.loads(parsed.script)
    assert stored["name"] == stored["hpm_bench"]["license"] == text


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/1905.13736", "HTTP://example.org/?a=1&b=2", "mailto:a@b.org"])
def test_web_and_mail_addresses_become_links(site_of, read_html, text):
    tags = read_html(site_of(text) / PAGES[1]).tags
    links = [attributes for tag, attributes in tags if tag == "a" and attributes["href"] == text]
    assert len(links) == 2
    assert all(link["rel"] == "noopener noreferrer" for link in links)


@pytest.mark.parametrize("text", [t for t in HOSTILE if not t.startswith("x")] + ["", "ftp://a", "http://a b", "http:"])
def test_no_other_address_becomes_a_link(text):
    assert web_address(text) == ""


def test_pages_fetch_nothing_but_their_own_style_sheet(site_of, read_html):
    site = site_of("https://example.org/")
    for page in PAGES:
        parsed = read_html(site / page)
        assert not [tag for tag, attributes in parsed.tags if "src" in attributes or "srcset" in attributes]
        sheets = [attributes["href"] for tag, attributes in parsed.tags if tag == "link"]
        assert [(site / page).parent.joinpath(sheet).resolve() for sheet in sheets] == [(site / "style.css").resolve()]
        policies = [a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [
            "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
        ]
    assert not re.search(r"url\(|@import|//", (site / "style.css").read_text())


def test_every_local_link_leads_somewhere(site_of, read_html):
    site = site_of("plain")
    for page in PAGES:
        for tag, attributes in read_html(site / page).tags:
            address = urlsplit(attributes.get("href", ""))
            if tag == "a" and not address.scheme:
                target = (site / page).parent / address.path if address.path else site / page
                assert target.is_file()
                assert not address.fragment or address.fragment in read_html(target).ids
