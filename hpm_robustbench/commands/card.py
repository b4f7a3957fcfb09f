"""``hpm-bench card``: check a card, and look into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpm_robustbench.commands import options
from hpm_robustbench.errors import InvalidInput, printable

if TYPE_CHECKING:
    from hpm_robustbench.ledger.card_schema import ModelCard


@click.group()
def card() -> None:
    """Model cards."""


@card.command()
@click.argument("paths", nargs=-1, required=True, type=options.a_path)
def validate(paths: Sequence[Path]) -> None:
    """Check that each file is a valid card, all of them before it fails."""
    bad = []
    for path in paths:
        try:
            click.echo(f"{path}: {printable(_valid(path).name)}: valid")
        except InvalidInput as error:
            bad.append(path)
            click.echo(printable(f"{path}: {error}"))
    if bad:
        raise InvalidInput(
            wanted=f"valid cards in all {len(paths)} files",
            got=f"{len(bad)} that are not: {', '.join(map(str, bad))}",
            next_step="correct them as their lines say",
        )


def _valid(path: Path) -> ModelCard:
    """A card whose definition of HPM is one, too: what the ledger writes down is not for it to understand."""
    from hpm_robustbench.knobs import defence_told
    from hpm_robustbench.ledger.model_card import read_card

    found = read_card(path)
    if found.hpm_bench is not None:
        defence_told(found.hpm_bench.knobs, str(path))
    return found


@card.command("rows")
@click.argument("path", type=options.a_path)
@options.format_of("human", "json")
def rows_of_card(path: Path, form: str) -> None:
    """Show which attack took each image of a card, and as which class."""
    from hpm_robustbench.ledger.model_card import read_card
    from hpm_robustbench.report.cards import card_rows
    from hpm_robustbench.report.tables import render_rows

    rows = card_rows(read_card(path))
    click.echo(
        options.as_json(rows) if form == "json" else render_rows(rows, empty="a card that does not tell of rows")
    )
