"""Options that several commands share, and the form of what they print. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard

import click

from hpm_robustbench.zoo.builtin import DIGITS_MODEL

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

a_path = click.Path(path_type=Path)


def both_spellings(name: str, **settings: Any) -> Decorator:
    """An option under its dashed name and under RobustBench's spelling with underscores."""
    return click.option(f"--{name.replace('_', '-')}", f"--{name}", name, show_default=True, **settings)


def format_of(*forms: str) -> Decorator:
    """An option with the forms in which a result can be printed, the default first."""
    return click.option("--format", "form", type=click.Choice(forms), default=forms[0], show_default=True)


def as_json(value: Any) -> str:
    """What a command prints under ``--format json``."""
    return json.dumps(value, indent=1)


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which the help shows them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


output = click.option(
    "--output", type=a_path, default=Path(), help="Folder of runs/, model_cards/ and leaderboard/.", show_default=True
)
model_dir = both_spellings(
    "model_dir", type=a_path, default=Path("models"), help="Checkpoints; RobustBench's own folder will do."
)
data_dir = both_spellings("data_dir", type=a_path, default=Path("data"), help="Downloaded datasets.")
checksums = click.option("--checksums", type=a_path, help="What checkpoints must be; see `hpm-bench weights pin`.")
allow_global = click.option(
    "--allow-global",
    multiple=True,
    metavar="MODULE.NAME",
    help="A class that a checkpoint may use beyond tensors. Allow none that does harm when it is built.",
)
allow_license = click.option(
    "--allow-license", multiple=True, help="A licence that lets you publish where you are going to."
)

OF_A_MODEL = ("factory", "weights", "name", "head", "about", "dataset", "threat_model", "eps")
"""What ``request.models.chosen_spec`` makes a spec of, beside the model's name."""
OF_A_DEFENCE = ("knobs", "recipe", "tune", "control", "controls", "finetuned")
"""What a published model says itself."""
published_model = click.option(
    "--model",
    show_default=DIGITS_MODEL,
    help="A model's name; see `hpm-bench list`. Or hf:owner/name@revision, where `hpm-bench push` has published one.",
)
base_model = click.option("--model", show_default=DIGITS_MODEL, help="A model's name; see `hpm-bench list`.")
subject_options = together(
    click.option("--factory", help="Your own model: package.module:function that builds the untrained network."),
    click.option("--name", help="Your model's name on its card; the factory's by default."),
    click.option(
        "--weights",
        help="Your model's checkpoint: safetensors, or a torch file of tensors. Or, for any model, "
        "hf:owner/name@revision[:file] on the Hugging Face Hub; or rb:, RobustBench's own, the default of its models.",
    ),
    click.option("--head", help="Name of your model's last linear layer, if it cannot be found."),
    click.option("--about", type=a_path, help="JSON file on your model's origin: title, authors, link, license, ..."),
    click.option("--dataset", help="Which dataset; any name with --data."),
    click.option(
        "--data",
        type=a_path,
        help="The dataset itself: .npz arrays, MNIST-style files, or class folders; or a folder of corrupted images.",
    ),
    both_spellings("threat_model", help="Linf, L2 or corruptions."),
    click.option("--eps", help="Budget in units of [0, 1], as 8/255 or 0.031."),
    both_spellings("n_ex", type=click.IntRange(min=1), default=1000, help="Test images; at most all of them."),
)


hpm_knobs = click.option("--hpm", "knobs", multiple=True, metavar="KNOB=VALUE", help="A knob of HPM, e.g. beta=0.3.")


def is_published(model: str | None) -> TypeGuard[str]:
    """Whether ``--model`` names a published model instead of a base model."""
    return model is not None and model.startswith("hf:")


def recipe_options(default: str | None) -> Decorator:
    """What a fine-tuning is, under ``default`` if nobody says."""
    return together(
        click.option(
            "--recipe", default=default, show_default=True, help="Fine-tune by prototypes, head or uniform-v1."
        ),
        click.option("--tune", multiple=True, metavar="KNOB=VALUE", help="A knob of the recipe, e.g. epochs=3."),
    )


control = click.option(
    "--control",
    help="Fine-tune in HPM's place: fc (the FC head alone answers), static (dataset prototypes alone), shuffled "
    "(memberships of other images of the batch) or leave-one-out (no image in its own batch prototype).",
)
controls = click.option(
    "--controls",
    is_flag=True,
    help="All four controls too, with the same budget, order and seed, to stand beside HPM on its card.",
)
finetuned = click.option(
    "--finetuned",
    type=a_path,
    help="Train nothing: take what `hpm-bench finetune` has finished, from a folder finetuned/ of another machine, or "
    "what `hpm-bench push --folder` has written.",
)
work_options = together(
    model_dir,
    checksums,
    allow_global,
    data_dir,
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
    click.option("--device", default="cpu", show_default=True, help="As torch names it: cpu, cuda:0, ..."),
)
