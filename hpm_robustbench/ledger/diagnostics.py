"""What was measured on a few images to see whether a run's attacks can be trusted; ``indicators`` has the rules."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from hpm_robustbench.ledger.card_block import Block, Count, Images


class AtBudget(Block):
    """Images that stand under a gradient attack with ``multiple`` times the budget."""

    multiple: Annotated[float, Field(gt=0)]
    standing: Count


class AtSteps(Block):
    """Images that stand under a gradient attack of so many steps."""

    steps: Images
    standing: Count


class Diagnostics(Block):
    """Counts among ``n`` images that are right without an attack.

    Attributes:
        n: images looked at.
        dead_cross_entropy: the gradient of cross-entropy is exactly zero, or not finite.
        dead_margin: the gradient of the margin (best other logit minus the true one) is.
        misled: a small step along the gradient of the margin gains less than half of what it promises, or the
            gradient is another when the image is asked alone (earlier cards asked the promise only); None for a target
            that couples rows, whose gradients are shared, and on cards from before it was measured.
        repeated: the same batch, asked again, was answered with other bits.
        reordered: the label changed, beyond rounding, when the batch was asked in another order.
        regrouped: the label changed, beyond rounding, in batches of other sizes.
        probabilities: the outputs lie in [0, 1] and sum to 1.
        saturated: cross-entropy rounds to exactly 0.
        logit_gap: median distance between the two largest logits.
        budgets: what stands as the budget grows, the last being the whole box of images.
        iterations: what stands as the attack gets more steps.
        noise: broken by random noise of the size of the budget.
        noise_alone: of these, broken by no gradient attack of that budget.
        forward: images sent through the network for all of this.
        backward: images that a gradient was taken of.
    """

    n: Images
    dead_cross_entropy: Count
    dead_margin: Count
    misled: Count | None = None
    repeated: Count
    reordered: Count
    regrouped: Count
    probabilities: Count
    saturated: Count
    logit_gap: Annotated[float, Field(ge=0)]
    budgets: Annotated[list[AtBudget], Field(min_length=2)]
    iterations: Annotated[list[AtSteps], Field(min_length=2)]
    noise: Count
    noise_alone: Count
    forward: Count
    backward: Count

    @model_validator(mode="after")
    def _adds_up(self) -> Diagnostics:
        gradients = (self.dead_cross_entropy, self.dead_margin, self.misled or 0)
        answers = (self.repeated, self.reordered, self.regrouped)
        curves = (*(point.standing for point in self.budgets), *(point.standing for point in self.iterations))
        if max(*gradients, *answers, self.probabilities, self.saturated, self.noise, *curves) > self.n:
            raise ValueError(f"a count is above the {self.n} images looked at")
        if self.noise_alone > self.noise:
            raise ValueError("noise alone broke more images than noise did")
        if any(a.multiple >= b.multiple for a, b in pairwise(self.budgets)):
            raise ValueError("the budgets do not grow")
        if any(a.steps >= b.steps for a, b in pairwise(self.iterations)):
            raise ValueError("the iterations do not grow")
        return self
