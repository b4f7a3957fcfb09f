"""The pages of a repository for people: README.md and NOTICE. A card is hostile text, and stays text."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from hpm_robustbench.hub.description import Description
from hpm_robustbench.hub.metadata import front_matter
from hpm_robustbench.ledger.card_bench import RULE, HpmBench, Verdict
from hpm_robustbench.ledger.card_from_records import NOTICE
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.markdown import cell
from hpm_robustbench.ledger.pages import label, p_value, web_address


def render_pages(card: ModelCard, description: Description, repo: str) -> dict[str, bytes]:
    """The pages of a model, by their names; equal models, equal bytes."""
    bench, base = card.hpm_bench, description.base
    assert bench is not None
    facts: dict[str, Any] = {
        "card": card,
        "bench": bench,
        "repo": repo,
        "headline": bench.headline,
        "attacked": isinstance(bench, HpmBench),
        "verdicts": bench.verdicts if isinstance(bench, HpmBench) else [],
        "address": quote(web_address(card.link), safe=":/?#[]@!$&'*+,;=%-._~"),
        "contains": description.contains,
        "batching": description.batching.name,
        "shape": description.image_shape,
        "classes": description.n_classes,
        "weights": base.weights,
        "sha256": base.sha256,
    }
    pages = {"README.md": {**facts, "front_matter": front_matter(card, repo).strip()}, "NOTICE": facts}
    return {name: _environment().get_template(name).render(values).encode() for name, values in pages.items()}


def in_words(verdict: Verdict) -> str:
    """A verdict as a sentence."""
    told = {
        "helps": "it helps here.",
        "hurts": "it does not help here, it hurts.",
        "undecided": f"it does not help here, as far as {verdict.n} images can tell.",
    }
    return told[verdict.verdict]


def one_line(text: object) -> str:
    """Text for a plain page, in which it cannot pass for another line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text).replace("<br>", " ")).split())


def code(text: object) -> str:
    """Text between backticks, which it cannot end."""
    return one_line(text).replace("`", "'")


@cache
def _environment() -> Environment:
    environment = Environment(  # noqa: S701 - Markdown: free text goes through ``cell``, ``code`` or ``line``
        loader=PackageLoader("hpm_robustbench.hub", "pages"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(cell=cell, label=label, p_value=p_value, in_words=in_words, line=one_line, code=code)
    environment.globals.update(rule=RULE, notice=NOTICE)
    return environment
