"""An attacker who has one image of a batch in hand and does not know the others.

He climbs on a view that tells nothing of the mates that his image will have, and asks the target nothing. Every row is
moved so, but submitted beside mates that are clean: in each answer at most one row of a batch is not as it was.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hpm_robustbench.attacks.apgd import ascend
from hpm_robustbench.attacks.ball import per_image
from hpm_robustbench.attacks.base import OWN, Attack, Parameter, Task, View, packed, seeded
from hpm_robustbench.attacks.losses import margin
from hpm_robustbench.shapes import Images, Labels
from hpm_robustbench.threat import ThreatModel


def _climb(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, steps: int = 40) -> Images:
    """APGD on the view's margin; what is returned is where that was largest, whether the target minds or not."""
    return ascend(lambda point: margin(view(point), y), x, threat, steps=steps, start=seeded(seed)).x


_CLIMBED = packed(_climb)


def _search(task: Task, **parameters: Parameter) -> Iterator[Images]:
    (moved,) = _CLIMBED(task, **parameters)
    place = torch.arange(len(moved), device=moved.device) % task.batch_size
    for each in sorted(set(place[task.active].tolist())):
        yield torch.where(per_image(task.active & (place == each)), moved, task.x)
    if not task.active.any():
        yield moved


ALONE = Attack(_search, requires_row_independence=True, move=OWN)
