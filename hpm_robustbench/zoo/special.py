"""How the models that do not end in one linear layer are put together and taken apart: ``special.json``.

Its keys are ``dataset/threat/name``; ``parts`` says what each of several weights files holds, ``leftover`` what
training left in them, ``constants`` what they may lack, the rest is a ``HeadRule``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from hpm_robustbench.zoo.spec import HeadRule, Part

_OF_WEIGHTS = ("parts", "leftover", "constants")


def head_rule(key: str, path: str | None) -> HeadRule:
    """The rule for one of RobustBench's entries; ``path`` is its last linear layer, if it has one."""
    rule = {name: value for name, value in _special().get(key, {}).items() if name not in _OF_WEIGHTS}
    return HeadRule(path=path, members=tuple(rule.pop("members", ())), **rule)


def weights_parts(key: str) -> tuple[Part, ...]:
    """What each weights file of an entry holds, where it is not the network or an ensemble's member."""
    parts = _special().get(key, {}).get("parts", ())
    return tuple(part if isinstance(part, str) else tuple(sorted(part.items())) for part in parts)


def weights_leftover(key: str) -> tuple[str, ...]:
    """What an entry's files hold beyond the network, by the last part of names; see ``WeightsRef``."""
    return tuple(_special().get(key, {}).get("leftover", ()))


def weights_constants(key: str) -> tuple[str, ...]:
    """What an entry's files may lack, by the last part of names; see ``WeightsRef``."""
    return tuple(_special().get(key, {}).get("constants", ()))


@lru_cache(maxsize=1)
def _special() -> Mapping[str, Mapping[str, Any]]:
    rules: dict[str, dict[str, Any]] = json.loads(
        files("hpm_robustbench.zoo").joinpath("special.json").read_text(encoding="utf-8")
    )
    return rules
