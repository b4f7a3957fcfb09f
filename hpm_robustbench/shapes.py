"""The only shape vocabulary: N examples, C channels, H x W pixels, D features, K classes.

Functions annotated with these names are checked against them while the tests run.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images: TypeAlias = Float[Tensor, "N C H W"]
Features: TypeAlias = Float[Tensor, "N D"]
Raw: TypeAlias = Float[Tensor, "N R"]
"""What a backbone returns: features, or features with the model's own logits beside them (R = D + K)."""
Logits: TypeAlias = Float[Tensor, "N K"]
Labels: TypeAlias = Int[Tensor, "N"]
Mask: TypeAlias = Bool[Tensor, "N"]
Losses: TypeAlias = Float[Tensor, "N"]
ClassPrototypes: TypeAlias = Float[Tensor, "K D"]
"""One prototype per class, shared by every row."""
RowPrototypes: TypeAlias = Float[Tensor, "N K D"]
"""One set of prototypes per row, for rows that each see a batch of their own."""
