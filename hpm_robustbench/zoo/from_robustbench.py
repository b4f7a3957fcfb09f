"""RobustBench's zoo as specs, from ``robustbench.json``: listing it takes no RobustBench and no torch.

``make_index`` writes the index, and says what it is made of. ``built_as`` names another entry with the same network,
for an entry whose own constructor downloads; ``preprocessing`` ``timm`` stands for the configuration that timm holds
for the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hpm_robustbench.threat import parse_threat
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec, Paper, WeightsRef

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


@lru_cache(maxsize=1)
def read_heads() -> Mapping[str, Mapping[str, Any]]:
    """How the models that do not end in one linear layer are taken apart, by ``dataset/threat/name``."""
    rules: dict[str, dict[str, Any]] = json.loads(
        files("hpm_robustbench.zoo").joinpath("heads.json").read_text(encoding="utf-8")
    )
    return rules


def robustbench_specs() -> list[ModelSpec]:
    """A spec for each of them."""
    return [_spec(entry) for entry in read_index()]


def _spec(entry: Mapping[str, Any]) -> ModelSpec:
    track = f"{entry['dataset']}/{entry['threat']}"
    if "upstream" in entry:
        weights = WeightsRef("upstream", (entry["upstream"],))
    else:
        weights = WeightsRef("gdrive", tuple(entry["gdrive"]), cache=f"{track}/{entry['name']}.pt")
    return ModelSpec(
        name=entry["name"],
        dataset=entry["dataset"],
        threat=parse_threat(entry["threat"], entry.get("eps")),
        factory=f"robustbench:{track}/{entry.get('built_as', entry['name'])}",
        weights=weights,
        head=_head(f"{track}/{entry['name']}", entry),
        paper=Paper(**{key: value for key, value in entry.items() if key in _PAPER_FIELDS}),
        preprocessing=entry.get("preprocessing"),
        n_params=entry["n_params"],
    )


def _head(key: str, entry: Mapping[str, Any]) -> HeadRule:
    rule = dict(read_heads().get(key, {}))
    return HeadRule(path=entry.get("head"), members=tuple(rule.pop("members", ())), **rule)
