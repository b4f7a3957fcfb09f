"""The tensors of a checkpoint as safetensors, made once by a process of its own.

    converted/<sha256 of the original>.safetensors    the tensors, under the names that ``read_state_dict`` gives them
    converted/<sha256 of the original>.json           what they hash to, how the original was read, what it might use

The second file is written last; without it, or if it does not fit, the first one counts for nothing.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path

from torch import Tensor

from hpm_robustbench.ledger.atomic import write_atomic
from hpm_robustbench.state_dict import READING, read_state_dict
from hpm_robustbench.weights.conversion import convert
from hpm_robustbench.weights.locks import locked, unwritable
from hpm_robustbench.weights.trust import Trust, measure
from hpm_robustbench.zoo.checksums import Checksum

log = logging.getLogger(__name__)


def read_tensors(original: Path, checksum: Checksum, model_dir: Path, trust: Trust) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU; a pickle is converted first, unless that was done before.

    Where ``model_dir`` cannot be written, the conversion is made for this time only.

    Raises:
        IntegrityError: it is no checkpoint, or damaged; see ``convert``.
        StorageProblem: the converted file cannot be written.
    """
    if original.suffix == ".safetensors":
        return read_state_dict(original)
    kept = _kept(checksum, model_dir)
    if _is_whole(kept):
        return read_state_dict(kept)
    if _is_writable(kept.parent):
        return read_state_dict(convert_once(original, checksum, model_dir, trust))
    log.info("%s cannot be written, so %s is converted anew each time", model_dir, original.name)
    with tempfile.TemporaryDirectory(prefix="hpm-bench-") as folder:
        state = read_state_dict(convert_once(original, checksum, Path(folder), trust))
        return {name: tensor.clone() for name, tensor in state.items()}


def convert_once(original: Path, checksum: Checksum, model_dir: Path, trust: Trust) -> Path:
    """The safetensors file with the tensors of a pickle; see ``read_tensors``."""
    kept = _kept(checksum, model_dir)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept):
            if not _is_whole(kept):
                _convert_beside(original, checksum, kept, trust)
    except OSError as error:
        raise unwritable(kept, error) from error
    return kept


def _kept(checksum: Checksum, model_dir: Path) -> Path:
    return model_dir / "converted" / f"{checksum.sha256}.safetensors"


def _convert_beside(original: Path, checksum: Checksum, kept: Path, trust: Trust) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".converting-") as folder:
        made = Path(folder) / kept.name
        convert(original, made, trust.allow_globals)
        facts = {
            "sha256": measure(made).sha256,
            "reading": READING,
            "original": {"size": checksum.size, "sha256": checksum.sha256},
            "allowed_globals": sorted(trust.allow_globals),
        }
        made.replace(kept)
    write_atomic(kept.with_suffix(".json"), json.dumps(facts, indent=1) + "\n")


def _is_whole(kept: Path) -> bool:
    """Whether a converted file is there, is still what was written, and what would be written today."""
    try:
        facts = json.loads(kept.with_suffix(".json").read_bytes())
        whole = isinstance(facts, dict) and facts.get("sha256") == measure(kept).sha256
    except OSError:
        return False
    except ValueError:
        whole = False
    if not whole:
        log.warning("%s is damaged; it is made again", kept)
    return whole and facts.get("reading") == READING


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
