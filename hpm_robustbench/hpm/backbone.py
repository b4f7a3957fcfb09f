"""Take a classifier apart into features and a linear head, and prove on the spot that nothing changed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpm_robustbench.errors import HeadNotFound
from hpm_robustbench.shapes import Images

_PROBES = 2


class Split(NamedTuple):
    """``fc(backbone(x))`` is the model: features [N, D] and the linear layer on top."""

    backbone: nn.Module
    fc: nn.Linear


def split(model: nn.Module, image_shape: tuple[int, int, int], n_classes: int, path: str | None = None) -> Split:
    """Find the only linear layer whose output is the model's output, and put an identity in its place.

    The model is taken over: it becomes the backbone. Two random inputs then show that old and new logits are equal,
    bit for bit. A model that is refused stays as it was.

    Args:
        model: in eval mode, images in [0, 1] to logits [N, n_classes].
        image_shape: (C, H, W) of its input.
        n_classes: width of its output.
        path: name of the head, if the model's maker says which it is.

    Raises:
        HeadNotFound: none, or several, or not provably; the message lists the candidates seen.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    probes = [torch.rand((2, *image_shape), generator=generator).to(device) for _ in range(_PROBES)]
    with torch.no_grad():
        logits, outputs = _watch_linears(model, probes[0])
        before = [model(probe) for probe in probes]
    candidates = {name: layer for name, layer in _linears(model).items() if layer.out_features == n_classes}
    named = dict(model.named_modules(remove_duplicate=False)).get(path) if path else None
    heads = [
        name
        for name, layer in candidates.items()
        if (path is None or layer is named) and name in outputs and torch.equal(outputs[name], logits)
    ]
    if len(heads) != 1:
        raise _not_found(model, path, candidates, outputs, heads, n_classes)
    fc, gone = candidates[heads[0]], nn.Identity()
    _replace(model, fc, gone)
    with torch.no_grad():
        after = [_recompose(model, fc, probe) for probe in probes]
    if not all(new is not None and torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        _replace(model, gone, fc)
        raise HeadNotFound(
            wanted=f"{heads[0]} on top of the rest of {type(model).__name__} to give the model's own logits",
            got="other logits, or features that are not [N, D]",
            next_step="name another layer as the head; this model needs an adapter if none fits",
        )
    return Split(model, fc)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _watch_linears(model: nn.Module, x: Images) -> tuple[Tensor, dict[str, Tensor]]:
    """Run once; return the output and every linear layer's own output."""
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, name=name: outputs.__setitem__(name, output.clone()))
        for name, layer in _linears(model).items()
    ]
    try:
        return model(x), outputs
    finally:
        for hook in hooks:
            hook.remove()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` under every name that ``old`` has."""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if name and module is old]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, new)


def _recompose(backbone: nn.Module, fc: nn.Linear, x: Images) -> Tensor | None:
    try:
        features = backbone(x)
    except Exception:  # a foreign model that needs its head in another way may fail in any way without it
        return None
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != fc.in_features:
        return None
    logits: Tensor = fc(features)
    return logits


def _not_found(
    model: nn.Module,
    path: str | None,
    candidates: dict[str, nn.Linear],
    outputs: dict[str, Tensor],
    heads: list[str],
    n_classes: int,
) -> HeadNotFound:
    seen = [
        f"{name or '(the model itself)'} ({layer.in_features} -> {layer.out_features}"
        f"{', its output is the model output' if name in heads else '' if name in outputs else ', not called'})"
        for name, layer in candidates.items()
    ]
    named = f" named {path!r}" if path else ""
    return HeadNotFound(
        wanted=f"exactly one linear layer{named} of {type(model).__name__} whose output is its {n_classes} logits",
        got=f"{len(heads)}; candidates: {'; '.join(seen) or 'none'}",
        next_step="name the head with --head PATH, or write an adapter if the model ends differently",
    )
