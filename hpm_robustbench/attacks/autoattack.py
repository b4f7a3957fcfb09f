"""The four components of standard AutoAttack (Croce & Hein 2020), computed by the reference package itself.

A component is built afresh for every batch: changing its budget later would leave schedules behind that were derived
from the old one. What is fenced in here are the reference's faults on few classes, on images that its tiles do not
fit, and on points that tie exactly.
"""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from hpm_robustbench.attacks.base import View, packed
from hpm_robustbench.attacks.losses import targeted_margin
from hpm_robustbench.attacks.slope import EVERYWHERE, rows_for
from hpm_robustbench.robustbench_compat import import_autoattack
from hpm_robustbench.shapes import Images, Labels, Logits, Losses
from hpm_robustbench.threat import Norm, ThreatModel

log = logging.getLogger(__name__)

_TINY = torch.finfo(torch.float32).tiny

# One release of the package reports vanished gradients through .log(text), the other through .warning(text).
_LOGGER = SimpleNamespace(log=log.info, warning=log.info)


def _apgd_ce(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, n_iter: int = 100) -> Images:
    attack = import_autoattack().autopgd_base.APGDAttack(
        view, loss="ce", n_iter=n_iter, logger=_LOGGER, **_settings(x, threat, seed)
    )
    return _images(attack.perturb(x, y))


def _apgd_t(
    view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, n_iter: int = 100, targets: int = 9
) -> Images:
    n_classes = view(x[:1]).shape[1]
    attack = import_autoattack().autopgd_base.APGDAttack_targeted(
        view,
        n_iter=n_iter,
        n_target_classes=min(targets, n_classes - 1),
        logger=_LOGGER,
        **_settings(x, threat, seed),
    )

    def margin_to_target(logits: Logits, labels: Labels) -> Losses:
        return targeted_margin(logits, labels, attack.y_target)

    if n_classes < 4:  # the reference's targeted DLR divides by a distance to the third and fourth logit
        attack.dlr_loss_targeted = margin_to_target
    return _images(attack.perturb(x, y))


def _fab_t(
    view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, *, n_iter: int = 100, targets: int = 9
) -> Images:
    attack = import_autoattack().fab_pt.FABAttack_PT(
        view,
        targeted=True,
        n_iter=n_iter,
        n_target_classes=min(targets, view(x[:1]).shape[1] - 1),
        **_settings(x, threat, seed),
    )
    return _images(attack.perturb(x, y))


def _square(
    view: View,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    seed: int,
    *,
    n_queries: int = 5000,
    where: str = EVERYWHERE,
) -> Images:
    """``where`` says which rows (``rows_for``); standard AutoAttack asks for all."""
    x_adv, rows = x.clone(), rows_for(where, view, x, y, torch.ones_like(y, dtype=torch.bool), threat)
    if rows.any():
        x_adv[rows] = _by_squares(view, x[rows], y[rows], threat, seed, n_queries)
    return x_adv


def _by_squares(view: View, x: Images, y: Labels, threat: ThreatModel, seed: int, n_queries: int) -> Images:
    height, width = x.shape[2:]
    more_rows, more_columns = _square_l2_padding(height, width) if threat.norm is Norm.L2 else (0, 0)

    def predict(images: Images) -> Logits:
        return view(images[:, :, :height, :width])

    attack = import_autoattack().square.SquareAttack(
        predict, n_queries=n_queries, p_init=0.8, resc_schedule=False, **_settings(x, threat, seed)
    )
    margin_and_loss = attack.margin_and_loss

    def without_ties(images: Images, labels: Labels) -> tuple[Losses, Losses]:
        margin, loss = margin_and_loss(images, labels)
        return margin.masked_fill(margin == 0, -_TINY), loss

    # A margin of zero counts as broken; but if every point is broken and one of them tied, the reference goes on
    # with an empty batch.
    attack.margin_and_loss = without_ties
    padded = functional.pad(x, (0, more_columns, 0, more_rows))
    return _images(attack.perturb(padded, y))[:, :, :height, :width]


def _settings(x: Images, threat: ThreatModel, seed: int) -> dict[str, Any]:
    return {
        "norm": threat.norm.value,
        "eps": float(threat.eps),
        "seed": seed,
        "n_restarts": 1,
        "device": x.device,
    }


def _images(untyped: Any) -> Images:
    images: Images = untyped
    return images


def _square_l2_padding(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of zeros that let Square's L2 start tile the image; none where it can already.

    The reference lays tiles of a fifth of the height, as many as a side holds, from an offset that centers five of
    them. Where a side holds more than five, the last may cross the edge, and the reference fails; sides below five
    have no tile at all. What is perturbed outside the image is cut off again.
    """
    tile = height // 5
    offset = (height - 5 * tile) // 2
    if tile == 1 or (tile and all(offset + side // tile * tile <= side for side in (height, width))):
        return 0, 0
    side = 5 * math.ceil(max(height, width) / 5)
    return side - height, side - width


APGD_CE = packed(_apgd_ce)
APGD_T = packed(_apgd_t)
FAB_T = packed(_fab_t)
SQUARE = packed(_square)
