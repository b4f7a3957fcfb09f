"""Build the board: all of it follows from the cards, RobustBench's figures and MSA's steps of today, byte for byte.

leaderboard/index.html
leaderboard/<dataset>/<threat>/<Model>.html
leaderboard/published.html                                 what RobustBench has published, nothing of ours
leaderboard/style.css, leaderboard.json, leaderboard.csv
leaderboard/corruptions.json, corruptions.csv              where there are cards of corruption tracks
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from hpm_robustbench.errors import Drift, InvalidInput, UsageProblem
from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.ledger.card_bench import HpmBench
from hpm_robustbench.ledger.card_corruptions import CorruptionBench
from hpm_robustbench.ledger.card_schema import ModelCard
from hpm_robustbench.ledger.corruption_rows import corruption_tracks
from hpm_robustbench.ledger.model_card import card_path, read_card
from hpm_robustbench.ledger.pages import (
    GENERATOR,
    render_corrupted_model,
    render_index,
    render_model,
    render_published,
    render_style,
)
from hpm_robustbench.ledger.published_rows import published_tables
from hpm_robustbench.ledger.rows import tracks
from hpm_robustbench.ledger.step_list import StepsOf
from hpm_robustbench.zoo.from_robustbench import published_entries

log = logging.getLogger(__name__)

INDEX = "index.html"
_PAGES = "*/*/*.html"
_FOR_CORRUPTIONS = {"corruptions.json", "corruptions.csv"}


def build(cards_dir: Path, out: Path, msa: StepsOf | None = None) -> Path:
    """Write the board of all cards below ``cards_dir`` into ``out`` and return its index page.

    Cards whose attacks are not the steps of ``msa`` are marked, if it is given.

    Pages of models that have no card any more are removed; files of other makers are left alone.

    Raises:
        UsageProblem: there is no folder of cards; nothing was written.
        InvalidInput: a card breaks its contract; nothing was written.
        StorageProblem: ``out`` cannot be written.
    """
    files = render(cards_dir, msa)
    if not _files(cards_dir):
        log.warning("no model cards in %s, so the page is empty; hpm-bench run writes one", cards_dir)
    for name, content in files.items():
        write_atomic(out / name, content)
    for page in sorted(out.glob(_PAGES)):
        if page.relative_to(out).as_posix() not in files and _is_ours(page):
            page.unlink()
    for name in _FOR_CORRUPTIONS - files.keys():
        (out / name).unlink(missing_ok=True)
    return out / INDEX


def check(cards_dir: Path, out: Path, msa: StepsOf | None = None) -> None:
    """Compare the board in ``out``, hidden files aside, with the one that the cards below ``cards_dir`` give.

    Raises:
        Drift: names the files that differ, are missing, or do not belong there.
        UsageProblem: there is no folder of cards.
        InvalidInput: a card breaks its contract.
    """
    wanted = {name: content.encode() for name, content in render(cards_dir, msa).items()}
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    found = {name.as_posix(): out / name for name in files if not any(part.startswith(".") for part in name.parts)}
    faults = {
        "differing": [name for name in wanted if name in found and found[name].read_bytes() != wanted[name]],
        "missing": [name for name in wanted if name not in found],
        "extra": [name for name in found if name not in wanted],
    }
    if any(faults.values()):
        raise Drift(
            wanted=f"{out} to be the board of {cards_dir}",
            got="; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in faults.items() if names),
            next_step="build the board again and look at what changed",
        )


def render(cards_dir: Path, msa: StepsOf | None = None) -> dict[str, str]:
    """Every file of the board by its name; the index comes last, so that it never names a page that is not there.

    Raises:
        UsageProblem: there is no folder of cards.
        InvalidInput: a card breaks its contract.
    """
    if not cards_dir.is_dir():
        raise UsageProblem(
            wanted=f"a folder {cards_dir} of model cards",
            got="none",
            next_step="name the folder that holds it with --output; hpm-bench run writes the first card",
        )
    cards = _load(cards_dir)
    attacked = tracks((card for card in cards if isinstance(card.hpm_bench, HpmBench)), msa)
    corrupted = corruption_tracks(card for card in cards if isinstance(card.hpm_bench, CorruptionBench))
    corrupted_lines = [row.flat() for track in corrupted for row in track.rows]
    return {
        "style.css": render_style(),
        **{row.page: render_model(row, track) for track in attacked for row in track.rows},
        **{row.page: render_corrupted_model(row, track) for track in corrupted for row in track.rows},
        **_for_machines("leaderboard", [row.flat() for track in attacked for row in track.rows]),
        **(_for_machines("corruptions", corrupted_lines) if corrupted_lines else {}),
        "published.html": render_published(published_tables(published_entries())),
        INDEX: render_index(attacked, corrupted),
    }


def _for_machines(name: str, lines: list[dict[str, Any]]) -> dict[str, str]:
    """The lines of a table as JSON and as CSV."""
    return {
        f"{name}.json": json.dumps({"rows": lines}, indent=2, allow_nan=False) + "\n",
        f"{name}.csv": _csv(lines),
    }


def _files(cards_dir: Path) -> list[Path]:
    return sorted(cards_dir.glob("*/*/*.json"))


def _load(cards_dir: Path) -> list[ModelCard]:
    cards = {path: read_card(path) for path in _files(cards_dir)}
    for path, card in cards.items():
        if card.hpm_bench is None or card_path(card, cards_dir) != path:
            raise InvalidInput(
                wanted=f"{path} to hold the card of that dataset, threat model and model",
                got="a plain RobustBench entry" if card.hpm_bench is None else str(card_path(card, Path())),
                next_step="move it to its place, or out of the cards' folder",
            )
    return list(cards.values())


def _csv(lines: list[dict[str, Any]]) -> str:
    cells = [{column: _defused(cell) for column, cell in line.items()} for line in lines]
    return str(pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n"))


def _defused(cell: Any) -> Any:
    """A spreadsheet runs a cell that begins like a formula; a leading apostrophe keeps it text."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in set("=+-@") else cell


def _is_ours(page: Path) -> bool:
    return f'<meta name="generator" content="{GENERATOR}">'.encode() in page.read_bytes()
