"""A signature over all files of a repository, with an SSH key: whoever has its public half can check it without us.

``SHA256SUMS`` lists the files as ``sha256sum`` does, ``SHA256SUMS.sig`` is OpenSSH's signature of that list. A key that
lies in the agent, or asks for a passphrase, will do; an Ed25519 or RSA key signs equal files with equal bytes.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

from hpm_robustbench.errors import UsageProblem

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
NAMESPACE = "hpm-robustbench"


def sign(files: Mapping[str, bytes], key: Path) -> dict[str, bytes]:
    """Sign files, by their path in the repository; the list and its signature come back.

    Args:
        files: all that are published.
        key: an SSH key, or the public half of one that the agent holds.

    Raises:
        UsageProblem: OpenSSH is not there, or does not sign with that key.
    """
    sums = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)).encode()
    command = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key)]
    try:
        done = subprocess.run(command, input=sums, capture_output=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise _refused(key, "no ssh-keygen on this machine", "install OpenSSH, or leave --sign out") from error
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise _refused(key, said[0][:200], "name a key that exists; ssh-keygen -t ed25519 makes one")
    return {SUMS: sums, SIGNATURE: done.stdout}


def _refused(key: Path, got: str, next_step: str) -> UsageProblem:
    return UsageProblem(wanted=f"a signature with the SSH key {key}", got=got, next_step=next_step)
