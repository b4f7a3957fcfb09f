"""``hpm-bench push``: plan what is to be published, show it, and send it in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpm_robustbench.commands import options
from hpm_robustbench.errors import UsageProblem

if TYPE_CHECKING:
    from hpm_robustbench.hub.publication import Publication
    from hpm_robustbench.hub.remote import Destination


@click.command()
@click.option("--model", help="A model's name, as it was given to `hpm-bench run`.")
@click.option("--repo", required=True, metavar="OWNER/NAME", help="Where it goes on the Hugging Face Hub.")
@click.option("--revision", default="main", show_default=True, help="Branch that takes it.")
@click.option("--private", is_flag=True, help="Only in a repository that not everybody can see.")
@click.option("--create-pr", is_flag=True, help="Propose it instead of publishing it.")
@click.option("--include-backbone", is_flag=True, help="Store the whole model, not only what its base lacks.")
@click.option("--samples", metavar="OWNER/NAME", help="Publish what happened to each image too, as a dataset.")
@click.option("--eval-dataset", metavar="OWNER/NAME:TASK", help="A benchmark on the Hub whose board is to show it.")
@click.option("--sign", type=options.a_path, metavar="KEY", help="SSH key to sign the files with.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and open no connection.")
@click.option("--folder", type=options.a_path, help="Write it to FOLDER/OWNER/NAME instead, and open no connection.")
@options.allow_license
@click.option("--batching", type=click.Choice(["solo", "reference", "joint"]), default="solo", show_default=True)
@click.option("--factory", help="Your own model, as for `hpm-bench run`; so are the next options.")
@click.option("--name")
@click.option("--weights")
@click.option("--head")
@click.option("--about", type=options.a_path)
@click.option("--dataset")
@click.option("--data", type=options.a_path)
@options.both_spellings("threat_model")
@click.option("--eps")
@options.recipe_options(None)
@options.control
@options.finetuned
@options.model_dir
@options.checksums
@options.allow_global
@options.data_dir
@options.both_spellings("corruptions_data_dir", type=options.a_path)
@click.option("--device", default="cpu", show_default=True, help="As when it was tried.")
@options.output
@options.format_of("human", "json")
def push(  # the options of one command
    form: str,
    model: str | None,
    repo: str,
    revision: str,
    private: bool,
    create_pr: bool,
    include_backbone: bool,
    samples: str | None,
    eval_dataset: str | None,
    sign: Path | None,
    dry_run: bool,
    folder: Path | None,
    allow_license: Sequence[str],
    batching: str,
    **asked: Any,
) -> None:
    """Publish a model that was tried on the Hugging Face Hub, with its card, so that others can load the same one.

    Log in with `hf auth login`, or set HF_TOKEN. A second time, only what has changed is sent.
    """
    import torch

    from hpm_robustbench.hub.eval_results import Benchmark
    from hpm_robustbench.hub.publication import Wish
    from hpm_robustbench.hub.publish import plan, send_publication, write_publication
    from hpm_robustbench.hub.remote import Destination
    from hpm_robustbench.offline import connections
    from hpm_robustbench.request.models import chosen_spec
    from hpm_robustbench.request.options import run_options
    from hpm_robustbench.threat import Batching

    torch.set_num_threads(1)  # as when it was tried
    _check_base(model)
    destination = Destination(repo, revision, private, create_pr)
    _check_together(destination, samples, folder, dry_run)
    benchmark = Benchmark.parse(eval_dataset) if eval_dataset else None
    licences = tuple(allow_license)
    wish = Wish(repo, Batching(batching), include_backbone, licences, samples, benchmark, sign)
    model_asked = {key: asked.pop(key) for key in options.OF_A_MODEL}
    with connections(allowed=not dry_run and folder is None):
        spec = chosen_spec(model, **model_asked)
        publication = plan(spec, run_options(batching=[batching], knobs=(), **asked), wish)
    if dry_run:
        click.echo(options.as_json(publication.to_json()) if form == "json" else publication.in_words())
        return
    if folder is not None:
        place = write_publication(publication, folder)
        told = {**publication.to_json(), "folder": str(place)}
        click.echo(options.as_json(told) if form == "json" else _written(publication, folder))
        return
    sent = send_publication(publication, destination, f"Publish {spec.name} with HPM")
    if form == "json":
        click.echo(options.as_json({**publication.to_json(), **sent._asdict()}))
    else:
        click.echo(f"{'sent' if sent.changed else 'nothing to do'}: {sent.address}")


def _check_base(model: str | None) -> None:
    if options.is_published(model):
        raise UsageProblem(
            wanted="the name of the base model, whose trial lies here",
            got=f"{model}, which is published already",
            next_step="name its base, as its config.json does; after fine-tuning also its recipe, and --finetuned with "
            "the folder of that publication",
        )


def _check_together(destination: Destination, samples: str | None, folder: Path | None, dry_run: bool) -> None:
    """Refuse options that contradict each other."""
    if samples and destination.create_pr:
        raise UsageProblem(
            wanted="a model to publish, since its samples are published at once",
            got="--samples with --create-pr",
            next_step="leave one of the two out",
        )
    of_a_commit = {
        "--dry-run": dry_run,
        "--private": destination.private,
        "--create-pr": destination.create_pr,
        "--revision": destination.revision != "main",
    }
    if folder is not None and any(of_a_commit.values()):
        raise UsageProblem(
            wanted="files in a folder, and nothing sent",
            got=f"--folder with {', '.join(option for option, given in of_a_commit.items() if given)}",
            next_step="leave --folder out, or the rest",
        )


def _written(publication: Publication, folder: Path) -> str:
    lines = [f"written: {folder / publication.repo}"]
    if publication.samples is not None:
        place, tag = folder / "datasets" / publication.samples.repo, publication.samples.tag
        lines.append(f"written: {place}; upload it first, under the tag {tag} that the model leads to")
    return "\n".join(lines)
