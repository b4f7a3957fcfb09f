"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from hpm_robustbench.errors import HpmBenchError, InvalidInput, StorageProblem
from hpm_robustbench.finetune import finetune
from hpm_robustbench.options import (
    OF_A_MODEL,
    control,
    finetuned,
    hpm_knobs,
    published_model,
    recipe_options,
    subject_options,
    work_options,
)
from hpm_robustbench.options import a_path as _path
from hpm_robustbench.options import allow_global as _allow_global
from hpm_robustbench.options import allow_license as _allow_license
from hpm_robustbench.options import both_spellings as _both_spellings
from hpm_robustbench.options import checksums as _checksums
from hpm_robustbench.options import format_of as _format_of
from hpm_robustbench.options import model_dir as _model_dir
from hpm_robustbench.options import output as _output
from hpm_robustbench.push import push

if TYPE_CHECKING:
    from hpm_robustbench.zoo.spec import ModelSpec

_INTERRUPTED, _TERMINATED = 130, 75


class _Terminated(BaseException):
    """SIGTERM arrived."""


_format = _format_of("human", "json")


@click.group(context_settings={"auto_envvar_prefix": "HPM_BENCH", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpm-robustbench")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
def cli(quiet: bool) -> None:
    """Trustworthy evaluation of robust image classifiers, with and without HPM."""
    level = logging.ERROR if quiet else logging.INFO
    told = logging.StreamHandler(sys.stderr)
    told.setLevel(level)
    told.addFilter(lambda record: record.name.startswith("hpm_robustbench") or record.levelno >= logging.WARNING)
    logging.basicConfig(handlers=[told], format="%(message)s", level=level)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own, and would say all twice
    if quiet:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when that handler is made
    if not sys.warnoptions and quiet:
        logging.captureWarnings(True)


@cli.command()
@published_model
@subject_options
@_both_spellings("batch_size", type=click.IntRange(min=1), default=250, help="Images an attack works on together.")
@click.option(
    "--batching",
    type=click.Choice(["solo", "reference", "joint"]),
    multiple=True,
    default=("solo", "joint"),
    show_default=True,
    help="How HPM is deployed; may be repeated. SOLO is always tried.",
)
@click.option("--joint-size", type=click.IntRange(min=1), default=128, show_default=True, help="Batch under JOINT.")
@hpm_knobs
@click.option(
    "--batches",
    type=click.Choice(["iid", "sorted", "single-class"]),
    default="iid",
    show_default=True,
    help="Which images meet under JOINT: as they come, sorted by label within two batches, or one class each.",
)
@recipe_options(None)
@control
@finetuned
@_both_spellings("corruptions_data_dir", type=_path, help="Corrupted images, if not in --data or --data_dir.")
@work_options
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
@_output
@_format
@click.pass_obj
def run(  # the options of one command
    arguments: Sequence[str],
    /,
    form: str,
    model: str | None,
    workers: int | None,
    verify: bool,
    **options: Any,
) -> None:
    """Wrap a model, attack it with AutoAttack and MSA, and write its card.

    Under --threat_model corruptions nobody attacks: the model meets CIFAR-10-C, CIFAR-100-C or ImageNet-C instead. The
    same command continues an interrupted run.
    """
    import torch

    from hpm_robustbench.hub.trial import published
    from hpm_robustbench.pipeline import Screen, prepare, verify_kept
    from hpm_robustbench.report import render_card, render_rows, render_screen, screen_rows
    from hpm_robustbench.request import chosen_spec, run_options
    from hpm_robustbench.workers import default_workers, evaluate_together

    asked = {key: options.pop(key) for key in OF_A_MODEL}
    chosen, ready = run_options(**options), None
    if model is not None and model.startswith("hf:"):
        spec, chosen, ready = published(model, chosen, options["knobs"], recipe=options["recipe"], **asked)
    else:
        spec = chosen_spec(model, **asked)
    torch.set_num_threads(1)  # a sum's last bits depend on the threads; processes are the better parallelism anyway
    if verify:
        looked_at = replace(chosen, overwrite=True)  # no card is written, so none is in the way
        rows = [vars(found) for found in verify_kept(prepare(spec, looked_at, model=ready, train=False))]
        click.echo(_json(rows) if form == "json" else render_rows(rows, empty="no run under attack"))
        return
    workers = workers or default_workers(options["device"])
    outcome = evaluate_together(spec, chosen, workers, arguments, ready)
    if outcome is None:
        return
    if isinstance(outcome, Screen):
        click.echo(_json(screen_rows(outcome)) if form == "json" else render_screen(outcome))
    elif form == "json":
        click.echo(_json(outcome.card.to_json()))
    else:
        click.echo(f"{render_card(outcome.card)}\n\ncard: {outcome.card_path}")


@cli.command("list")
@click.option("--dataset", help="Only this dataset.")
@_both_spellings("threat_model", help="Only this threat model: Linf, L2 or corruptions.")
@click.option("--architecture", help="Only architectures with this in their name, in any case.")
@click.option("--license", help="Only licences with this in their name, in any case.")
@_both_spellings("min_params", help="Only models with at least so many parameters, as 500k or 11.2M.")
@_both_spellings("max_params", help="Only models with at most so many.")
@_format_of("human", "markdown", "json")
def list_models(
    form: str, threat_model: str | None, min_params: str | None, max_params: str | None, **rest: str | None
) -> None:
    """List the models that can be run."""
    from hpm_robustbench.report import render_specs, render_specs_markdown
    from hpm_robustbench.threat import parse_threat_name
    from hpm_robustbench.zoo.catalog import catalog
    from hpm_robustbench.zoo.query import Query, parse_size

    smallest, largest = (None if size is None else parse_size(size) for size in (min_params, max_params))
    threat = None if threat_model is None else parse_threat_name(threat_model)
    specs = Query(threat_model=threat, min_params=smallest, max_params=largest, **rest).among(catalog().specs())
    if form == "json":
        click.echo(_json([_facts(spec) for spec in specs]))
    else:
        click.echo(render_specs(specs) if form == "human" else render_specs_markdown(specs))


cli.add_command(finetune)
cli.add_command(push)


@cli.command()
@click.argument("model")
@click.option("--dataset")
@_both_spellings("threat_model")
@_format
def show(model: str, dataset: str | None, threat_model: str | None, form: str) -> None:
    """Show what is known of a model."""
    from hpm_robustbench.report import render_facts
    from hpm_robustbench.request import find_spec

    facts = _facts(find_spec(model, dataset, threat_model))
    click.echo(_json(facts) if form == "json" else render_facts(facts))


@cli.command()
@_output
@_format
def status(output: Path, form: str) -> None:
    """Show how far each run and each fine-tuning is."""
    from hpm_robustbench.ledger.journal import overview
    from hpm_robustbench.report import render_rows
    from hpm_robustbench.training.status import trainings

    runs, trained = overview(output / "runs"), trainings(output / "finetuned")
    if form == "json":
        click.echo(_json([*runs, *trained]))
        return
    tables = [render_rows(runs, empty=f"no runs in {output / 'runs'}"), render_rows(trained, empty="")]
    click.echo("\n\n".join(filter(None, tables)))


@cli.group()
def leaderboard() -> None:
    """Pages made from model cards."""


@leaderboard.command()
@_output
@click.option("--check", is_flag=True, help="Write nothing; fail if the pages differ from what the cards give.")
def build(output: Path, check: bool) -> None:
    """Build the board in OUTPUT/leaderboard from OUTPUT/model_cards."""
    from hpm_robustbench.attacks.protocols import msa
    from hpm_robustbench.ledger import leaderboard as board

    cards, pages = output / "model_cards", output / "leaderboard"
    if check:
        board.check(cards, pages, msa)
        click.echo(f"{pages} is what {cards} gives")
    else:
        click.echo(f"page: {board.build(cards, pages, msa)}")


@cli.group()
def weights() -> None:
    """Checkpoints of models."""


@weights.command()
@click.option("--model", required=True, help="A model's name; see `hpm-bench list`.")
@click.option("--dataset")
@_both_spellings("threat_model")
@click.option("--weights", "source", metavar="hf:...|rb:", help="Other weights of that model, as for `hpm-bench run`.")
@_model_dir
@_allow_global
@click.option("--output", type=_path, help="File of checksums that takes the entries; without it they are printed.")
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
    from hpm_robustbench.request import find_spec
    from hpm_robustbench.weights.pin import pin as pin_checkpoint
    from hpm_robustbench.zoo.checksums import checksums_json

    spec = find_spec(model, dataset, threat_model, source)
    entries = pin_checkpoint(spec, model_dir, output, allow_globals=allow_global)
    click.echo(checksums_json(entries), nl=False)


@weights.command()
@click.option("--model", "models", multiple=True, required=True, help="A model's name; may be repeated.")
@click.option("--dataset")
@_both_spellings("threat_model")
@click.option("--folder", type=_path, required=True, help="Folder that takes the files; earlier ones in it stay.")
@_allow_license
@_model_dir
@_checksums
@_allow_global
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
    from hpm_robustbench.request import find_spec
    from hpm_robustbench.weights import Trust
    from hpm_robustbench.weights.mirror import mirror as mirror_model
    from hpm_robustbench.zoo.catalog import catalog
    from hpm_robustbench.zoo.licences import check_licences

    specs, zoo = [find_spec(model, dataset, threat_model, None) for model in models], catalog().specs()
    check_licences(specs, allow_license, zoo)
    for spec in specs:
        for path in mirror_model(spec, folder, model_dir, Trust(checksums, tuple(allow_global)), zoo=zoo):
            click.echo(path)


@cli.group()
def card() -> None:
    """Model cards."""


@card.command()
@click.argument("paths", nargs=-1, required=True, type=_path)
def validate(paths: Sequence[Path]) -> None:
    """Check that each file is a valid card, all of them before it fails."""
    from hpm_robustbench.ledger.model_card import read_card

    bad = []
    for path in paths:
        try:
            click.echo(f"{path}: {read_card(path).name}: valid")
        except InvalidInput as error:
            bad.append(path)
            click.echo(f"{path}: {error}")
    if bad:
        raise InvalidInput(
            wanted=f"valid cards in all {len(paths)} files",
            got=f"{len(bad)} that are not: {', '.join(map(str, bad))}",
            next_step="correct them as their lines say",
        )


@card.command("rows")
@click.argument("path", type=_path)
@_format
def rows_of_card(path: Path, form: str) -> None:
    """Show which attack took each image of a card, and as which class."""
    from hpm_robustbench.ledger.model_card import read_card
    from hpm_robustbench.report import card_rows, render_rows

    rows = card_rows(read_card(path))
    click.echo(_json(rows) if form == "json" else render_rows(rows, empty="a card that does not tell of rows"))


@cli.command()
@_format
def doctor(form: str) -> None:
    """Show versions, devices and what is missing."""
    from hpm_robustbench.report import render_facts, software

    facts = software()
    click.echo(_json(facts) if form == "json" else render_facts(facts))


def _facts(spec: ModelSpec) -> dict[str, Any]:
    from hpm_robustbench.report import spec_facts

    return spec_facts(spec)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1)


def _on_sigterm(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leave with the exit code that the outcome stands for."""
    signal.signal(signal.SIGTERM, _on_sigterm)
    resume = "Run the same command again to continue: every finished step is kept."
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = cli.main(args=given, obj=given, standalone_mode=False) or 0
    except HpmBenchError as error:
        code = _say(f"error: {error}", error.exit_code)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _say(f"interrupted. {resume}", _INTERRUPTED)
    except _Terminated:
        code = _say(f"terminated. {resume}", _TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _say(f"error: {_refused(error)}", StorageProblem.exit_code)
    sys.exit(code)


def _refused(error: OSError) -> StorageProblem:
    """What nobody expected of a path: too long, not allowed, on a disk that has gone."""
    path = str(error.filename or "a file")
    return StorageProblem(
        wanted="paths that can be read and written",
        got=f"{error.strerror or type(error).__name__} at {path[:80]}{'...' if len(path) > 80 else ''}",
        next_step="look at the paths of the command; what is written already is intact",
    )


def _say(message: str, code: int) -> int:
    click.echo(message, err=True)
    return code
