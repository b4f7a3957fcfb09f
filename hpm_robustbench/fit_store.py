"""Keep what a fit took from the training images, so that no process passes them all through the network again.

    prototypes/<key>.safetensors

The key covers everything that the fit depends on; a file that does not match its own checksum is ignored and made
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.evaluation.identity import code_sha256, state_sha256
from hpm_robustbench.evaluation.progress import Progress
from hpm_robustbench.hpm.classifier import HPMClassifier
from hpm_robustbench.hpm.fitting import Fit, fit
from hpm_robustbench.ledger.atomic import write_atomic

log = logging.getLogger(__name__)

CODE = ("hpm",)
"""Where the code lies that prototypes depend on."""
_PROBES = 16


def fit_once(classifier: HPMClassifier, training: ExampleSet, batch_size: int, folder: Path) -> None:
    """Fit a classifier to its training images, or give it what an equal fit has left in ``folder``.

    Raises:
        StorageProblem: the folder cannot be written.
    """
    path = folder / f"{fit_key(classifier, training, batch_size)}.safetensors"
    kept = _read(path)
    if kept is None:
        with Progress("HPM", total=1) as progress:
            progress.begin(f"dataset prototypes of {len(training)} images, {batch_size} at a time")
            _write(path, fit(classifier, training.images, training.labels, batch_size, progress.tick))
        return
    classifier.set_prototypes(kept.prototypes.to(classifier.prototypes.device))
    classifier.tau.fill_(kept.tau)


def fit_key(classifier: HPMClassifier, training: ExampleSet, batch_size: int) -> str:
    """Hash of the network (its state and its behaviour), the images, the definition and the code that fits."""
    with torch.no_grad():
        embedding = classifier.embed(training.images[:_PROBES].to(classifier.prototypes.device))
    facts = {
        "network": state_sha256(classifier.backbone, classifier.fc),
        "training": training.fingerprint,
        "defence": classifier.config.to_json(),
        "batch_size": batch_size,
        "software": [torch.__version__, code_sha256(*CODE)],
    }
    behaviour = b"".join(part.cpu().contiguous().numpy().tobytes() for part in embedding)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + behaviour).hexdigest()[:16]


def _write(path: Path, found: Fit) -> None:
    tensors = {"prototypes": found.prototypes.contiguous(), "tau": torch.tensor(found.tau, dtype=torch.float64)}
    write_atomic(path, safetensors.torch.save(tensors, metadata={"sha256": _checksum(tensors)}))


def _read(path: Path) -> Fit | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("prototypes", "tau")}
            whole = (file.metadata() or {}).get("sha256") == _checksum(tensors)
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError) as error:
        log.warning("ignoring %s (%s); the prototypes are computed again", path, error)
        return None
    if not whole:
        log.warning("ignoring %s, which does not match its checksum; the prototypes are computed again", path)
        return None
    return Fit(tensors["prototypes"], tensors["tau"].item())


def _checksum(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()
