"""Read a checkpoint without trusting it, and put it into a network without guessing."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from torch import Tensor, nn

from hpm_robustbench.errors import IntegrityError, UnsafePickle, UsageProblem, first_line
from hpm_robustbench.robustbench_compat import with_newer_timm_names

READING = 1
"""To be raised whenever a file gives other tensors or names than before: earlier conversions are out of date then."""

_ZIP = b"PK\x03\x04"
_LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number that torch.save wrote before 1.6, within the first bytes of a file."""
_WRAPPERS = ("state_dict", "model", "last", "net")
_PAIR = ("model", "bn")
_MAX_WRAPPING = 4
_PREFIXES = ("module.", "model.")
_CONSTANTS = {"mu", "sigma", "mean", "std", "num_batches_tracked"}
_SHOWN = 3
_ASKED_FOR = re.compile(r"GLOBAL (?P<needed>[\w.]+)|but got <class '(?P<made>[\w.]+)'>")
"""What torch says of a name that nobody has allowed, and of a type that an allowed name makes (NumPy's numbers)."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU, under the names that the bare network gives them.

    ``.safetensors`` files and what ``torch.save`` writes are read. A state dict is taken out of a training
    checkpoint (``state_dict``, ``model``, ``last``, ``net``), and ``module.`` and ``model.`` are taken off the names
    when all of them begin so.

    Raises:
        UsageProblem: there is no such file, or it may not be read.
        IntegrityError: it is truncated, damaged, foreign, or holds something other than one state dict.
        UnsafePickle: it asks for more than tensors, and could run code; nothing of it was run.
    """
    if not path.is_file() or not os.access(path, os.R_OK):
        raise UsageProblem(wanted=f"a weights file at {path}", got="no readable file", next_step="check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _without_prefixes(_unwrap(content, path))


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    leftover: Sequence[str] = (),
    constants: Sequence[str] = (),
) -> None:
    """Put a state dict into a network, all of it or none.

    Only constants that the architecture brings along (normalisation buffers, BatchNorm's counters) may be missing.
    Only a second name of a tensor that the network takes may be left over, as where authors have put some of their
    layers into a list as well (Andriushchenko2020's ``model_preact_hl1``).

    Args:
        module: the network; unchanged if the state does not fit.
        state: as ``read_state_dict`` returns it; a prefix that was taken off is put back if the network wants it.
        source: where the state comes from, for the message.
        leftover: last parts of names that belong to training alone, see ``WeightsRef``.
        constants: last parts of names that may be missing too, see ``WeightsRef``.

    Raises:
        IntegrityError: a tensor is missing, left over or of another shape.
    """
    state = {key: tensor for key, tensor in state.items() if key.rpartition(".")[2] not in leftover}
    problems = _misfits(module, state, constants)
    fitting = next((form for form in _forms(state) if not _misfits(module, form, constants)), None)
    if fitting is None:
        raise IntegrityError(
            wanted=f"weights for {type(module).__name__} in {source}",
            got="; ".join(problems),
            next_step="use the file that belongs to this architecture",
        )
    module.load_state_dict(dict(fitting), strict=False)


