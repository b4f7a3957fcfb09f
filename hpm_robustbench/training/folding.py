"""A network with normalisation folded into its convolutions, for the many passes that an attack takes inside a step.

Normalisation layers keep their statistics while a classifier is trained, so behind a convolution one is a scale and a
shift for each channel, which the convolution can do on its way (Markus, "Fusing batch normalization and convolution in
runtime"; the arithmetic is PyTorch's own). Rounding apart it is the same function, in fewer passes over memory.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.shapes import Images
from hpm_robustbench.training.learner import Learner

log = logging.getLogger(__name__)

_TOLERANCE = 0.01
"""Of the largest feature: far above rounding, also of reduced precision, and far below what a wrong fold does."""


class _Pair(NamedTuple):
    """A convolution, the normalisation behind it, and the convolution that does the work of both."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d

    def refresh(self) -> None:
        norm, convolution, folded = self.norm, self.convolution, self.folded
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert folded.bias is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        folded.weight.copy_(weight)
        folded.bias.copy_(bias)


class Folded:
    """What a learner embeds images by, computed through the folded network; ``refresh`` after its weights changed."""

    def __init__(self, learner: Learner, graph: fx.GraphModule, pairs: list[_Pair]):
        own = learner.classifier
        self.network, self._learner, self._pairs = graph, learner, pairs
        self._classifier = HPMClassifier(Split(graph, own.fc), own.prototypes, own.config).to(own.prototypes.device)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the weights as they are now."""
        for pair in self._pairs:
            pair.refresh()

    def embed(self, x: Images) -> Embedding:
        """Features and FC logits in float32, as ``Learner.embed`` computes them."""
        with self._learner.reduced(x.device):
            return self._classifier.embed(x)


def fold(learner: Learner, x: Images) -> Folded | None:
    """Fold what can be folded of a learner's backbone, and see on some images that it is the same function.

    Returns:
        None, with one log line, where there is nothing to fold, or a network that torch.fx cannot follow.
    """
    try:
        graph = fx.symbolic_trace(learner.classifier.backbone)
        pairs = _fold_in(graph)
        folded = Folded(learner, graph, pairs)
        same = bool(pairs) and _same(folded, learner, x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a network may raise that is called with symbols
        log.info("normalisation is not folded: %s", next(iter(str(error).splitlines()), type(error).__name__))
        return None
    log.info("%d normalisation layers are %sfolded into convolutions", len(pairs), "" if same else "not ")
    return folded if same else None


def _fold_in(graph: fx.GraphModule) -> list[_Pair]:
    """Replace each convolution that a normalisation follows, and nothing else, by one that does the work of both."""
    modules = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    pairs = []
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        alone = len(before.users) == 1 and calls[before.target] == 1
        if not (alone and type(convolution) is nn.Conv2d and _is_fixed(norm)):
            continue
        folded = copy.deepcopy(convolution).requires_grad_(False)
        folded.bias = nn.Parameter(folded.weight.new_zeros(folded.out_channels), requires_grad=False)
        graph.set_submodule(str(before.target), folded)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
        pairs.append(_Pair(convolution, norm, folded))
        del calls[before.target]  # one more normalisation behind it stays
    graph.delete_all_unused_submodules()
    graph.recompile()
    return pairs


def _is_fixed(norm: nn.Module) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.running_mean is not None and not norm.training


@torch.no_grad()
def _same(folded: Folded, learner: Learner, x: Tensor) -> bool:
    found, wanted = folded.embed(x).features, learner.embed(x).features
    return bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
