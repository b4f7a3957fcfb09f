"""Remake the index of RobustBench's zoo from its three sources.

    python -m hpm_robustbench.zoo.make_index --published robustbench_published.csv

``robustbench.json`` joins what the installed RobustBench says of each entry (name, Google Drive ids, preprocessing),
what it has published (the table given, one row per published entry), and what people have found out and reviewed
(``reviewed.csv``: the licence, the number of parameters, the head; ``built_as`` names an entry with the same network
for one whose own constructor downloads; ``upstream`` is where weights lie that RobustBench does not fetch itself).
``published_only.json`` keeps the published entries that have no weights. Nothing is looked up anywhere else.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from hpm_robustbench.errors import HpmBenchError, InvalidInput, UsageProblem
from hpm_robustbench.threat import Corruptions
from hpm_robustbench.zoo.from_robustbench import INDEX, PUBLISHED_ONLY

if TYPE_CHECKING:
    from hpm_robustbench.architectures import Entry

Table: TypeAlias = dict[str, dict[str, str]]
"""Rows of a file by ``dataset/threat/name``, without their empty cells."""

_FIGURES = (
    "title",
    "authors",
    "venue",
    "link",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "external",
    "corruptions_acc",
    "corruptions_mce",
    "corruptions_acc_3d",
    "corruptions_mce_3d",
)
_TYPES: dict[str, Callable[[str], Any]] = {
    "unreliable": "True".__eq__,
    "additional_data": "True".__eq__,
    "number_forward_passes": int,
}
_REVIEWED = "reviewed.csv"
_MOST_NAMED = 5


def make_index(published: Path) -> dict[str, str]:
    """The text of both files by name.

    Args:
        published: a csv with the columns ``dataset``, ``threat_model``, ``model`` and RobustBench's own keys.

    Raises:
        InvalidInput: the table cannot be read, or lacks a column.
        UsageProblem: an entry is missing from one of the sources.
    """
    from hpm_robustbench.architectures import robustbench_entries  # noqa: PLC0415 - the catalog itself needs no torch

    entries, figures = robustbench_entries(), _read(published, "threat_model", "model")
    reviewed = _read(Path(str(files("hpm_robustbench.zoo").joinpath(_REVIEWED))), "threat", "name")
    _need(entries, figures, f"a published row in {published} for every entry of RobustBench")
    _need(entries, reviewed, f"a row in {_REVIEWED} for every entry of RobustBench")
    _need(reviewed, entries, f"an entry of the installed RobustBench for every row of {_REVIEWED}")
    return {
        INDEX: _lines(_entry(key, entry, reviewed[key], figures[key]) for key, entry in entries.items()),
        PUBLISHED_ONLY: _lines(_published(key, row) for key, row in figures.items() if key not in entries),
    }


def _read(path: Path, threat: str, name: str) -> Table:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        return {
            f"{row['dataset']}/{row[threat]}/{row[name]}": {key: cell for key, cell in row.items() if cell}
            for row in rows
        }
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InvalidInput(
            wanted=f"a table with the columns dataset, {threat} and {name} at {path}",
            got=f"{type(error).__name__}: {error}",
            next_step="name a readable csv file",
        ) from error


def _need(wanted: Iterable[str], given: Mapping[str, Any], what: str) -> None:
    missing = sorted(set(wanted) - set(given))
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        named = ", ".join(missing[:_MOST_NAMED])
        raise UsageProblem(wanted=what, got=f"none for {named}{more}", next_step="look the facts up and add them")


def _entry(key: str, entry: Entry, reviewed: Mapping[str, str], row: Mapping[str, str]) -> dict[str, Any]:
    found = {
        "gdrive": _several(entry.facts["gdrive_id"]),
        "upstream": entry.address or reviewed.get("upstream"),
        "built_as": reviewed.get("built_as"),
        "preprocessing": _preprocessing(key, entry),
        "head": reviewed.get("head"),
        "n_params": int(reviewed["n_params"]),
        "license": reviewed["license"],
    }
    return {**_key(key), **{name: value for name, value in found.items() if value}, **_facts(key, row)}


def _preprocessing(key: str, entry: Entry) -> str | None:
    """What RobustBench's ``get_preprocessing`` chooses: for ImageNet alone, and timm's own before what it states."""
    stated: str | None = entry.facts.get("preprocessing")
    return (entry.preprocessing or stated) if key.startswith("imagenet/") else None


def _published(key: str, row: Mapping[str, str]) -> dict[str, Any]:
    return {**_key(key), **_facts(key, row)}


def _key(key: str) -> dict[str, str]:
    return dict(zip(("dataset", "threat", "name"), key.split("/"), strict=True))


def _facts(key: str, row: Mapping[str, str]) -> dict[str, Any]:
    """What is published of an entry; a budget that stands beside corruptions by mistake is left out."""
    budget = () if key.split("/")[1] == Corruptions.name else ("eps",)
    wanted = ("architecture", *budget, *_FIGURES, *_TYPES)
    return {name: _TYPES.get(name, str)(row[name]) for name in wanted if name in row}


def _several(ids: str | list[str] | None) -> list[str] | None:
    return [ids] if ids and isinstance(ids, str) else list(ids or ()) or None


def _lines(entries: Iterable[dict[str, Any]]) -> str:
    """A JSON list with one line for each entry, so that a change shows which entry it touches."""
    ordered = sorted(entries, key=lambda entry: (entry["dataset"], entry["threat"], entry["name"]))
    lines = [json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in ordered]
    return "[\n" + ",\n".join(lines) + "\n]\n"


@click.command()
@click.option("--published", required=True, type=click.Path(path_type=Path), help="Table of RobustBench's figures.")
@click.option(
    "--output",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder to write into; the package's own by default.",
)
def main(published: Path, output: Path | None) -> None:
    """Write robustbench.json and published_only.json anew."""
    folder = output or Path(str(files("hpm_robustbench.zoo")))
    try:
        texts = make_index(published)
    except HpmBenchError as error:
        raise click.ClickException(str(error)) from error
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        click.echo(f"written: {folder / name}")


if __name__ == "__main__":
    main()
