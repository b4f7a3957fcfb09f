"""Which images: example sets, where they come from, and the formats they are read from.

Names are resolved on first use, so that ``hpm_robustbench.data.known`` can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpm_robustbench.data.corrupted import CorruptedSource, corrupted_folder, open_corrupted
    from hpm_robustbench.data.examples import DataSource, ExampleSet
    from hpm_robustbench.data.registry import holds_clean, open_dataset
    from hpm_robustbench.data.selection import select

__all__ = [
    "CorruptedSource",
    "DataSource",
    "ExampleSet",
    "corrupted_folder",
    "holds_clean",
    "open_corrupted",
    "open_dataset",
    "select",
]

_HOMES = {
    "CorruptedSource": "corrupted",
    "DataSource": "examples",
    "ExampleSet": "examples",
    "corrupted_folder": "corrupted",
    "holds_clean": "registry",
    "open_corrupted": "corrupted",
    "open_dataset": "registry",
    "select": "selection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
