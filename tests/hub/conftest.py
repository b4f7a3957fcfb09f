"""A Hub on the loopback for every test of this folder, and a client whose settings lead to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub.constants as settings
import loopback_hub
import pytest

TOKEN = "hf_CANARY" + "z" * 25


@pytest.fixture(scope="session")
def loopback() -> ModuleType:
    """The Hub's module; see ``support/loopback_hub.py``."""
    return loopback_hub


@pytest.fixture
def hub(loopback: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """The Hub; ``TOKEN`` may write under ``me`` and ``lab``. The client's pauses between attempts take no time."""
    # huggingface_hub 2.4 uploads in a way that its own HTTP library warns about
    warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hub = loopback.LoopbackHub({TOKEN: {"me", "lab"}, "hf_reader": set()})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(settings, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(settings, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    yield hub
    hub.close()


@pytest.fixture
def clean_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let the client forget what it has fetched."""
    return lambda name: monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path / name))
