"""Each planted defence is tried once, and every test of it looks at that trial."""

from __future__ import annotations

import pytest
from validation.planted import NAMES, Digits, digits, plant
from validation.trial import Tried, attempt

IMAGES = 100
"""One image is one point."""


@pytest.fixture(scope="session")
def scans() -> Digits:
    return digits(IMAGES)


@pytest.fixture(scope="module", params=NAMES)
def tried(request: pytest.FixtureRequest, scans: Digits) -> Tried:
    """The defence of each name after its trial."""
    return attempt(plant(request.param, scans), scans)
