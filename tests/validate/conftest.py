"""Each planted defence is tried once, and every test of it looks at that trial."""

from __future__ import annotations

import pytest
from validation.planted import NAMES, Digits, digits, plant
from validation.trial import Tried, attempt

IMAGES, CLASSES = 30, 3
"""So few that within a point means every image; ``benchmarks/validate.py`` has more of both."""


@pytest.fixture(scope="session")
def scans() -> Digits:
    return digits(IMAGES, CLASSES)


@pytest.fixture(scope="module", params=NAMES)
def tried(request: pytest.FixtureRequest, scans: Digits) -> Tried:
    """The defence of each name after its trial."""
    return attempt(plant(request.param, scans), scans)
