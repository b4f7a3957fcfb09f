"""Models of several networks: ensembles and mixtures, whose answer no single linear layer gives.

HPM needs features and the model's own logits. The features are what enters the named heads, side by side; the logits
are carried along with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpm_robustbench.errors import HeadNotFound
from hpm_robustbench.hpm.backbone import Split, probes
from hpm_robustbench.hpm.heads import CarriedLogits, carry
from hpm_robustbench.shapes import Images, Logits, Raw

Output: TypeAlias = Literal["logits", "probabilities"]
"""What a model returns. Log-probabilities are logits; ``probabilities`` is the mean of its members' softmax."""


class Composite(nn.Module):
    """A model that also shows what entered its heads: images to [N, D + K], features and logits side by side."""

    def __init__(self, model: nn.Module, heads: Mapping[str, nn.Module], output: Output) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self._heads = tuple(heads.values())  # a tuple is not registered: the model owns them

    def forward(self, x: Images) -> Raw:
        """Run the whole model once."""
        with _watching(self._heads) as seen:
            answer = self.model(x)
        features = torch.cat([entered for entered, _ in seen], dim=1)
        logits = answer if self.output == "logits" else mean_log_probability([left for _, left in seen])
        return carry(features, logits)


def mean_log_probability(logits: Sequence[Logits]) -> Logits:
    """Logarithm of the mean of several softmax outputs, computed without leaving the logarithm.

    Its softmax is the ensemble's answer; the logarithm of the mean itself would round small probabilities to zero and
    lose their gradient.
    """
    return torch.stack([F.log_softmax(one, dim=1) for one in logits]).logsumexp(dim=0) - math.log(len(logits))


def split_composite(
    model: nn.Module, image_shape: tuple[int, int, int], n_classes: int, heads: Sequence[str], output: Output
) -> Split:
    """Take a model of several networks apart at its named heads, and prove that its answer is unchanged.

    Args:
        model: in eval mode, images in [0, 1] to ``output`` [N, n_classes]; it becomes part of the backbone.
        image_shape: (C, H, W) of its input.
        n_classes: width of its output.
        heads: names of the layers whose inputs are the features.
        output: whether the model returns logits, or the mean of its members' probabilities.

    Raises:
        HeadNotFound: a head is missing, is not called once, or the answer is not what ``output`` says.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    wanted = f"the heads {', '.join(heads)} of {type(model).__name__}, each called once on features [N, D]"
    missing = [name for name in heads if name not in named]
    if missing:
        raise _refused(wanted, f"no layer {', '.join(missing)}")
    composite = Composite(model, {name: named[name] for name in heads}, output)
    with torch.no_grad():
        try:
            shown = [(model(probe), composite(probe)) for probe in probes(model, image_shape)]
        except ValueError as error:
            raise _refused(wanted, str(error)) from error
    fc = CarriedLogits(shown[0][1].shape[1] - n_classes, n_classes)
    if not all(_same(answer, fc(out), output) for answer, out in shown):
        raise _refused(f"{wanted}, and {output} [N, {n_classes}] as the model's answer", "another answer")
    return Split(composite, fc)


def _same(answer: Tensor, logits: Tensor, output: Output) -> bool:
    if output == "logits":
        return torch.equal(answer, logits)
    return answer.shape == logits.shape and torch.allclose(logits.exp(), answer, rtol=1e-4, atol=1e-6)


@contextmanager
def _watching(heads: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of the heads in their own order, once the context has been left.

    Raises:
        ValueError: a head was called another number of times than once.
    """
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in heads]
    hooks = [
        head.register_forward_hook(
            lambda _m, inputs, output, mine=mine: mine.append((inputs[0].flatten(1), output.flatten(1)))
        )
        for head, mine in zip(heads, calls, strict=True)
    ]
    seen: list[tuple[Tensor, Tensor]] = []
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(mine) != 1 for mine in calls):
        raise ValueError(f"heads called {', '.join(str(len(mine)) for mine in calls)} times")
    seen.extend(mine[0] for mine in calls)


def _refused(wanted: str, got: str) -> HeadNotFound:
    return HeadNotFound(wanted=wanted, got=got, next_step="correct the names of its heads, or what it returns")
