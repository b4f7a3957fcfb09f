"""Images move by whole pixels and are mirrored where a recipe says so; each by its own draw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpm_robustbench.training.augment import augmented
from hpm_robustbench.training.draws import drawn
from hpm_robustbench.training.recipe import find_recipe


def images(channels: int) -> Tensor:
    return torch.rand((200, channels, 8, 8), generator=torch.Generator().manual_seed(0)) + 0.1


def moves_of(before: Tensor, after: Tensor, reach: int) -> list[tuple[int, int, bool]]:
    """How each image was moved, down and to the right, and whether it was mirrored then; every one has to be found."""
    padded, side, found = F.pad(before, (reach,) * 4), before.shape[2], []
    for number, image in enumerate(after):
        ways = [
            (down - reach, right - reach, mirrored)
            for down in range(2 * reach + 1)
            for right in range(2 * reach + 1)
            for mirrored in (False, True)
            if torch.equal(
                image.flip(2) if mirrored else image,
                padded[number, :, down : down + side, right : right + side],
            )
        ]
        assert len(ways) == 1
        found += ways
    return found


@pytest.mark.parametrize(
    ("mirror", "channels", "mirrored"),
    [("never", 3, False), ("colour", 3, True), ("colour", 1, False), ("always", 1, True)],
)
def test_each_image_moves_by_its_own_whole_pixels(mirror: str, channels: int, mirrored: bool) -> None:
    recipe = find_recipe("uniform-v1").with_knobs({"shift": 0.25, "mirror": mirror})
    before = images(channels)
    moves = moves_of(before, augmented(before, recipe, drawn(0, "augment", 0)), reach=2)
    assert {(down, right) for down, right, _ in moves} == {(d, r) for d in range(-2, 3) for r in range(-2, 3)}
    share = sum(flip for _, _, flip in moves) / len(moves)
    assert 0.4 < share < 0.6 if mirrored else share == 0


def test_nothing_moves_where_nothing_is_asked_for() -> None:
    recipe, before = find_recipe("head"), images(3)
    assert torch.equal(augmented(before, recipe, drawn(0, "augment", 0)), before)
