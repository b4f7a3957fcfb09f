"""What every part of a card is made of: a strict base class, and the small types of its fields."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Target: TypeAlias = Literal["base", "hpm"]
DOUBT = "AutoAttack may be unreliable"
"""A flag that begins like this, about a whole run or on a step of AutoAttack, sets RobustBench's ``unreliable``."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](\.?[A-Za-z0-9_-])*\.?$", max_length=128)]
"""Safe as a file name everywhere; the same names as ``zoo.spec.check_name`` accepts."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
PercentText = Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]+)?$")]
"""RobustBench's spelling of an accuracy: ``59.53``, in percent, without the sign."""
EpsText = Annotated[str, Field(pattern=r"^[0-9]*\.?[0-9]*([eE]-?[0-9]{1,2})?(/[0-9]+)?$", max_length=80)]
"""A number small enough to be computed exactly, whoever wrote the card."""
Count = Annotated[int, Field(ge=0, le=10**9)]
Images = Annotated[int, Field(ge=1, le=10**9)]


class Block(BaseModel):
    """A part of a card: no unknown keys, no silent conversions, no NaN, no later changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