def _forms(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """What a state dict may mean: as it is, under a prefix that was taken off, or as an older library wrote it."""
    for form in (state, with_newer_timm_names(state)):
        yield form
        for prefix in _PREFIXES:
            yield {f"{prefix}{key}": tensor for key, tensor in form.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise _broken(path, f"a file that safetensors cannot read ({first_line(error)})") from error
    return tensors


def check_container(path: Path) -> None:
    """See that a file is whole and such as ``torch.save`` writes, without reading what it holds.

    Raises:
        IntegrityError: it is truncated, damaged or foreign.
    """
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(_ZIP):
        _check_zip(path)
    elif _LEGACY not in head:
        kind = "a web page" if head.lstrip().startswith(b"<") else "neither a torch archive nor a safetensors file"
        raise _broken(path, kind if head else "an empty file")


def _read_torch(path: Path) -> Any:
    check_container(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about odd pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # hostile bytes can make an unpickler raise anything
        raise _refused(path, error) from error


def _check_zip(path: Path) -> None:
    """See that an archive is as torch.save writes it, and undamaged; torch.load looks at neither."""
    try:
        with zipfile.ZipFile(path) as archive:
            odd = _oddity(archive.infolist())
            damaged = None if odd else archive.testzip()
    except Exception as error:
        raise _broken(path, f"a truncated or damaged archive ({error})") from error
    if odd:
        raise _broken(path, f"an archive that torch.save would not write: {odd}")
    if damaged is not None:
        raise _broken(path, f"an archive whose member {damaged} does not match its checksum")


def _oddity(members: Sequence[zipfile.ZipInfo]) -> str | None:
    """What two readers could read differently, would unpack to more than is there, or leads out of the archive."""
    names = [member.filename for member in members]
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/") or "\\" in name]
    if outside:
        return f"a member called {outside[0][:80]!r}"
    if len(set(names)) < len(names):
        return "two members of one name"
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        return "TorchScript, which holds code"
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    return f"the compressed member {packed[0][:80]!r}" if packed else None


def _broken(path: Path, got: str) -> IntegrityError:
    return IntegrityError(
        wanted=f"a checkpoint in {path}", got=got, next_step="remove that file and fetch or export it again"
    )


def _refused(path: Path, error: Exception) -> IntegrityError:
    asked = _ASKED_FOR.search(str(error))
    if asked is None:
        said = f"{type(error).__name__}: {first_line(error)}"
        return _broken(path, f"a file that cannot be read as plain tensors ({said})")
    needed = _unsafe_globals(path) or [asked["needed"] or asked["made"]]
    convert = "convert its state dict to .safetensors with a tool and in a place you trust, and use that file"
    allow = "add " + " ".join(f"--allow-global {name}" for name in needed)
    never = "is blocked" in str(error)
    return UnsafePickle(
        wanted=f"plain tensors in {path}",
        got=f"a pickle that needs {', '.join(needed)}, which could run code",
        next_step=convert if never else f"{convert}; or, if you know these to be harmless whatever they get, {allow}",
    )


def _unsafe_globals(path: Path) -> list[str]:
    """All that a pickle asks for beyond tensors; empty where torch cannot tell without reading it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # hostile bytes, or the format of torch before 1.6
        return []


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(_MAX_WRAPPING):
        if _is_state_dict(content):
            return dict(content)
        if pair := _side_by_side(content):
            return pair
        inner = _inside(content)
        if len(inner) != 1:
            break
        content = inner[0]
    keys = sorted(map(str, content))[:8] if isinstance(content, Mapping) else []
    raise IntegrityError(
        wanted=f"one state dict in {path}, bare or under {', '.join(_WRAPPERS)}",
        got=f"a {type(content).__name__}" + (f" with {', '.join(keys)}" if keys else ""),
        next_step="save the network's state_dict() alone, and use that file",
    )


def _is_state_dict(content: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _inside(content: Any) -> list[Any]:
    """What may be the state dict within a training checkpoint."""
    if isinstance(content, Mapping):
        return [content[key] for key in _WRAPPERS if isinstance(content.get(key), (Mapping, list))]
    return content if isinstance(content, list) else []


def _side_by_side(content: Any) -> dict[str, Tensor] | None:
    """The state dicts of two networks that belong together, as RobustBench's Bai2023Improving keeps a policy."""
    if isinstance(content, Mapping) and all(_is_state_dict(content.get(name)) for name in _PAIR):
        return {f"{name}.{key}": tensor for name in _PAIR for key, tensor in content[name].items()}
    return None


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key[len(prefix) :]: tensor for key, tensor in state.items()}
    return state


def _is_second_name(key: str, state: Mapping[str, Tensor], expected: Collection[str]) -> bool:
    """Whether a tensor is one that the network takes under a name with the same last part."""
    last = key.rpartition(".")[2]
    taken = (other for other in expected if other in state and other.rpartition(".")[2] == last)
    return any(torch.equal(state[key], state[other]) for other in taken)


def _misfits(module: nn.Module, state: Mapping[str, Tensor], constants: Sequence[str]) -> list[str]:
    """In words, what keeps ``state`` from being the whole state of ``module``."""
    expected = module.state_dict()
    learned = dict(module.named_parameters(remove_duplicate=False))
    given = {key for key in expected if key.rpartition(".")[2] in (constants if key in learned else _CONSTANTS)}
    missing = [key for key in expected if key not in state and key not in given]
    unexpected = [key for key in state if key not in expected and not _is_second_name(key, state, expected)]
    misshapen = [
        f"{key} {list(state[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    return [
        f"{len(keys)} {what} ({', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''})"
        for what, keys in groups.items()
        if keys
    ]
