"""How the models that do not end in one linear layer are taken apart: ``heads.json``, by ``dataset/threat/name``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hpm_robustbench.zoo.spec import HeadRule


def head_rule(key: str, path: str | None) -> HeadRule:
    """The rule for one of RobustBench's entries; ``path`` is its last linear layer, if it has one."""
    rule = dict(_special().get(key, {}))
    return HeadRule(path=path, members=tuple(rule.pop("members", ())), **rule)


@lru_cache(maxsize=1)
def _special() -> Mapping[str, Mapping[str, Any]]:
    rules: dict[str, dict[str, Any]] = json.loads(
        files("hpm_robustbench.zoo").joinpath("heads.json").read_text(encoding="utf-8")
    )
    return rules
