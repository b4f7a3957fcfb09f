"""RobustBench's zoo as specs, from ``robustbench.json``: listing it takes no RobustBench and no torch.

``make_index`` writes the index, and says what it is made of. ``built_as`` names another entry with the same network,
for an entry whose own constructor downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

from hpm_robustbench.threat import Threat, parse_threat
from hpm_robustbench.zoo.spec import ModelSpec, Paper, WeightsRef
from hpm_robustbench.zoo.special import head_rule, weights_constants, weights_leftover, weights_parts

INDEX = "robustbench.json"
PUBLISHED_ONLY = "published_only.json"
_PAPER_FIELDS = {field.name for field in fields(Paper)}


def read_index() -> list[dict[str, Any]]:
    """Every entry of RobustBench's zoo, sorted by dataset, threat and name."""
    return _read(INDEX)


def read_published_only() -> list[dict[str, Any]]:
    """What RobustBench has published of models whose weights it does not have, in the same order."""
    return _read(PUBLISHED_ONLY)


def _read(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(files("hpm_robustbench.zoo").joinpath(name).read_text(encoding="utf-8"))
    return entries


@dataclass(frozen=True)
class PublishedEntry:
    """What RobustBench has published of a model, whether or not its weights can be had."""

    dataset: str
    threat: Threat
    name: str
    paper: Paper
    has_weights: bool


def published_entries() -> list[PublishedEntry]:
    """Every published entry, sorted by dataset, threat and name."""
    entries = [(entry, True) for entry in read_index()] + [(entry, False) for entry in read_published_only()]
    return sorted(
        (
            PublishedEntry(entry["dataset"], _threat(entry), entry["name"], _paper(entry), has_weights)
            for entry, has_weights in entries
        ),
        key=lambda entry: (entry.dataset, entry.threat.name, entry.name),
    )


def robustbench_specs() -> list[ModelSpec]:
    """A spec for each of them."""
    entries = read_index()
    kept: dict[str, list[str]] = {}
    for entry in entries:
        for source_id, place in zip(entry.get("gdrive", []), _places(entry), strict=True):
            kept.setdefault(source_id, []).append(place)
    return [_spec(entry, kept) for entry in entries]


def _places(entry: Mapping[str, Any]) -> list[str]:
    """Where RobustBench keeps each Google Drive file of an entry, below its model folder."""
    single, n_files = f"{entry['dataset']}/{entry['threat']}/{entry['name']}.pt", len(entry.get("gdrive", []))
    return [single] if n_files == 1 else [f"{single}_m{i}.pt" for i in range(n_files)]


def _spec(entry: Mapping[str, Any], kept: Mapping[str, Sequence[str]]) -> ModelSpec:
    """``kept``: by Google Drive id, where RobustBench keeps the file for each model that has it."""
    track = f"{entry['dataset']}/{entry['threat']}"
    if "upstream" in entry:
        weights = WeightsRef("upstream", (entry["upstream"],))
    else:
        own = _places(entry)
        shared = tuple(tuple(place for place in kept[i] if place not in own) for i in entry["gdrive"])
        weights = WeightsRef(
            "gdrive",
            tuple(entry["gdrive"]),
            cache=f"{track}/{entry['name']}.pt",
            shared=shared,
            parts=weights_parts(f"{track}/{entry['name']}"),
            leftover=weights_leftover(f"{track}/{entry['name']}"),
            constants=weights_constants(f"{track}/{entry['name']}"),
        )
    return ModelSpec(
        name=entry["name"],
        dataset=entry["dataset"],
        threat=_threat(entry),
        factory=f"robustbench:{track}/{entry.get('built_as', entry['name'])}",
        weights=weights,
        head=head_rule(f"{track}/{entry['name']}", entry.get("head")),
        paper=_paper(entry),
        preprocessing=entry.get("preprocessing"),
        n_params=entry["n_params"],
    )


def _threat(entry: Mapping[str, Any]) -> Threat:
    return parse_threat(entry["threat"], entry.get("eps"))


def _paper(entry: Mapping[str, Any]) -> Paper:
    return Paper(**{key: value for key, value in entry.items() if key in _PAPER_FIELDS})
