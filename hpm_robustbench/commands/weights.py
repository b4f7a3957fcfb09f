"""``hpm-bench weights``: what a checkpoint must be, and a mirror of some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hpm_robustbench.commands import options


@click.group()
def weights() -> None:
    """Checkpoints of models."""


@weights.command()
@click.option("--model", required=True, help="A model's name; see `hpm-bench list`.")
@click.option("--dataset")
@options.both_spellings("threat_model")
@click.option("--weights", "source", metavar="hf:...|rb:", help="Other weights of that model, as for `hpm-bench run`.")
@options.model_dir
@options.allow_global
@click.option(
    "--output", type=options.a_path, help="File of checksums that takes the entries; without it they are printed."
)
def pin(
    model: str,
    dataset: str | None,
    threat_model: str | None,
    source: str | None,
    model_dir: Path,
    allow_global: tuple[str, ...],
    output: Path | None,
) -> None:
    """Write down what a model's checkpoint is, so that nothing else passes for it from then on.

    Look at the entries before you commit them: they say that what lies here now is the right file.
    """
    from hpm_robustbench.request.models import find_spec
    from hpm_robustbench.weights.pin import pin as pin_checkpoint
    from hpm_robustbench.zoo.checksums import checksums_json

    spec = find_spec(model, dataset, threat_model, source)
    entries = pin_checkpoint(spec, model_dir, output, allow_globals=allow_global)
    click.echo(checksums_json(entries), nl=False)


@weights.command()
@click.option("--model", "models", multiple=True, required=True, help="A model's name; may be repeated.")
@click.option("--dataset")
@options.both_spellings("threat_model")
@click.option(
    "--folder", type=options.a_path, required=True, help="Folder that takes the files; earlier ones in it stay."
)
@options.allow_license
@options.model_dir
@options.checksums
@options.allow_global
def mirror(
    models: Sequence[str],
    dataset: str | None,
    threat_model: str | None,
    folder: Path,
    allow_license: Sequence[str],
    model_dir: Path,
    checksums: Path | None,
    allow_global: Sequence[str],
) -> None:
    """Make a folder of checkpoints as safetensors, ready to be uploaded to the Hugging Face Hub."""
    from hpm_robustbench.request.models import find_spec
    from hpm_robustbench.weights import Trust
    from hpm_robustbench.weights.mirror import mirror as mirror_model
    from hpm_robustbench.zoo.catalog import catalog
    from hpm_robustbench.zoo.licences import check_licences

    specs, zoo = [find_spec(model, dataset, threat_model, None) for model in models], catalog().specs()
    check_licences(specs, allow_license, zoo)
    for spec in specs:
        for path in mirror_model(spec, folder, model_dir, Trust(checksums, tuple(allow_global)), zoo=zoo):
            click.echo(path)
