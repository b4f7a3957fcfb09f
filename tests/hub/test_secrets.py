"""A token is used and never shown: a canary goes through success and failure, and is looked for everywhere after."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TOKEN = "hf_CANARY" + "z" * 25
PROGRAM = """
import logging, subprocess, traceback
from pathlib import Path
from hpm_robustbench.errors import HpmBenchError
from hpm_robustbench.hub.found import find
from hpm_robustbench.hub.remote import Destination, send
from hpm_robustbench.hub.signature import sign

logging.basicConfig(level=logging.INFO)
files = {"config.json": b"{}", "hpm_card.json": b"{}", "README.md": b"---\\na: 1\\n---\\n"}
subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
files |= sign(files, Path("key"))
print(send(files, Destination("me/good"), "canary"))
print(send(files, Destination("me/samples", kind="dataset", tag="sha256-0"), "canary"))
acts = [(send, (files, Destination(repo), "canary")) for repo in ("me/listing", "me/sending", "other/model")]
acts += [(send, (files, Destination("me/untagged", kind="dataset", tag="sha256-0"), "canary"))]
for act, arguments in [*acts, (find, ("me/good",)), (sign, (files, Path("no-key")))]:
    try:
        act(*arguments)
    except HpmBenchError:
        traceback.print_exc()
"""


@pytest.mark.parametrize("token", [TOKEN, "no-usual-shape-of-a-token"])
def test_no_trace_of_a_token_after_success_and_failure(token, hub, loopback, tmp_path):
    """In a process of its own, with the canary in its environment, as a person's shell would have it."""
    hub.tokens[token] = {"me"}
    echo = {"X-Error-Message": f"bad token {token}"}
    failing = [("GET .*me/listing/tree/", 400), ("POST .*me/sending/preupload", 403), ("me/good/resolve/", 400)]
    failing += [("POST .*me/untagged/tag", 400)]
    hub.faults = [loopback.Fault(match, status, times=99, headers=echo) for match, status in failing]
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": token}
    environment = {**os.environ, **settings, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert (done.returncode, done.stdout.count("changed=True")) == (0, 2), said
    for wanted in (
        "to publish in me/listing",
        "to publish in me/sending",
        "to publish in other/model",
        "to publish in me/untagged",
        "a signature with the SSH key no-key",
        "config.json of",
    ):
        assert f": wanted {wanted}" in said
    assert any(f"Bearer {token}" in asked.headers.values() for asked in hub.asked)
    assert token not in said
    assert [p for p in tmp_path.rglob("*") if p.is_file() and token.encode() in p.read_bytes()] == []
    assert all(token not in asked.path and token.encode() not in asked.body for asked in hub.asked)


def test_no_option_takes_a_token():
    from hpm_robustbench.commands.push import push

    assert not [option.name for option in push.params if "token" in str(option.name)]
