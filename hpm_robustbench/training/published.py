"""A fine-tuned classifier as it is published, and the way back to what its training has left.

model.safetensors    the classifier, perhaps without a backbone that is the base model's own
training.json        what stands in ``classifier.safetensors`` beside the tensors, word for word
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from hpm_robustbench.errors import HpmBenchError, InvalidInput, UsageProblem, first_line
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.config import HPMConfig
from hpm_robustbench.knobs import defence_told
from hpm_robustbench.training.checkpoint import Saved, checked
from hpm_robustbench.training.header import CLASSIFIER, RECORD, TENSORS, read_record, read_told
from hpm_robustbench.training.recipe import Tuning

log = logging.getLogger(__name__)

_BACKBONE, _OF_ITS_BATCHES = "backbone.", "reference_"


class Asked(NamedTuple):
    """What a published training was asked for, beyond its options."""

    defence: HPMConfig
    seed: int


def record(folder: Path) -> bytes:
    """What to publish of a finished training beside its tensors; its folder may be a publication itself.

    Raises:
        UsageProblem: it is not there any more.
    """
    told = read_told(folder / CLASSIFIER) or read_record(folder)
    if told is None:
        raise UsageProblem(
            wanted=f"{CLASSIFIER} or {RECORD} in {folder}",
            got="neither, though one was there before",
            next_step="bring it back, or repeat the training",
        )
    return (json.dumps(told, indent=1) + "\n").encode()


def belongs(training: bytes, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a record is of these tensors, all of a classifier's."""
    try:
        checked(_of_training(tensors), json.loads(training))
    except (ValueError, KeyError, TypeError):
        return False
    return True


def _of_training(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those that a classifier has only where it answers beside fixed images."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_OF_ITS_BATCHES)}


def publications(place: Path, tuning: Tuning) -> dict[Path, dict[str, Any]]:
    """Published trainings of that name, and what is told of them: ``place`` itself, or those below it."""
    folders = [place] if (place / RECORD).exists() else [file.parent for file in _below(place)]
    told = {folder: read_record(folder) for folder in folders}
    return {folder: each for folder, each in told.items() if each and _recipe(each["facts"]).get("name") == tuning.name}


def _below(place: Path) -> list[Path]:
    """By a name alone, or by owner and name."""
    return [*sorted(place.glob(f"*/{RECORD}")), *sorted(place.glob(f"*/*/{RECORD}"))]


def asked_of(folder: Path) -> Asked:
    """What a published training was asked for; a control may have changed the definition since.

    Raises:
        InvalidInput: its record does not tell.
    """
    told = read_record(folder)
    facts = {} if told is None else told["facts"]
    try:
        knobs, seed = facts["asked"]["knobs of HPM"], _recipe(facts)["seed"]
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"the seed {seed!r:.40}")
        return Asked(defence_told(knobs, RECORD), seed)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, HpmBenchError) as error:
        raise InvalidInput(
            wanted=f"{folder / RECORD} that tells what its training was asked for",
            got=f"{type(error).__name__}: {first_line(error)}",
            next_step="install the version of hpm-robustbench that made it, or ask its publisher to push it again",
        ) from error


def _recipe(facts: dict[str, Any]) -> dict[str, Any]:
    """Name, seed and knobs of the training that a stranger's facts tell of."""
    asked = facts.get("asked")
    recipe = asked.get("recipe, knobs or seed") if isinstance(asked, dict) else None
    return recipe if isinstance(recipe, dict) else {}


def read_published(folder: Path, base: HPMClassifier) -> Saved | None:
    """What a training has left, from its publication; None if it is not whole.

    Args:
        folder: holds both files.
        base: the classifier before it was fine-tuned; lends its backbone where none was published.
    """
    try:
        tensors = _of_training(safetensors.torch.load_file(folder / TENSORS))
        if not any(name.startswith(_BACKBONE) for name in tensors):
            lent = {name: tensor.cpu() for name, tensor in base.state_dict().items() if name.startswith(_BACKBONE)}
            tensors |= lent
        return checked(tensors, read_record(folder) or {})
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        log.warning("ignoring %s (%s)", folder, first_line(error))
        return None
