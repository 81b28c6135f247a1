"""A bundle's files <-> its manifest, with the sha256 and size of each, and its signature by `ssh-keygen`.

There is no cryptography of our own: OpenSSH signs the manifest and verifies the signature (ssh-keygen(1), `-Y`).
"""

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from oneshot.errors import UserError

FILE = "manifest.json"
SIGNATURE = "manifest.json.sig"
NAMESPACE = "oneshot"  # a signature for another purpose does not count
CHUNK = 2**20


class _File(BaseModel):
    model_config = ConfigDict(strict=True)
    sha256: str
    bytes: int


class _Manifest(BaseModel):
    files: dict[str, _File]


def manifest_of(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a bundle's other files."""
    rows = {name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    return {"files": rows}


def check_manifest(path: Path, archive: zipfile.ZipFile) -> None:
    """Check that a bundle has exactly the files of its manifest, unchanged.

    Raises UserError: it has no manifest, or a file does not fit it; names the first such file.
    """
    names = archive.namelist()
    if FILE not in names:
        raise _changed(path, f"it has no {FILE}")
    try:
        with archive.open(FILE) as file:
            files = _Manifest.model_validate_json(file.read()).files
    except ValidationError as error:
        raise _changed(path, f"{FILE} is no manifest") from error
    others = [name for name in names if name not in (FILE, SIGNATURE)]
    if len(set(names)) < len(names):
        raise _changed(path, f"{max(names, key=names.count)} is in it twice")
    if missing := [name for name in files if name not in others]:
        raise _changed(path, f"{missing[0]} is missing")
    for name in others:
        if name not in files:
            raise _changed(path, f"{name} is not in {FILE}")
        if _digest(archive, name) != files[name].sha256:
            raise _changed(path, f"{name} does not fit {FILE}")


def _digest(archive: zipfile.ZipFile, name: str) -> str:
    digest = sha256()
    with archive.open(name) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _changed(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: {reason}: the bundle was changed after it was written; ask its author for the original")


# --- signatures ---


def sign(manifest: bytes, key: Path) -> bytes:
    """Return the signature of a manifest by a private key of SSH, or by the agent's key for a public one.

    Raises UserError: ssh-keygen or the key is missing, or it cannot sign.
    """
    key = key.expanduser()
    if not key.is_file():
        raise UserError(f"--sign: {key}: no such key; make one with `ssh-keygen -t ed25519`")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FILE)
        file.write_bytes(manifest)
        ended = _ssh_keygen("sign", "-f", str(key), str(file))
        if ended.returncode:
            raise UserError(f"--sign: {key}: ssh-keygen cannot sign with it: {_reason(ended)}")
        return file.with_name(SIGNATURE).read_bytes()


def signer(path: Path, manifest: bytes, signature: bytes | None, *, signers: Path | None) -> str:
    """Return who signed a manifest: the key's fingerprint, after the name that `signers` gives it; empty if unsigned.

    Raises UserError: the signature is bad, `signers` does not list its key, nothing is signed although `signers` is
    given, or ssh-keygen is missing.
    """
    if signers is not None and not signers.expanduser().is_file():
        raise UserError(f"--signers: {signers}: no such file; write one line `NAME ssh-ed25519 KEY` for each signer")
    if signature is None:
        if signers is not None:
            raise UserError(f"{path}: not signed; ask its author for a bundle made with `--sign`")
        return ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, SIGNATURE)
        file.write_bytes(signature)
        ended = _ssh_keygen("check-novalidate", "-s", str(file), stdin=manifest)
        fingerprint = re.search(r"\S+ key SHA256:\S+", ended.stdout.decode(errors="replace"))
        if ended.returncode or fingerprint is None:
            raise UserError(f"{path}: bad signature: {SIGNATURE} is not one of {FILE}; do not trust this bundle")
        if signers is None:
            return fingerprint[0]
        allowed = str(signers.expanduser())
        found = _ssh_keygen("find-principals", "-s", str(file), "-f", allowed)
        names = found.stdout.decode(errors="replace").split("\n")
        for name in filter(None, names):
            verified = _ssh_keygen("verify", "-I", name, "-f", allowed, "-s", str(file), stdin=manifest)
            if not verified.returncode:
                return f"{name}, {fingerprint[0]}"
    raise UserError(f"{path}: signed by {fingerprint[0]}, which {signers} does not list; do not trust this bundle")


def _ssh_keygen(action: str, *arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    if shutil.which("ssh-keygen") is None:
        raise UserError("ssh-keygen: not installed, so bundles cannot be signed or verified; install OpenSSH")
    # without input, the terminal stays connected: a key may ask for its passphrase
    command = ["ssh-keygen", "-Y", action, "-n", NAMESPACE, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def _reason(ended: subprocess.CompletedProcess[bytes]) -> str:
    lines = ended.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it ended with {ended.returncode}"
