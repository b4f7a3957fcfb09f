"""Where tox takes torch from: without an NVIDIA driver, prefer the CPU builds over gigabytes of CUDA libraries.

PyPI's torch for Linux and Windows is the CUDA build. PyTorch's own CPU index offers the same versions with the suffix
``+cpu``, which pip ranks higher. It is added only where nobody has said where packages come from, there is no NVIDIA
driver, and the index answers.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys

_HOST = "download.pytorch.org"
_CHOSEN_BY_USER = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_CONFIG_FILE")


def _answers() -> bool:
    try:
        with socket.create_connection((_HOST, 443), timeout=3):
            return True
    except OSError:
        return False


def _wants_cpu_builds() -> bool:
    free_to_choose = not any(name in os.environ for name in _CHOSEN_BY_USER)
    return free_to_choose and sys.platform in ("linux", "win32") and shutil.which("nvidia-smi") is None and _answers()


if _wants_cpu_builds():
    os.environ["PIP_EXTRA_INDEX_URL"] = f"https://{_HOST}/whl/cpu"
