"""Curves of a fine-tuning: loss, clean and robust accuracy by epoch, as a static picture that needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment

from hpm_robustbench.ledger.fine_tuning import Point
from hpm_robustbench.ledger.templates import site_environment

_WIDTH, _HEIGHT, _MARGIN = 480, 220, 40


def render_curves(points: Sequence[Point], title: str) -> str:
    """An SVG picture: accuracies in percent on the left axis, losses scaled to their highest value.

    Args:
        points: by epoch, the classifier before training first.
        title: above the picture; any text.
    """
    last = max(1, points[-1].epoch)
    highest = max((point.loss for point in points if point.loss is not None), default=0.0)
    shares = {
        "clean": [(p.epoch, p.clean) for p in points if p.clean is not None],
        "robust": [(p.epoch, p.robust) for p in points if p.robust is not None],
        "loss": [(p.epoch, p.loss / highest) for p in points if p.loss is not None and highest > 0],
    }
    lines = {name: [_place(epoch / last, share) for epoch, share in line] for name, line in shares.items() if line}
    ends = {"clean": f"{_percent(points[-1].clean)}", "robust": f"{_percent(points[-1].robust)}"}
    legend = {name: f"{name} {ends.get(name) or f'(highest {highest:.3g})'}" for name in lines}
    template = _environment().get_template("curves.svg")
    return template.render(
        title=title, lines=lines, legend=legend, last=last, width=_WIDTH, height=_HEIGHT, margin=_MARGIN
    )


def _place(across: float, up: float) -> str:
    x = _MARGIN + across * (_WIDTH - 2 * _MARGIN)
    y = _HEIGHT - _MARGIN - min(1.0, up) * (_HEIGHT - 2 * _MARGIN)
    return f"{x:.1f},{y:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


@cache
def _environment() -> Environment:
    return site_environment()
