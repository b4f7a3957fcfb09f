"""The strict lamp: shapes and types of the lab are checked while the tests run, and examples are the same each time."""

from __future__ import annotations

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("hpm_robustbench", "beartype.beartype")

torch.set_num_threads(1)
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")
