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

from hpm_robustbench.errors import first_line
from hpm_robustbench.hpm.backbone import Split
from hpm_robustbench.hpm.classifier import Embedding, HPMClassifier
from hpm_robustbench.memory import is_of_memory
from hpm_robustbench.shapes import Images
from hpm_robustbench.training.learner import Learner
from hpm_robustbench.training.parts import Embed

log = logging.getLogger(__name__)

_SAME_VALUE, _SAME_GRADIENT = 1e-3, 0.05
"""Shares of their lengths by which features and logits, and gradients, may differ in full precision.

Gradients of ten RobustBench networks differ by at most 2e-3; where one is lost, by 1.
"""


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
            return self.exact(x)

    def exact(self, x: Images) -> Embedding:
        """The same in full precision, whatever the learner trains in."""
        return self._classifier.embed(x)


def fold(learner: Learner, x: Images) -> Folded | None:
    """Fold what can be folded of a learner's backbone, and see on some images that it is the same function.

    Symbols lose what a network does to its own gradients, and may stay behind in a network that keeps what it has seen;
    so gradients are compared too, and modules are copied before. Copies have the learner's own tensors.

    Returns:
        None, with one log line, where there is nothing to fold, torch.fx cannot follow, or the function is another.
    """
    backbone = learner.classifier.backbone
    try:
        graph = fx.symbolic_trace(copy.deepcopy(backbone, {id(t): t for t in _tensors(backbone)}))
        pairs = _fold_in(graph)
        folded = Folded(learner, graph, pairs)
        same = bool(pairs) and _same(folded.exact, learner.classifier.embed, x)
    except Exception as error:  # whatever a network may raise that is called with symbols
        if is_of_memory(error):
            raise
        log.info("normalisation is not folded: %s", first_line(error))
        return None
    if not same:
        log.info(
            "normalisation is not folded: %s", "it would be another function" if pairs else "there is none to fold"
        )
        return None
    log.info("in attacks %d normalisation layers are folded into convolutions", len(pairs))
    return folded


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


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


def _same(folded: Embed, own: Embed, x: Images) -> bool:
    """Whether two networks agree on each image alone, in features, in logits and in their gradients to the image."""
    mine, others = (_answer(embed, x) for embed in (folded, own))
    allowed = (_SAME_VALUE, _SAME_VALUE, _SAME_GRADIENT)
    return all(bool((a - b).norm() <= most * b.norm()) for a, b, most in zip(mine, others, allowed, strict=True))


def _answer(embed: Embed, x: Images) -> tuple[Tensor, Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    parts = [embed(part) for part in torch.split(leaf, 1)]
    features, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    (gradient,) = torch.autograd.grad(features.square().sum() + logits.square().sum(), leaf)
    return features.detach(), logits.detach(), gradient
