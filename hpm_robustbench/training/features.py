"""What a fixed backbone makes of the training images, where nothing else of them is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hpm_robustbench.training.learner import features_as_images
from hpm_robustbench.training.memory import fitting
from hpm_robustbench.training.recipe import Recipe

if TYPE_CHECKING:
    from hpm_robustbench.training.loop import Lesson


class Features:
    """Features of one classifier's training images, computed once for a recipe and all its controls."""

    def __init__(self) -> None:
        self._known: dict[tuple[Recipe, int], Tensor] = {}

    def of(self, lesson: Lesson) -> Tensor:
        """Those of all images, of the held-out ones too, in their order."""
        key = lesson.tuning.recipe, torch.get_num_threads()  # on which their last bits may depend
        if key not in self._known:
            self._known[key] = _computed(lesson)
        return self._known[key]


def _computed(lesson: Lesson) -> Tensor:
    frozen, images = lesson.classifier, lesson.training.images
    rows, device = torch.arange(len(images)), frozen.prototypes.device
    _, features = fitting(
        lesson.tuning.recipe.batch_size,
        lambda at_once: features_as_images(frozen.backbone, images, rows, at_once, device),
    )
    return features
