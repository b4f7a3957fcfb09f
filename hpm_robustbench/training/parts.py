"""Gradients of a loss of a whole batch, a part of its images at a time.

Batch prototypes join all images of a batch, so the loss of a part is not a part of the loss. Each part is embedded
without gradients; the loss of the whole batch is differentiated towards its features and logits; and each part is
embedded again to carry these gradients on (as GradCache does: Gao et al., RepL4NLP 2021, arXiv 2101.06983). It costs a
second pass through the backbone, only where the batch does not fit into memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hpm_robustbench.hpm.classifier import Embedding
from hpm_robustbench.shapes import Images

Embed: TypeAlias = Callable[[Images], Embedding]
LossOf: TypeAlias = Callable[[Embedding], Tensor]


def backward(
    embed: Embed, x: Images, loss_of: LossOf, at_once: int, towards: Sequence[Tensor] | None = None
) -> tuple[Tensor, Embedding]:
    """Add the gradients of ``loss_of(embed(x))`` to those of ``towards``, or of every parameter that learns.

    Args:
        embed: images to features and logits, row by row.
        x: the whole batch.
        loss_of: its loss, a scalar.
        at_once: images that are embedded together.
        towards: leaves to differentiate to.

    Returns:
        The loss and the embedding of the whole batch, both detached.
    """
    parts = torch.split(x, at_once)
    if len(parts) == 1:
        embedding = embed(x)
        loss = loss_of(embedding)
        _carry([loss], None, towards)
        return loss.detach(), _detached(embedding)
    with torch.no_grad():
        seen = [embed(part) for part in parts]
    whole = Embedding(*(torch.cat(tensors).requires_grad_() for tensors in zip(*seen, strict=True)))
    loss = loss_of(whole)
    _carry([loss], None, None if towards is None else [*towards, *whole])
    gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in whole]
    for part, *shares in zip(parts, *(torch.split(gradient, at_once) for gradient in gradients), strict=True):
        _carry(embed(part), shares, towards)
    return loss.detach(), _detached(whole)


def _carry(tensors: Sequence[Tensor], gradients: Sequence[Tensor] | None, towards: Sequence[Tensor] | None) -> None:
    """Back-propagate from what has a graph: features of frozen parts have none."""
    linked = [index for index, tensor in enumerate(tensors) if tensor.requires_grad]
    if linked:
        torch.autograd.backward(
            [tensors[index] for index in linked],
            None if gradients is None else [gradients[index] for index in linked],
            inputs=towards,
        )


def _detached(embedding: Embedding) -> Embedding:
    return Embedding(*(tensor.detach() for tensor in embedding))
