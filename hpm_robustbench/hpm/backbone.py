"""Take a classifier apart into features and a linear head, and prove on the spot that nothing changed."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from hpm_robustbench.errors import HeadNotFound
from hpm_robustbench.hpm.heads import CarriedLogits, FixedHead, PointwiseHead
from hpm_robustbench.shapes import Features, Images, Raw

_PROBES = 2

Head: TypeAlias = nn.Linear | FixedHead | PointwiseHead | CarriedLogits
_Layer: TypeAlias = nn.Linear | FixedHead | nn.Conv2d
"""A layer that may be a classifier: linear, or a 1x1 convolution."""


class Split(NamedTuple):
    """``fc(backbone(x))`` is the model: features [N, D] and the head on top."""

    backbone: nn.Module
    fc: Head


class OneByOne(nn.Module):
    """A network whose answer for an image depends on the others of a call, and that therefore sees one at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Images) -> Raw:
        """One call per image."""
        return torch.cat([self.network(image) for image in x.split(1)])  # type: ignore[no-untyped-call]


def split(model: nn.Module, image_shape: tuple[int, int, int], n_classes: int, path: str | None = None) -> Split:
    """Find the only linear layer (or 1x1 convolution) whose output is the model's output; put an identity in its place.

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
    images = probes(model, image_shape)
    with torch.no_grad():
        logits, outputs = _watch_layers(model, images[0])
        before = [model(probe) for probe in images]
    candidates = {name: layer for name, layer in _layers(model).items() if layer.weight.shape[0] == n_classes}
    named = dict(model.named_modules(remove_duplicate=False)).get(path) if path else None
    heads = [
        name
        for name, layer in candidates.items()
        if (path is None or layer is named) and name in outputs and torch.equal(outputs[name], logits)
    ]
    if len(heads) != 1:
        raise _not_found(model, path, candidates, outputs, heads, n_classes)
    layer, gone = candidates[heads[0]], nn.Identity()
    fc = PointwiseHead(layer) if isinstance(layer, nn.Conv2d) else layer
    _replace(model, layer, gone)
    with torch.no_grad():
        after = [_recompose(model, fc, probe) for probe in images]
    if not all(new is not None and torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        _replace(model, gone, layer)
        raise HeadNotFound(
            wanted=f"{heads[0]} on top of the rest of {type(model).__name__} to give the model's own logits",
            got="other logits, or features that are not [N, D]",
            next_step="name another layer as the head; this model needs an adapter if none fits",
        )
    return Split(model, fc)


def fix_head(model: nn.Module, image_shape: tuple[int, int, int], path: str) -> None:
    """Let a model that renormalises its head on every forward pass do so once, and keep the head as it then is.

    Repeated in float32, such a pass changes the last bits of the weights for ever, and with them the answers.

    Raises:
        HeadNotFound: ``path`` is no linear layer.
    """
    layer = dict(model.named_modules()).get(path)
    if not isinstance(layer, nn.Linear):
        raise HeadNotFound(
            wanted=f"a linear layer {path} of {type(model).__name__}",
            got=type(layer).__name__,
            next_step="correct the name of the head",
        )
    with torch.no_grad():
        model(probes(model, image_shape)[0])
    _replace(model, layer, FixedHead(layer))


def probes(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Images]:
    """Random images, always the same, on the model's device, on which two forms of it are compared."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    return [torch.rand((2, *image_shape), generator=generator).to(device) for _ in range(_PROBES)]


def features_of(fc: Head, raw: Raw) -> Features:
    """The part of what a backbone returns that is features; all of it, unless logits are carried along."""
    return fc.features(raw) if isinstance(fc, CarriedLogits) else raw


def _layers(model: nn.Module) -> dict[str, _Layer]:
    return {name: module for name, module in model.named_modules() if _may_classify(module)}


def _may_classify(module: nn.Module) -> TypeGuard[_Layer]:
    pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return pointwise or isinstance(module, (nn.Linear, FixedHead))


def _watch_layers(model: nn.Module, x: Images) -> tuple[Tensor, dict[str, Tensor]]:
    """Run once; return the output and every such layer's own output, a convolution's 1x1 maps as [N, K]."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output.flatten(1) if output.shape[2:] == (1, 1) else output

    hooks = [
        layer.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output.clone()))
        for name, layer in _layers(model).items()
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


def _recompose(backbone: nn.Module, fc: Head, x: Images) -> Tensor | None:
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
    candidates: dict[str, _Layer],
    outputs: dict[str, Tensor],
    heads: list[str],
    n_classes: int,
) -> HeadNotFound:
    seen = [
        f"{name or '(the model itself)'} ({layer.weight.shape[1]} -> {layer.weight.shape[0]}"
        f"{', its output is the model output' if name in heads else '' if name in outputs else ', not called'})"
        for name, layer in candidates.items()
    ]
    named = f" named {path!r}" if path else ""
    return HeadNotFound(
        wanted=f"exactly one linear layer{named} of {type(model).__name__} whose output is its {n_classes} logits",
        got=f"{len(heads)}; candidates: {'; '.join(seen) or 'none'}",
        next_step="name the head with --head PATH, or write an adapter if the model ends differently",
    )
