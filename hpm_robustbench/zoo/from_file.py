"""A model of your own as a spec: a function that builds the network, and a file with its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from hpm_robustbench.errors import UnknownName, UsageProblem
from hpm_robustbench.threat import Threat
from hpm_robustbench.zoo.hub_file import HubFile
from hpm_robustbench.zoo.spec import HeadRule, ModelSpec, Paper, WeightsRef

_FACTORY = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", re.ASCII)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def spec_from_factory(
    name: str,
    factory: str,
    weights: str | Path,
    dataset: str,
    threat: Threat,
    head: str | None = None,
    paper: Paper | None = None,
) -> ModelSpec:
    """Describe a model of your own.

    Args:
        name: under which it appears on cards and boards.
        factory: ``package.module:function``; the function takes no arguments and returns the network.
        weights: see ``weights_from_text``.
        dataset: what it classifies.
        threat: what it is to be robust against.
        head: name of its last linear layer, if it cannot be found.
        paper: facts about its origin.

    Raises:
        UsageProblem: the name or the factory is not written as it should be.
    """
    return ModelSpec(
        name=name,
        dataset=dataset,
        threat=threat,
        factory=factory_from_text(factory),
        weights=weights_from_text(str(weights)),
        head=HeadRule(head),
        paper=paper or Paper(),
    )


def factory_from_text(text: str) -> str:
    """A spec's factory from ``package.module:function``.

    Raises:
        UsageProblem: it is not written so.
    """
    if not _FACTORY.fullmatch(text):
        raise UsageProblem(
            wanted="a factory written as package.module:function",
            got=repr(text[:160]),
            next_step="name an importable function that takes no arguments and returns the network",
        )
    return f"python:{text}"


def weights_from_text(text: str) -> WeightsRef:
    """Weights as a person names them: ``hf:owner/name@revision:file``, or the path of a local file.

    Files of several members are separated by commas: ``hf:owner/name@revision:one.safetensors,two.safetensors``, or
    ``one.pt,two.pt`` unless there is one local file of that name. A local file is a safetensors file, or a state dict
    that ``torch.save`` wrote.

    Raises:
        UsageProblem: a file on the Hub that is not written as one; an address; or ``rb:``, which stands for no file by
            itself.
    """
    if text.startswith("rb:"):
        raise UsageProblem(
            wanted="weights that are a file",
            got=f"{text[:160]!r}, which stands for RobustBench's own ones",
            next_step="name a model of RobustBench's with --model, or write file:rb:... for a local file of that name",
        )
    if text.startswith("hf:"):
        written, *others = text.removeprefix("hf:").split(",")
        first = HubFile.parse(written)
        whole = [other if "@" in other else f"{first.repo}@{first.revision}:{other}" for other in others]
        return WeightsRef("hf", (str(first), *(str(HubFile.parse(other)) for other in whole)))
    if _ADDRESS.match(text):
        raise UsageProblem(
            wanted="weights that are a local file, or on the Hub",
            got=f"the address {text[:160]!r}",
            next_step="download it yourself and name the file; or write hf:owner/name@revision:file",
        )
    path = text.removeprefix("file:")
    return WeightsRef("file", (path,) if Path(path).exists() else tuple(path.split(",")))


def paper_from_json(about: Mapping[str, Any], source: str) -> Paper:
    """Read facts about a model's origin.

    Args:
        about: facts by the field names of ``Paper``.
        source: where they are written, for messages.

    Raises:
        UnknownName: a key that is no field of ``Paper``.
        UsageProblem: a value of the wrong type.
    """
    known = [field.name for field in fields(Paper)]
    types = get_type_hints(Paper)
    for key, value in about.items():
        if key not in known:
            raise UnknownName(f"fact about a model in {source}", key, known)
        # True is an int to isinstance, but not a number of forward passes.
        if not isinstance(value, types[key]) or (types[key] is int and isinstance(value, bool)):
            raise UsageProblem(
                wanted=f"{key} of type {getattr(types[key], '__name__', None) or types[key]} in {source}",
                got=repr(value),
                next_step='write accuracies as text in percent, like "53.08"' if key.endswith("acc") else "correct it",
            )
    return Paper(**about)
