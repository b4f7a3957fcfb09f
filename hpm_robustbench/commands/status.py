"""``hpm-bench status`` and ``doctor``: how far everything is, and on what."""

from __future__ import annotations

from pathlib import Path

import click

from hpm_robustbench.commands import options


@click.command()
@options.output
@options.format_of("human", "json")
def status(output: Path, form: str) -> None:
    """Show how far each run and each fine-tuning is."""
    from hpm_robustbench.ledger.journal import overview
    from hpm_robustbench.report.tables import render_rows
    from hpm_robustbench.training.status import trainings

    runs, trained = overview(output / "runs"), trainings(output / "finetuned")
    if form == "json":
        click.echo(options.as_json([*runs, *trained]))
        return
    tables = [render_rows(runs, empty=f"no runs in {output / 'runs'}"), render_rows(trained, empty="")]
    click.echo("\n\n".join(filter(None, tables)))


@click.command()
@options.format_of("human", "json")
def doctor(form: str) -> None:
    """Show versions, devices and what is missing."""
    from hpm_robustbench.report.software import software
    from hpm_robustbench.report.tables import render_facts

    facts = software()
    click.echo(options.as_json(facts) if form == "json" else render_facts(facts))
