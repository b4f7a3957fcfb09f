"""A fine-tuned classifier as it is published, and the way back to what its training has left.

model.safetensors    the classifier, perhaps without a backbone that is the base model's own
training.json        what stands in ``classifier.safetensors`` beside the tensors, word for word
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from hpm_robustbench.errors import HpmBenchError, InvalidInput
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.training.checkpoint import Saved, checked
from hpm_robustbench.training.header import CLASSIFIER, RECORD, TENSORS, read_facts, read_told
from hpm_robustbench.training.recipe import Tuning

log = logging.getLogger(__name__)

_DEPTHS = ("", "*/", "*/*/")
"""Of a publication in a folder: it is that folder itself, lies in it, or lies there by its owner and name."""
_BACKBONE, _OF_ITS_BATCHES = "backbone.", "reference_"


def record(folder: Path) -> bytes:
    """What to publish of a finished training beside its tensors; its folder may be a publication itself."""
    told = read_told(folder / CLASSIFIER) or read_told(folder / RECORD)
    assert told is not None, f"no finished training in {folder}"
    return (json.dumps(told, indent=1) + "\n").encode()


def publications(place: Path, tuning: Tuning) -> dict[Path, dict[str, Any]]:
    """Published trainings of that name at or below ``place``, and what is told of them."""
    records = [file for depth in _DEPTHS for file in sorted(place.glob(depth + RECORD))]
    told = {file.parent: read_facts(file) for file in records}
    return {folder: facts for folder, facts in told.items() if facts is not None and _name(facts) == tuning.name}


def knobs_before(folder: Path) -> HPMConfig:
    """The definition of HPM that a published training was asked for; a control has changed it.

    Raises:
        InvalidInput: its record tells of none.
    """
    facts = read_facts(folder / RECORD) or {}
    try:
        return HPMConfig(**facts["asked"]["knobs of HPM"])
    except (KeyError, TypeError, HpmBenchError) as error:
        raise InvalidInput(
            wanted=f"{folder / RECORD} that tells what its training was asked for",
            got=f"{type(error).__name__}: {error}",
            next_step="ask its publisher to push it again",
        ) from error


def _name(facts: dict[str, Any]) -> object:
    try:
        return facts["asked"]["recipe, knobs or seed"]["name"]
    except (KeyError, TypeError):
        return None


def read_published(folder: Path, base: HPMClassifier) -> Saved | None:
    """What a training has left, from its publication; None if it is not whole.

    Args:
        folder: holds both files.
        base: the classifier before it was fine-tuned; lends its backbone where none was published.
    """
    try:
        tensors = safetensors.torch.load_file(folder / TENSORS)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OF_ITS_BATCHES)}
        if not any(name.startswith(_BACKBONE) for name in tensors):
            lent = {name: tensor.cpu() for name, tensor in base.state_dict().items() if name.startswith(_BACKBONE)}
            tensors |= lent
        return checked(tensors, read_told(folder / RECORD) or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        log.warning("ignoring %s (%s)", folder, error)
        return None
