"""Build the bare network that a spec's factory names, before any weights."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from hpm_robustbench.errors import InvalidInput, UnknownName, UsageProblem
from hpm_robustbench.robustbench_compat import (
    adopt_tensors,
    import_robustbench,
    leave_training_everywhere,
    without_cuda_calls,
)
from hpm_robustbench.zoo.spec import ModelSpec


def build(spec: ModelSpec) -> nn.Module:
    """Construct a spec's network, in eval mode on the CPU; its weights are still random.

    Nothing is downloaded or printed, and torch's random state is left as it was. Every submodule is in eval mode, and
    every tensor that the network keeps moves with it to another device.

    Raises:
        UsageProblem: the factory does not exist or cannot be imported.
        InvalidInput: it fails, or returns something other than a ``torch.nn.Module``.
    """
    kind, _, target = spec.factory.partition(":")
    finders = {"python": _python_function, "robustbench": _robustbench_entry}
    if kind not in finders:
        raise UnknownName("kind of factory", kind, finders)
    construct = finders[kind](target)
    wanted = f"a torch.nn.Module from {target}()"
    try:
        with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()):
            network = construct()
    except (Exception, SystemExit) as error:  # someone else's code, which may be a script
        got = f"{type(error).__name__}: {error}"
        raise InvalidInput(wanted=wanted, got=got, next_step="make it work without arguments and on a CPU") from error
    if not isinstance(network, nn.Module):
        raise InvalidInput(
            wanted=wanted, got=f"a {type(network).__name__}", next_step="return the network from the factory"
        )
    network = network.to("cpu").eval()
    leave_training_everywhere(network)
    adopt_tensors(network)
    return network


def _python_function(target: str) -> Callable[[], object]:
    module_name, _, function_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # someone else's code, which may be a script
        raise UsageProblem(
            wanted=f"to import {module_name}",
            got=f"{type(error).__name__}: {error}",
            next_step="check its name, and put its folder on PYTHONPATH",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise UnknownName(f"function of {module_name}", function_name, public)
    return function  # type: ignore[no-any-return]


class Entry(NamedTuple):
    """An entry of RobustBench's zoo.

    ``facts`` is what its ``model_dicts`` say. Where the network is registered with timm, ``timm_name`` is its name
    there, ``address`` is where timm fetches its weights, and ``preprocessing`` says in RobustBench's way of naming what
    timm would do to an image.
    """

    facts: Mapping[str, Any]
    n_classes: int
    timm_name: str | None
    address: str | None
    preprocessing: str | None


def robustbench_entries() -> dict[str, Entry]:
    """Every entry of the installed RobustBench by ``dataset/threat/name``; nothing is built or downloaded."""
    import_robustbench()
    from robustbench.model_zoo import model_dicts  # noqa: PLC0415 - importable only now
    from robustbench.utils import DATASET_CLASSES  # noqa: PLC0415

    return {
        f"{dataset.value}/{threat.value}/{name}": Entry(
            facts, DATASET_CLASSES[dataset], *_in_timm(name, dataset.value, threat.value)
        )
        for dataset, threats in model_dicts.items()
        for threat, models in threats.items()
        for name, facts in models.items()
    }


def _in_timm(name: str, dataset: str, threat: str) -> tuple[str, str, str] | tuple[None, None, None]:
    """The name that RobustBench's ``load_model`` would ask timm for, and what timm holds for it, if timm knows it."""
    import timm  # noqa: PLC0415 - slow to import, and only after RobustBench has registered its networks

    timm_name = f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}"
    if not timm.is_model(timm_name):
        return None, None, None
    held = timm.get_pretrained_cfg(timm_name)
    side = held.input_size[1]
    bicubic = "Bicubic" if held.interpolation == "bicubic" else ""
    return timm_name, held.url, f"{bicubic}Res{math.floor(side / held.crop_pct)}Crop{side}"


def _robustbench_entry(target: str) -> Callable[[], object]:
    """Choose as RobustBench's ``load_model`` does: a registered timm name first, then the entry's own constructor.

    The constructors of timm entries are never called: they download, and most ask for names that timm does not know.
    """
    entries = robustbench_entries()
    if target not in entries:
        raise UnknownName("RobustBench entry", target, entries, next_step="Or install the RobustBench that has it.")
    entry = entries[target]
    if entry.timm_name is not None:
        import timm  # noqa: PLC0415

        return partial(timm.create_model, entry.timm_name, num_classes=entry.n_classes, pretrained=False)

    def construct() -> object:
        with without_cuda_calls():
            return entry.facts["model"]()

    return construct
