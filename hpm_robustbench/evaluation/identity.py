"""Hashes by which a run is known: of a model's state, of what stands trial, of the code that tries it."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from hpm_robustbench.data import ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.plan import BasePlan
from hpm_robustbench.surrogates.views import Subject

_PROBES = 16
LAB = ("hpm", "surrogates", "attacks", "evaluation")
"""Where the code lies that decides a verdict: defence, its surrogates, attacks and trial."""


def state_sha256(*modules: nn.Module) -> str:
    """Hash of every parameter and buffer (name, type, shape, bytes) of the modules, in hex.

    Buffers that a module does not save count too: its answers depend on them.
    """
    hasher = hashlib.sha256()
    for module in modules:
        unsaved = dict(module.named_buffers(remove_duplicate=False))
        for name, tensor in sorted({**unsaved, **module.state_dict(keep_vars=True)}.items()):
            value = tensor.detach().cpu().contiguous()
            hasher.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            hasher.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def subject_sha256(subject: Subject, examples: ExampleSet) -> str:
    """Hash of what stands trial: its state (a base model's own, or the classifier's and the base's) and its behaviour.

    Two networks with equal weights may still compute differently, so logits of the first examples are hashed too; and
    two that answer alike may show an attack other gradients, so the code of their layers is.
    """
    modules = (subject.base,) if subject.target == "base" else (subject.classifier, subject.base)
    logits = subject.target_logits(examples.images[:_PROBES].to(subject.device)).cpu()
    known = f"{state_sha256(*modules)}{_layers_sha256(*modules)}"
    return hashlib.sha256(known.encode() + logits.numpy().tobytes()).hexdigest()


def _layers_sha256(*modules: nn.Module) -> str:
    kinds = {type(layer) for module in modules for layer in module.modules()}
    return hashlib.sha256("\0".join(sorted(_code_of_layer(kind) for kind in kinds)).encode()).hexdigest()


def _code_of_layer(kind: type[nn.Module]) -> str:
    """What a kind of layer does: the code of its file, or of itself where that file is the script that is run."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind.__module__.split(".")[0] == "torch":  # of a version that the plan names
        return name
    try:
        source = inspect.getsource(kind if kind.__module__ == "__main__" else sys.modules[kind.__module__])
    except (OSError, TypeError, KeyError):  # nobody wrote it into a file
        return name
    return f"{name}\n{code_of(textwrap.dedent(source))}"


def check_unchanged(plan: BasePlan, subject: Subject, examples: ExampleSet) -> None:
    """See that what stands trial is still what the plan names.

    Raises:
        InvalidInput: the model changed its weights, its buffers or its answers.
    """
    if subject_sha256(subject, examples) != plan.state_sha256:
        raise InvalidInput(
            wanted="a model that stays as it is while it is evaluated",
            got="changed weights, buffers or answers; this step's result was not written down",
            next_step="make forward() stateless and run again",
        )


@lru_cache
def code_sha256(*places: str) -> str:
    """Hash of the code in rooms of the package (``hpm``) and single files (``attacks/ball.py``), 16 hex digits."""
    package = Path(__file__).parent.parent
    named = (package / place for place in places)
    paths = {path for place in named for path in (place.glob("*.py") if place.is_dir() else [place])}
    hasher = hashlib.sha256()
    for path in sorted(paths):
        hasher.update(f"{path.relative_to(package).as_posix()}\0{code_of(path.read_text(encoding='utf-8'))}\0".encode())
    return hasher.hexdigest()[:16]


@lru_cache
def code_of(source: str) -> str:
    """What a Python source does, without its comments, layout and docstrings: to edit those loses no finished run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [statement for statement in body if not _is_text(statement)]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
