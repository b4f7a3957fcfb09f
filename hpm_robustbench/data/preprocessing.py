"""How an original photograph becomes the image that a network was trained on, by RobustBench's names for it.

    Res256Crop224          the shorter side is resized to 256, and the middle 224 x 224 is kept
    BicubicRes256Crop224   the same with another interpolation than the bilinear one
    Res224                 both sides are resized to 224
    Crop288                the middle 288 x 288 is kept as it is

The pixels are those of torchvision's ``Resize``, ``CenterCrop`` and ``ToTensor`` on Pillow's images, which RobustBench
uses (``robustbench/data.py``): sides smaller than the crop are filled up with black.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from hpm_robustbench.errors import UsageProblem

_BILINEAR, _BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
_NAME = re.compile(r"(Bicubic(?=Res))?(?:Res([1-9]\d{0,3}))?(?:Crop([1-9]\d{0,3}))?", re.ASCII)
_MOST_PIXELS = 1 << 27
"""A few pixels high and very long, an image would need gigabytes once its shorter side is resized."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image.

    Attributes:
        resize: pixels that the shorter side gets, or both sides if nothing is cropped; None leaves the size.
        crop: pixels of each side that are kept around the middle; None keeps all.
        bicubic: resize with bicubic instead of bilinear interpolation.
    """

    resize: int | None
    crop: int | None
    bicubic: bool

    @classmethod
    def parse(cls, name: str) -> Preprocessing:
        """Read a name such as ``BicubicRes256Crop224``.

        Raises:
            UsageProblem: it is not written so.
        """
        found = _NAME.fullmatch(name)
        if not name or found is None:
            raise UsageProblem(
                wanted="a preprocessing named as RobustBench does",
                got=repr(name[:80]),
                next_step="write it like Res256Crop224, BicubicRes256Crop224, Res224 or Crop288",
            )
        bicubic, resize, crop = found.groups()
        return cls(int(resize) if resize else None, int(crop) if crop else None, bicubic is not None)

    @property
    def side(self) -> int:
        """Pixels on each side of what comes out."""
        return self.crop or self.resize or 0

    def apply(self, image: Image.Image) -> Image.Image:
        """The image that a network gets.

        Raises:
            ValueError: it is so long and narrow that resizing it would take gigabytes.
        """
        if self.resize is not None:
            width, height = self._resized(image.width, image.height)
            if width * height > _MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} would become {width} x {height}")
            image = image.resize((width, height), _BICUBIC if self.bicubic else _BILINEAR)
        return image if self.crop is None else _middle(image, self.crop)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        assert self.resize is not None
        if self.crop is None:
            return self.resize, self.resize
        longer = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longer) if width <= height else (longer, self.resize)


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = _offset(image.width, side), _offset(image.height, side)
    return image.crop((left, top, left + side, top + side))  # what lies outside the image is black


def _offset(length: int, side: int) -> int:
    """Where the middle begins; negative where there is less than is kept."""
    return -((side - length) // 2) if length < side else round((length - side) / 2)
