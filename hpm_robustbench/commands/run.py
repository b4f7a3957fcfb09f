"""``hpm-bench run``: put a model on trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from hpm_robustbench.commands import options


@click.command()
@options.published_model
@options.subject_options
@options.both_spellings(
    "batch_size", type=click.IntRange(min=1), default=250, help="Images an attack works on together."
)
@click.option(
    "--batching",
    type=click.Choice(["solo", "reference", "joint"]),
    multiple=True,
    default=("solo", "joint"),
    show_default=True,
    help="How HPM is deployed; may be repeated. SOLO is always tried.",
)
@click.option("--joint-size", type=click.IntRange(min=1), default=128, show_default=True, help="Batch under JOINT.")
@options.hpm_knobs
@click.option(
    "--batches",
    type=click.Choice(["iid", "sorted", "single-class"]),
    default="iid",
    show_default=True,
    help="Which images meet under JOINT: as they come, sorted by label within two batches, or one class each.",
)
@options.recipe_options(None)
@options.control
@options.controls
@options.finetuned
@options.both_spellings(
    "corruptions_data_dir", type=options.a_path, help="Corrupted images, if not in --data or --data_dir."
)
@options.work_options
@click.option(
    "--screen",
    type=click.Choice(["quick", "coupling", "matrix"]),
    help="A look that ends with a table, not with a card: few attacks, what batch mates can do to each other, or "
    "what each attack breaks by itself (longer than the trial).",
)
@click.option("--keep-images", is_flag=True, help="Keep the adversarial images, so that --verify can judge them again.")
@click.option("--verify", is_flag=True, help="Attack nothing: judge the kept images of the same command again.")
@click.option("--overwrite", is_flag=True, help="Replace a card that tells of other images, seeds or knobs.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes; by default one per core, at most four, and one on an accelerator. Changes no result.",
)
@options.output
@options.format_of("human", "json")
@click.pass_obj
def run(  # the options of one command
    arguments: Sequence[str],
    /,
    form: str,
    model: str | None,
    workers: int | None,
    verify: bool,
    **asked: Any,
) -> None:
    """Wrap a model, attack it with AutoAttack and MSA, and write its card.

    Under --threat_model corruptions nobody attacks: the model meets CIFAR-10-C, CIFAR-100-C or ImageNet-C instead. The
    same command continues an interrupted run.
    """
    import torch

    from hpm_robustbench.case import prepare
    from hpm_robustbench.hub.trial import published
    from hpm_robustbench.pipeline import Screen, verify_kept
    from hpm_robustbench.report.cards import render_card
    from hpm_robustbench.report.screens import render_screen, screen_rows
    from hpm_robustbench.report.tables import render_rows
    from hpm_robustbench.request.models import chosen_spec
    from hpm_robustbench.request.options import run_options
    from hpm_robustbench.workers import default_workers, evaluate_together

    of_the_model = {key: asked.pop(key) for key in options.OF_A_MODEL}
    if options.is_published(model):
        said = {key: asked.pop(key) for key in options.OF_A_DEFENCE}
        spec, chosen, ready, where = published(model, run_options(knobs=(), **asked), **said, **of_the_model)
        arguments = [argument.replace(model, where) for argument in arguments]  # no branch moves between two workers
    else:
        chosen, ready = run_options(**asked), None
        spec = chosen_spec(model, **of_the_model)
    torch.set_num_threads(1)  # a sum's last bits depend on the threads; processes are the better parallelism anyway
    if verify:
        looked_at = replace(chosen, overwrite=True)  # no card is written, so none is in the way
        rows = [vars(found) for found in verify_kept(prepare(spec, looked_at, model=ready, train=False))]
        click.echo(options.as_json(rows) if form == "json" else render_rows(rows, empty="no run under attack"))
        return
    workers = workers or default_workers(asked["device"])
    outcome = evaluate_together(spec, chosen, workers, arguments, ready)
    if outcome is None:
        return
    if isinstance(outcome, Screen):
        click.echo(options.as_json(screen_rows(outcome)) if form == "json" else render_screen(outcome))
    elif form == "json":
        click.echo(options.as_json(outcome.card.to_json()))
    else:
        click.echo(f"{render_card(outcome.card)}\n\ncard: {outcome.card_path}")
