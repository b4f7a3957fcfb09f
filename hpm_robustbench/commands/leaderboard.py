"""``hpm-bench leaderboard``: pages made from model cards."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from hpm_robustbench.commands import options


@click.group()
def leaderboard() -> None:
    """Pages made from model cards."""


@leaderboard.command()
@options.output
@click.option("--check", is_flag=True, help="Write nothing; fail if the pages differ from what the cards give.")
def build(output: Path, check: bool) -> None:
    """Build the board in OUTPUT/leaderboard from OUTPUT/model_cards."""
    from hpm_robustbench.attacks.protocols import find_protocol
    from hpm_robustbench.ledger import leaderboard as board
    from hpm_robustbench.ledger.plan import MSA

    cards, pages, msa = output / "model_cards", output / "leaderboard", partial(find_protocol, MSA)
    if check:
        board.check(cards, pages, msa)
        click.echo(f"{pages} is what {cards} gives")
    else:
        click.echo(f"page: {board.build(cards, pages, msa)}")
