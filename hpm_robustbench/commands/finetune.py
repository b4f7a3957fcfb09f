"""``hpm-bench finetune``: fine-tune by one recipe, and show how good the classifiers became."""

from __future__ import annotations

from typing import Any

import click

from hpm_robustbench.commands import options
from hpm_robustbench.errors import UsageProblem


@click.command()
@options.base_model
@options.subject_options
@options.hpm_knobs
@options.recipe_options("uniform-v1")
@options.control
@options.controls
@options.work_options
@click.option(
    "--at-once",
    type=click.IntRange(min=1, max=2**31 - 1),
    help="Images in memory together; by default the whole batch.",
)
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile where it is measured to be faster.")
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Between two of them."
)
@click.option(
    "--threads", type=click.IntRange(min=1, max=1024), default=1, show_default=True, help="Of torch on a CPU."
)
@options.output
@options.format_of("human", "json")
def finetune(  # the options of one command
    form: str,
    model: str | None,
    at_once: int | None,
    compiled: bool,
    checkpoint_minutes: float,
    threads: int,
    **asked: Any,
) -> None:
    """Fine-tune a wrapped model by one recipe, and its controls.

    The same command continues an interrupted training. `hpm-bench run` with the same --recipe puts the result on trial.
    """
    if options.is_published(model):
        raise UsageProblem(
            wanted="the name of a base model, which is wrapped and then fine-tuned",
            got=f"{model}, which is wrapped already",
            next_step="fine-tune its base, as its config.json names it; hpm-bench run tries the published one as it is",
        )
    import torch

    from hpm_robustbench.case import fine_tune
    from hpm_robustbench.request.models import chosen_spec
    from hpm_robustbench.request.options import run_options
    from hpm_robustbench.training.compute import Compute
    from hpm_robustbench.training.summary import facts_of, render_finetuned

    torch.set_num_threads(threads)  # a sum's last bits depend on it
    spec = chosen_spec(model, **{key: asked.pop(key) for key in options.OF_A_MODEL})
    compute = Compute(at_once, compiled, 60 * checkpoint_minutes)
    chosen = run_options(batching=(), compute=compute, **asked)
    assert chosen.tuning is not None
    tunings = chosen.tuning.with_controls() if chosen.controls else [chosen.tuning]
    finished = dict(zip(tunings, fine_tune(spec, chosen, tunings), strict=True))
    if form == "json":
        click.echo(options.as_json([facts_of(tuning, finetuned) for tuning, finetuned in finished.items()]))
    else:
        click.echo(render_finetuned(finished))
