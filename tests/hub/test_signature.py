"""A signature that OpenSSH itself accepts, and no longer accepts once a byte has changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hpm_robustbench.errors import UsageProblem
from hpm_robustbench.hub.signature import NAMESPACE, sign

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs OpenSSH")
FILES = {"config.json": b"{}", "a/b.txt": b"\x00\n", "README.md": "ä".encode()}


def make_key(folder: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    key = folder / f"key-{kind}"
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "somebody", "-f", str(key)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return key


def accepted(folder: Path, key: Path, signer: str = "me", namespace: str = NAMESPACE) -> bool:
    """What the page of a model tells people to do."""
    (folder / "allowed_signers").write_text(f"me {key.with_name(key.name + '.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", signer, "-n", namespace]
    sums = (folder / "SHA256SUMS").read_bytes()
    signed = subprocess.run(
        [*command, "-s", "SHA256SUMS.sig"], input=sums, cwd=folder, capture_output=True, check=False
    )
    listed = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    return (signed.returncode, listed.returncode) == (0, 0)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_openssh_accepts_it_until_a_byte_changes(kind, tmp_path):
    key = make_key(tmp_path, kind)
    folder = write(tmp_path / "repo", {**FILES, **sign(FILES, key)})
    assert accepted(folder, key)
    assert not accepted(folder, key, signer="you") and not accepted(folder, key, namespace="file")
    (tmp_path / "other").mkdir()
    assert not accepted(folder, make_key(tmp_path / "other", kind))
    (folder / "config.json").write_bytes(b"[]")
    assert not accepted(folder, key)
    sums = (folder / "SHA256SUMS").read_bytes()
    write(folder, {**FILES, "SHA256SUMS": sums.replace(b"README.md", b"READ.md")})
    assert not accepted(folder, key)


def test_equal_files_are_signed_with_equal_bytes(tmp_path):
    key = make_key(tmp_path)
    assert sign(FILES, key) == sign(dict(reversed(FILES.items())), key)


def test_a_key_that_does_not_sign_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UsageProblem, match=r"absent.*No such file"):
        sign(FILES, tmp_path / "absent")
    (tmp_path / "text").write_text("no key")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(UsageProblem, match="name a key that exists"):
        sign(FILES, tmp_path / "text")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageProblem, match="no ssh-keygen on this machine"):
        sign(FILES, tmp_path / "absent")
