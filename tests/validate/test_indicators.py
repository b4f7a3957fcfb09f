"""Of each planted fault the indicator fires that is meant for it; on a defence without a fault none does."""

from __future__ import annotations

import pytest
from torch import nn
from validation.planted import EPS, FAULTLESS, NAMES, Digits, plant
from validation.trial import wrapped

from hpm_robustbench.evaluation.diagnostics import measure
from hpm_robustbench.evaluation.sample import Sample
from hpm_robustbench.ledger.indicators import indicators
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import ThreatModel

MEANT = {
    "vanishing": {"Scale of the logits", "Gradient of cross-entropy"},
    "shattering": {"Gradient of the margin", "Gradient of cross-entropy"},
    "wall": {"Gradient of the margin", "Gradient of cross-entropy"},
    "k-winners": {"Slope of the margin"},
    "randomised": {"Slope of the margin"},
    "mates": {"Slope of the margin"},
}
FOLLOWS = {"Budget up to the whole box"}
"""Where gradients are of no use, a larger budget is of none either."""


def fired(name: str, world: Digits, target: str) -> set[str]:
    """Indicators that fire on a planted defence, or on HPM over it."""
    hpm = wrapped(plant(name, world), world)
    base = nn.Sequential(hpm.backbone, hpm.fc).eval()
    view = make_view(target, Subject(hpm, base, target))
    right = view.target_logits(world.x).argmax(1) == world.y
    assert right.sum() >= 29
    found = measure(Sample(view, world.x, world.y, right, ThreatModel.parse("Linf", EPS), seed=0, batch_size=250))
    return {i.name for i in indicators(found, coupled=False, autoattack=True) if i.flag}


def test_every_planted_defence_has_a_fault_with_its_indicator_or_none() -> None:
    assert {*MEANT, *FAULTLESS} == set(NAMES)


@pytest.mark.parametrize("name", MEANT)
def test_the_indicator_meant_for_a_fault_fires_and_no_other(name: str, scans: Digits) -> None:
    names = fired(name, scans, "base")
    assert names - FOLLOWS == MEANT[name]


@pytest.mark.parametrize("name", FAULTLESS)
def test_without_a_fault_none_fires(name: str, scans: Digits) -> None:
    assert fired(name, scans, "base") == set()


@pytest.mark.parametrize("name", NAMES)
def test_hpm_inherits_faults_and_their_indicators(name: str, scans: Digits) -> None:
    """But two: distances know no scale, and their gradients add up those of all logits, so winners hide no slope."""
    shed = ("vanishing", "k-winners")
    assert fired(name, scans, "hpm") - FOLLOWS == (set() if name in shed else MEANT.get(name, set()))
