"""Shifted and mirrored images, computed where the images are; only the choices are drawn on the CPU."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hpm_robustbench.shapes import Images
from hpm_robustbench.training.recipe import Recipe


def augmented(images: Images, recipe: Recipe, generator: torch.Generator) -> Images:
    """Each image shifted and perhaps mirrored by its own draw, as the recipe says."""
    shifted_images = shifted(images, round(recipe.shift * min(images.shape[2:])), generator)
    mirrored = recipe.mirror == "always" or (recipe.mirror == "colour" and images.shape[1] == 3)
    if not mirrored:
        return shifted_images
    chosen = torch.rand((len(images), 1, 1, 1), generator=generator).to(images.device) < 0.5
    return torch.where(chosen, shifted_images.flip(3), shifted_images)


def shifted(images: Images, max_shift: int, generator: torch.Generator) -> Images:
    """Each image moved by its own whole number of pixels, up to ``max_shift`` each way; what moves in is black."""
    if not max_shift:
        return images
    n, _, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4)
    down, right = torch.randint(2 * max_shift + 1, (2, n, 1), generator=generator).to(images.device)
    rows = (down + torch.arange(height, device=images.device))[:, :, None]
    columns = (right + torch.arange(width, device=images.device))[:, None, :]
    each = torch.arange(n, device=images.device)[:, None, None]
    return padded[each, :, rows, columns].permute(0, 3, 1, 2)
