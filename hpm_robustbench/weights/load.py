"""From a spec to a network with its weights: locate, convert once, load strictly."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from hpm_robustbench.architectures import build
from hpm_robustbench.errors import IntegrityError, InvalidInput, UnsafePickle
from hpm_robustbench.state_dict import load_into
from hpm_robustbench.weights.converted import read_tensors
from hpm_robustbench.weights.locate import Original, locate
from hpm_robustbench.weights.transfer import Fetcher
from hpm_robustbench.weights.trust import STRICT, Trust
from hpm_robustbench.zoo.spec import ModelSpec, Part, WeightsRef

log = logging.getLogger(__name__)

_OWN = ("file", "package")
"""Sources that nobody else can change."""


class Loaded(NamedTuple):
    """A network with its weights, in eval mode on the CPU, and the sha256 of each file they came from."""

    model: nn.Module
    sha256: tuple[str, ...]


def load_weights(
    spec: ModelSpec,
    model_dir: Path,
    fetcher: Fetcher | None = None,
    trust: Trust = STRICT,
    network: nn.Module | None = None,
) -> Loaded:
    """Build a spec's network and put its weights into it, strictly.

    Args:
        spec: which model.
        model_dir: where checkpoints lie; see the package.
        fetcher: brings what is not there yet; by default the client that fits the source.
        trust: what is believed of files from elsewhere.
        network: the bare network, if it is not to be built as the spec says.

    Raises:
        HpmBenchError: see ``build``, ``locate``, ``read_tensors`` and ``load_into``.
    """
    originals = locate(spec, model_dir, fetcher, trust)
    unpinned = [o for o in originals if not o.pinned and o.locator.partition(":")[0] not in _OWN]
    _tell_unpinned(unpinned)
    try:
        return assemble(spec, originals, model_dir, trust, network)
    except UnsafePickle:
        raise
    except IntegrityError as error:
        raise _with_what_stays(error, [o for o in unpinned if not o.locator.startswith("hf:")]) from error


def assemble(
    spec: ModelSpec, originals: Sequence[Original], model_dir: Path, trust: Trust, network: nn.Module | None = None
) -> Loaded:
    """Put the tensors of located files into a spec's network; see ``load_weights``."""
    states = [read_tensors(original.path, original.checksum, model_dir, trust) for original in originals]
    model = build(spec) if network is None else network
    fill(model, spec.weights, states, [str(original.path) for original in originals])
    return Loaded(model, tuple(original.checksum.sha256 for original in originals))


def fill(
    model: nn.Module, reference: WeightsRef, states: Sequence[Mapping[str, Tensor]], sources: Sequence[str]
) -> None:
    """Put the state dicts of a checkpoint's files into the network that they belong to, strictly.

    Args:
        model: as ``build`` returns it.
        reference: says what each file holds.
        states: one for each file, as ``read_state_dict`` returns it.
        sources: where each comes from, for messages.

    Raises:
        InvalidInput: the network does not consist of so many parts.
        IntegrityError: something learned is in no file, or a file does not fit its part.
    """
    parts = _parts(model, reference)
    _check_covered(model, parts, reference)
    for part, state, source in zip(parts, states, sources, strict=True):
        load_into(part, state, source, reference.leftover, reference.constants)


def _tell_unpinned(unpinned: Sequence[Original]) -> None:
    """One line about files that somebody else may have changed since they were published."""
    if unpinned:
        log.info(
            "not pinned: %s; `hpm-bench weights pin` holds a checkpoint to what it is now",
            "; ".join(f"{original.locator} with sha256 {original.checksum.sha256}" for original in unpinned),
        )


def _with_what_stays(error: IntegrityError, unpinned: Sequence[Original]) -> IntegrityError:
    """The same, and how to have a file that does not fit fetched again: what is there is not asked for."""
    if not unpinned:
        return error
    paths = " and ".join(str(original.path) for original in unpinned)
    next_step = f"{error.next_step}; to have it fetched again, remove {paths} and repeat the command"
    return IntegrityError(wanted=error.wanted, got=error.got, next_step=next_step)


def _parts(model: nn.Module, reference: WeightsRef) -> Sequence[nn.Module]:
    """What each file holds: the network, one member of an ensemble, or what the spec says."""
    n_files = len(reference.locators)
    if n_files == 1 and not reference.parts:
        return [model]
    members = getattr(model, "models", None)
    parts = [_part(model, part) for part in reference.parts] or (
        list(members) if isinstance(members, nn.ModuleList) else []
    )
    if len(parts) != n_files:
        raise InvalidInput(
            wanted=f"a network of {n_files} parts, one for each weights file",
            got=f"a {type(model).__name__}" + (f" of {len(parts)}" if parts else ""),
            next_step=f"give {len(parts) or 1} files, separated by commas, or choose another model",
        )
    return parts


def _check_covered(model: nn.Module, parts: Sequence[nn.Module], reference: WeightsRef) -> None:
    """See that nothing learned stays random: constants that the architecture sets may lie outside the parts."""
    covered = {id(parameter) for part in parts for parameter in part.parameters()}
    outside = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in covered]
    if outside:
        raise IntegrityError(
            wanted=f"weights for all of {type(model).__name__} in {reference}",
            got=f"none for {', '.join(outside[:3])}{', ...' if len(outside) > 3 else ''}",
            next_step="give one file with the whole state dict",
        )


def _part(model: nn.Module, part: Part) -> nn.Module:
    if isinstance(part, str):
        return model.get_submodule(part)
    return nn.ModuleDict({name: model.get_submodule(path) for name, path in part})
