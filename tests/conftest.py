"""The strict lamp: the lab's shapes and types are checked while the tests run, and examples are the same each time."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Only where tensors flow: modules that judge what a user hands them must meet bad values themselves.
CHECKED = (
    *(f"hpm.{module}" for module in ("backbone", "classifier", "composite", "fitting", "heads", "prototypes", "views")),
    "attacks",
    "evaluation",
)
install_import_hook([f"hpm_robustbench.{module}" for module in CHECKED], "beartype.beartype")

torch.set_num_threads(1)
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(scope="session")
def world() -> ModuleType:
    """Corrupted images with known answers; see ``support/corrupted_world.py``."""
    import corrupted_world  # after the hook is in place

    return corrupted_world
