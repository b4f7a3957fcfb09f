"""Options that several commands share. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

a_path = click.Path(path_type=Path)


def both_spellings(name: str, **settings: Any) -> Decorator:
    """An option under its dashed name and under RobustBench's spelling with underscores."""
    return click.option(f"--{name.replace('_', '-')}", f"--{name}", name, show_default=True, **settings)


def format_of(*forms: str) -> Decorator:
    """An option with the forms in which a result can be printed, the default first."""
    return click.option("--format", "form", type=click.Choice(forms), default=forms[0], show_default=True)


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
