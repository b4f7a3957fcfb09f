"""The pages of a repository for people: README.md and NOTICE. A card is hostile text, and stays text."""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from hpm_robustbench.hub.description import Description
from hpm_robustbench.hub.metadata import front_matter, samples_front_matter
from hpm_robustbench.ledger.card_bench import HpmBench, Samples
from hpm_robustbench.ledger.card_from_records import NOTICE
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.markdown import cell
from hpm_robustbench.ledger.pages import in_words, label, p_value, web_address
from hpm_robustbench.ledger.statistics import COUPLED
from hpm_robustbench.ledger.words import counted
from hpm_robustbench.zoo.catalog import catalog

PLOT = "robustness.svg"


def render_pages(card: ModelCard, description: Description, repo: str, *, signed: bool = False) -> dict[str, bytes]:
    """The pages of a model and its plot, by their names; equal models, equal bytes."""
    bench, base = card.hpm_bench, description.base
    assert bench is not None
    facts: dict[str, Any] = {
        **_of_card(card),
        "repo": repo,
        "signed": signed,
        "verdicts": bench.verdicts if isinstance(bench, HpmBench) else [],
        "address": quote(web_address(card.link), safe=":/?#[]@!$&'*+,;=%-._~"),
        "contains": description.contains,
        "batching": description.batching.name,
        "shape": description.image_shape,
        "classes": description.n_classes,
        "own": all(spec.factory != base.factory for spec in catalog().specs()),
        "weights": base.weights,
        "sha256": base.sha256,
    }
    pages = {"README.md": {**facts, "front_matter": front_matter(card, repo).strip()}, "NOTICE": facts, PLOT: facts}
    return {name: _render(name, values) for name, values in pages.items()}


def render_samples_page(card: ModelCard, samples: Samples) -> bytes:
    """The page of the dataset that tells what happened to each image."""
    head = samples_front_matter(card, samples).strip()
    return _render("samples.md", {**_of_card(card), "samples": samples, "front_matter": head})


def _of_card(card: ModelCard) -> dict[str, Any]:
    bench = card.hpm_bench
    assert bench is not None
    return {"card": card, "bench": bench, "headline": bench.headline, "attacked": isinstance(bench, HpmBench)}


def _render(name: str, facts: dict[str, Any]) -> bytes:
    return _environment().get_template(name).render(facts).encode()


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
    environment.filters.update(
        cell=cell, label=label, p_value=p_value, in_words=in_words, line=one_line, code=code, counted=counted
    )
    environment.globals.update(notice=NOTICE, plot=PLOT, coupled=COUPLED)
    return environment
