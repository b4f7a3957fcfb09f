"""Rows become HTML. Cards are hostile text: everything is escaped, and only web and mail addresses become links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from urllib.parse import quote

from jinja2 import Environment

from hpm_robustbench.ledger.card_bench import FINE_TUNED_RULE, RULE, HpmBench, Verdict
from hpm_robustbench.ledger.card_control import CONTROLS
from hpm_robustbench.ledger.card_corruptions import CorruptionEvaluation
from hpm_robustbench.ledger.card_evaluation import Evaluation
from hpm_robustbench.ledger.card_from_records import NOTICE
from hpm_robustbench.ledger.corruption_rows import CorruptionRow, CorruptionTrack
from hpm_robustbench.ledger.curves import render_curves
from hpm_robustbench.ledger.published_rows import PublishedTable
from hpm_robustbench.ledger.repetition import repetition
from hpm_robustbench.ledger.rows import Row, Track
from hpm_robustbench.ledger.statistics import COUPLED, outcome
from hpm_robustbench.ledger.templates import site_environment
from hpm_robustbench.ledger.words import counted
from hpm_robustbench.threat import Composition, Corruptions

GENERATOR = "hpm-bench leaderboard"
"""How a page says who made it."""
_ADDRESS = re.compile(r"(https?://|mailto:)[^\s\x00-\x1f\x7f]+", re.IGNORECASE)


def render_index(tracks: Sequence[Track], corrupted: Sequence[CorruptionTrack]) -> str:
    """The board: one table per track, those of corruptions last."""
    return _environment().get_template("index.html").render(tracks=tracks, corrupted=corrupted, root="")


def render_model(row: Row, track: Track) -> str:
    """The page of one model, which leads to those of its controls, and theirs lead back."""
    names = {other.bench.model_id for other in track.rows}
    return _environment().get_template("model.html").render(row=row, track=track, names=names, root="../../")


def render_corrupted_model(row: CorruptionRow, track: CorruptionTrack) -> str:
    """The page of one model on a corruption track."""
    return _environment().get_template("corruptions.html").render(row=row, track=track, root="../../")


def render_published(tables: Sequence[PublishedTable]) -> str:
    """What RobustBench has published: one table per dataset and threat model."""
    return _environment().get_template("published.html").render(tables=tables, root="")


def render_style() -> str:
    """The style sheet, which every page shares."""
    return _environment().get_template("style.css").render()


def web_address(text: str) -> str:
    """``text`` if a browser may follow it, else nothing; escaping alone leaves ``javascript:`` alive."""
    return text if _ADDRESS.fullmatch(text) else ""


def p_value(value: float) -> str:
    """``p = 0.032``, or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def label(evaluation: Evaluation | CorruptionEvaluation) -> str:
    """What was evaluated, in the words of the board."""
    if evaluation.target == "base":
        return "Base model"
    composed = "" if evaluation.composition is Composition.IID else f", {evaluation.composition.value} batches"
    return f"HPM {evaluation.batching.name}{composed}"


def in_words(verdict: Verdict, bench: HpmBench) -> str:
    """A verdict as half a sentence: a gain beside the base model is told, and credited only beside C1, too."""
    if verdict.verdict == "helps":
        return "it helps here"
    if verdict.verdict == "hurts":
        return "it does not help here, it hurts"
    if outcome(verdict.test) != "helps":
        return f"undecided, as far as {counted(verdict.n, 'image')} can tell"
    fc = bench.fc(verdict.batching)
    than_c1 = f"not than C1 ({p_value(fc.p_value)})" if fc else "C1 is not on this card"
    than_base = f"better than the base model ({p_value(verdict.p_value)})"
    return f"undecided, {than_base}, but {than_c1}; no gain is credited to HPM"


def curves(bench: HpmBench) -> str:
    """The picture of a fine-tuning, for a place where a browser runs nothing of it."""
    assert bench.fine_tuning is not None
    return f"data:image/svg+xml,{quote(render_curves(bench.fine_tuning.curves, bench.model_id))}"


@cache
def _environment() -> Environment:
    environment = site_environment()
    environment.filters.update(web_address=web_address, p_value=p_value, label=label, repetition=repetition)
    environment.filters.update(in_words=in_words, curves=curves, counted=counted)
    environment.globals.update(
        rule=RULE, fine_tuned_rule=FINE_TUNED_RULE, controls=CONTROLS, notice=NOTICE, generator=GENERATOR
    )
    environment.globals.update(kinds=Corruptions.kinds, severities=Corruptions.severities, coupled=COUPLED)
    return environment
