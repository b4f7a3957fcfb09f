"""The process that reads a pickle: ``python -m hpm_robustbench.weights.convert_process``; see ``conversion``.

Its last line of output, if it fails, is an error as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from hpm_robustbench.errors import HpmBenchError, IntegrityError, StorageProblem, UsageProblem
from hpm_robustbench.state_dict import read_state_dict

_MOST_GROWTH = 4
"""A file may hold a tensor once that a state dict names several times."""


def main(original: str, destination: str, memory: str, *allow_globals: str) -> int:
    """Write the tensors of ``original`` to ``destination``; 0 if that went well."""
    try:
        allowed: list[Any] = [_find(name) for name in allow_globals]
        _bound_memory(int(memory))
        with torch.serialization.safe_globals(allowed):
            state = read_state_dict(Path(original))
        _check_plain(state, Path(original))
        _write(state, Path(destination))
    except HpmBenchError as error:
        said = {"wanted": error.wanted, "got": error.got, "next_step": error.next_step}
        sys.stdout.write(json.dumps({"error": type(error).__name__, **said}) + "\n")
        return error.exit_code
    return 0


def _find(name: str) -> tuple[Callable[..., Any], str]:
    """An importable class or function, and the name by which a pickle may ask for it."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute), name
    except (AttributeError, ImportError, ValueError) as error:
        raise UsageProblem(
            wanted=f"{name} to allow", got=str(error), next_step="write --allow-global package.module.Name"
        ) from error


def _bound_memory(most: int) -> None:
    """Let this process grow by ``most`` bytes and no further, where the system can see to it."""
    if sys.platform != "linux":
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + most, used + most))


def _check_plain(state: Mapping[str, Tensor], original: Path) -> None:
    """See that all tensors are dense, and together not much larger than their file."""
    size = original.stat().st_size
    odd = [name for name, tensor in state.items() if tensor.layout is not torch.strided or tensor.is_quantized]
    unpacked = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if odd or unpacked > _MOST_GROWTH * size:
        raise IntegrityError(
            wanted=f"plain tensors in {original}",
            got=f"sparse or quantized {odd[0]}" if odd else f"{unpacked} bytes of tensors from a file of {size} bytes",
            next_step="do not use that file; save the network's state_dict() alone, with dense tensors of its own",
        )


def _write(state: Mapping[str, Tensor], destination: Path) -> None:
    """Each tensor gets memory of its own; safetensors knows no sharing."""
    own = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    try:
        safetensors.torch.save_file(own, destination)
        destination.chmod(0o644)  # whoever shares the folder may read it
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageProblem(
            wanted=f"to write {destination}",
            got=f"{type(error).__name__}: {error}",
            next_step="free some space, or name another folder with --model_dir",
        ) from error


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
