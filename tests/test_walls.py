"""The walls of the house, read from its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hpm_robustbench
from hpm_robustbench import fit_store
from hpm_robustbench.evaluation import identity
from hpm_robustbench.training import finetuned

PACKAGE = Path(hpm_robustbench.__file__).parent
NAME = "hpm_robustbench"
MODULES = {
    ".".join([NAME, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TORCH_FREE = (
    *("errors", "threat", "cli", "commands", "report", "zoo", "ledger", ""),
    *("hpm.config", "data.known", "training.recipe", "training.header", "training.status"),
)
FRONT = ("training", "hub", "case", "pipeline", "planning", "images", "run_options")
"""What only the line from a spec to a card, and its callers, may use."""
HEAVY = ("torch", "torchvision", "robustbench", "pyautoattack", "autoattack", "timm", "jaxtyping")


def imports_of(module: str, *, lazy: bool = True) -> set[str]:
    """Modules that a file imports; without ``lazy`` only those imported when it is, outside TYPE_CHECKING."""
    tree = ast.parse(MODULES[module].read_text())
    nodes: list[ast.stmt] = list(tree.body) if not lazy else [n for n in ast.walk(tree) if isinstance(n, ast.stmt)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(module: str, *rooms: str) -> bool:
    return any(module == f"{NAME}.{room}".rstrip(".") or module.startswith(f"{NAME}.{room}.") for room in rooms)


def reach(module: str) -> set[str]:
    """Our own modules that importing ``module`` imports, transitively."""
    seen, waiting = set(), [module]
    while waiting:
        current = waiting.pop()
        if current in seen or current not in MODULES:
            continue
        seen.add(current)
        waiting += imports_of(current, lazy=False)
    return seen


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, *TORCH_FREE)])
def test_the_ledger_the_zoo_and_the_door_never_reach_torch(module: str) -> None:
    heavy = {name for m in reach(module) for name in imports_of(m, lazy=False) if name.split(".")[0] in HEAVY}
    assert heavy == set()


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("hpm", ("surrogates", "attacks", "evaluation", "ledger", "zoo", "data", "load", "weights", *FRONT)),
        ("surrogates", ("attacks", "evaluation", "ledger", "zoo", "data", "load", "weights", *FRONT)),
        ("attacks", ("evaluation", "zoo", "load", "weights", "data", *FRONT)),
        ("ledger", ("hpm", "surrogates", "attacks", "evaluation", "data", "load", "weights", "embedded", *FRONT)),
        ("zoo", ("hpm", "surrogates", "attacks", "evaluation", "ledger", "data", "load", "weights", *FRONT)),
        ("evaluation", ("zoo", "load", "weights", "embedded", *FRONT)),
        ("training", ("surrogates", "zoo", "weights", "embedded", "case", "pipeline", "hub")),
        ("weights", FRONT),
    ],
)
def test_rooms_do_not_know_each_other(room: str, forbidden: tuple[str, ...]) -> None:
    crossed = {(m, name) for m in MODULES if inside(m, room) for name in imports_of(m) if inside(name, *forbidden)}
    assert crossed == set()


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("robustbench", {"robustbench_compat", "architectures"}),
        ("pyautoattack", {"robustbench_compat"}),
        ("autoattack", {"robustbench_compat"}),
        ("gdown", {"weights.web"}),
        ("requests", {"weights.web"}),
        ("filelock", {"weights.locks"}),
        ("huggingface_hub", {"weights.hub", "weights.patience", "hub.remote", "hub.metadata", "hub.eval_results"}),
    ],
)
def test_foreign_houses_are_entered_by_one_door(library: str, allowed: set[str]) -> None:
    users = {m for m in MODULES if any(name.split(".")[0] == library for name in imports_of(m))}
    assert users <= {f"{NAME}.{name}" for name in allowed}


def test_nobody_imports_the_command_line() -> None:
    assert [m for m in MODULES if f"{NAME}.cli" in imports_of(m)] == [f"{NAME}.__main__"]
    asking = {m for m in MODULES if any(inside(name, "commands") for name in imports_of(m))}
    assert {m for m in asking if not inside(m, "commands")} == {f"{NAME}.cli"}


@pytest.mark.parametrize(
    "module", ["cli", "report", "zoo.catalog", "ledger.leaderboard", "ledger.journal", "training.status"]
)
def test_a_fresh_interpreter_agrees(module: str) -> None:
    code = f"import sys, {NAME}.{module}; sys.exit(int(any(h in sys.modules for h in {HEAVY!r})))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "code", "does_not_matter"),
    [
        ("hpm.fitting", fit_store.CODE, ()),
        ("training.loop", finetuned.CODE, ("evaluation.progress",)),  # which only tells how far it is
    ],
)
def test_what_a_key_hashes_is_all_of_the_lab_that_is_used(
    module: str, code: tuple[str, ...], does_not_matter: tuple[str, ...]
) -> None:
    hashed = [place.removesuffix(".py").replace("/", ".") for place in code]
    used = {m for m in reach(f"{NAME}.{module}") if inside(m, *identity.LAB, "training")}
    assert {m for m in used if not inside(m, *hashed, *does_not_matter) and len(m.split(".")) > 2} == set()
    assert all(any(inside(m, place) for m in used) for place in hashed)
