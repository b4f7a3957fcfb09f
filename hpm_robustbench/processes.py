"""Other Python processes: they import what this one imports, and nothing else from the folder that they start in."""

from __future__ import annotations

import sys
from pathlib import Path


def python_command(module: str) -> list[str]:
    """The beginning of a command line that runs a module.

    ``python -m`` would look into the current folder first, where files of anybody may lie, and where a checkout may
    differ from the package that this process has imported.
    """
    path = [str(Path(entry).resolve()) for entry in sys.path]
    run = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {run}"]


def ended(code: int, stderr: bytes) -> str:
    """How a process ended: by which signal, or with which code and last words."""
    if code < 0:
        return f"signal {-code}"
    lines = stderr.decode(errors="replace").splitlines() or [""]
    return f"code {code}: {lines[-1][:160]}"
