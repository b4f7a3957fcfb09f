"""``hpm-bench list`` and ``show``: which models there are, and what is known of one."""

from __future__ import annotations

import click

from hpm_robustbench.commands import options


@click.command("list")
@click.option("--dataset", help="Only this dataset.")
@options.both_spellings("threat_model", help="Only this threat model: Linf, L2 or corruptions.")
@click.option("--architecture", help="Only architectures with this in their name, in any case.")
@click.option("--license", help="Only licences with this in their name, in any case.")
@options.both_spellings("min_params", help="Only models with at least so many parameters, as 500k or 11.2M.")
@options.both_spellings("max_params", help="Only models with at most so many.")
@options.format_of("human", "markdown", "json")
def list_models(
    form: str, threat_model: str | None, min_params: str | None, max_params: str | None, **rest: str | None
) -> None:
    """List the models that can be run."""
    from hpm_robustbench.report.models import render_specs, render_specs_markdown, spec_facts
    from hpm_robustbench.threat import parse_threat_name
    from hpm_robustbench.zoo.catalog import catalog
    from hpm_robustbench.zoo.query import Query, parse_size

    smallest, largest = (None if size is None else parse_size(size) for size in (min_params, max_params))
    threat = None if threat_model is None else parse_threat_name(threat_model)
    specs = Query(threat_model=threat, min_params=smallest, max_params=largest, **rest).among(catalog().specs())
    if form == "json":
        click.echo(options.as_json([spec_facts(spec) for spec in specs]))
    else:
        click.echo(render_specs(specs) if form == "human" else render_specs_markdown(specs))


@click.command()
@click.argument("model")
@click.option("--dataset")
@options.both_spellings("threat_model")
@options.format_of("human", "json")
def show(model: str, dataset: str | None, threat_model: str | None, form: str) -> None:
    """Show what is known of a model."""
    from hpm_robustbench.report.models import spec_facts
    from hpm_robustbench.report.tables import render_facts
    from hpm_robustbench.request.models import find_spec

    facts = spec_facts(find_spec(model, dataset, threat_model))
    click.echo(options.as_json(facts) if form == "json" else render_facts(facts))
