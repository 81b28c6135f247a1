"""A bundle's manifest and its signature: what was changed is refused by name, and a key says who wrote it."""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from synthetic import make_store, put_on_record
from test_attacks import TEXT, clear
from verbs import oneshot

from oneshot.errors import UserError
from oneshot.plan.loader import begun_sweep
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.manifest import FILE, SIGNATURE, manifest_of
from oneshot.report.runs import gather
from oneshot.report.verdicts import verdicts
from oneshot.store.store import Store

has_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="signing needs OpenSSH")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep `attacked`, its bundle `plain.zip`, and two keys `ann` and `bob`."""
    folder = tmp_path_factory.mktemp("lab")
    put_on_record(folder, TEXT)
    make_store(folder, TEXT, accuracy=clear)
    write_bundle(gather(begun_sweep(Store(str(folder / "runs")), "attacked")), folder / "plain.zip")
    if shutil.which("ssh-keygen"):
        for name in ("ann", "bob"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def signed(lab: Path) -> Path:
    """The bundle as `report --bundle --sign` writes it."""
    said = oneshot("report", "attacked", "--bundle", "--sign", "ann", cwd=lab)
    assert said.code == 0, said.err
    return lab / "attacked.oneshot.zip"


Change = Callable[[dict[str, bytes]], None]


def altered(path: Path, target: Path, change: Change) -> Path:
    """A copy of a bundle with other files."""
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    return target


def refusal(path: Path, *, signers: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        read_bundle(path, signers=signers)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{path}: ")


def fit(files: dict[str, bytes]) -> None:
    """Makes the manifest fit again, as whoever changes a file can."""
    others = {name: data for name, data in files.items() if name not in (FILE, SIGNATURE)}
    files[FILE] = json.dumps(manifest_of(others)).encode()


def test_a_manifest_has_every_file_with_its_digest_and_size(lab: Path) -> None:
    with zipfile.ZipFile(lab / "plain.zip") as archive:
        files = json.loads(archive.read(FILE))["files"]
        assert {*files, FILE} == {*archive.namelist()}
        for name, row in files.items():
            data = archive.read(name)
            assert row == {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
        assert b"oneshot report attacked.oneshot.zip" in archive.read("README.md")
        assert archive.read("report.html").startswith(b"<!doctype html>")


CHANGED: dict[str, tuple[Change, str]] = {
    "a run": (lambda files: files.update({"runs.json": b"[]"}), "runs.json does not fit manifest.json"),
    "the page": (lambda files: files.update({"report.html": b"all good"}), "report.html does not fit manifest.json"),
    "a file more": (lambda files: files.update(more=b""), "more is not in manifest.json"),
    "a file less": (lambda files: files.pop("README.md"), "README.md is missing"),  # type: ignore[dict-item, return-value]
    "no manifest": (lambda files: files.pop(FILE), "it has no manifest.json"),  # type: ignore[dict-item, return-value]
    "half a manifest": (lambda files: files.update({FILE: files[FILE][:40]}), "manifest.json is no manifest"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_bundle_that_was_changed_is_refused_by_the_name_of_the_file(lab: Path, tmp_path: Path, name: str) -> None:
    change, says = CHANGED[name]
    path = altered(lab / "plain.zip", tmp_path / "changed.zip", change)
    assert refusal(path) == f"{says}: the bundle was changed after it was written; ask its author for the original"


def test_a_file_that_is_in_it_twice_is_refused(lab: Path, tmp_path: Path) -> None:
    path = altered(lab / "plain.zip", tmp_path / "twice.zip", lambda files: None)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("runs.json", "[]")
    assert refusal(path).startswith("runs.json is in it twice: ")


def as_before(files: dict[str, bytes]) -> None:
    """As the version before wrote it."""
    metadata = {**json.loads(files["bundle.json"]), "format": 1}
    files["bundle.json"] = json.dumps(metadata).encode()
    for name in (FILE, "README.md", "report.html"):
        del files[name]


def test_a_bundle_of_the_format_before_is_read_and_said_to_be_unchecked(lab: Path, tmp_path: Path) -> None:
    path = altered(lab / "plain.zip", tmp_path / "old.zip", as_before)
    old = read_bundle(path)
    assert verdicts(old) == verdicts(read_bundle(lab / "plain.zip"))
    assert old.warnings == ("this bundle has no manifest, so whether its files were changed is unknown",)
    said = oneshot("report", "old.zip", cwd=tmp_path)
    assert said.code == 0
    assert "old.zip: this bundle has no manifest" in said.err


@has_ssh
def test_a_signed_bundle_says_by_which_key(lab: Path, signed: Path) -> None:
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(lab / "ann.pub")], capture_output=True, text=True, check=True
    )
    fingerprint = listed.stdout.split()[1]
    assert read_bundle(signed).signed_by == f"ED25519 key {fingerprint}"
    said = oneshot("report", signed.name, "--json", cwd=lab)
    assert said.code == 0
    assert json.loads(said.out)[0]["verdict"] == "supported"
    assert f"signed by ED25519 key {fingerprint}" in said.err
    assert read_bundle(lab / "plain.zip").signed_by == ""


@has_ssh
def test_a_list_of_signers_says_who_signed(lab: Path, signed: Path, tmp_path: Path) -> None:
    public = {name: " ".join((lab / f"{name}.pub").read_text().split()[:2]) for name in ("ann", "bob")}
    signers = tmp_path / "signers"
    signers.write_text(f"bob@lab {public['bob']}\nann@lab {public['ann']}\n")
    assert read_bundle(signed, signers=signers).signed_by.startswith("ann@lab, ED25519 key SHA256:")
    assert refusal(lab / "plain.zip", signers=signers) == "not signed; ask its author for a bundle made with `--sign`"
    signers.write_text(f"bob@lab {public['bob']}\n")
    assert refusal(signed, signers=signers).startswith("signed by ED25519 key SHA256:")
    assert f"which {signers} does not list; do not trust this bundle" in refusal(signed, signers=signers)


@has_ssh
def test_a_signature_does_not_fit_a_manifest_that_was_made_to_fit(signed: Path, tmp_path: Path) -> None:
    def forge(files: dict[str, bytes]) -> None:
        files["runs.json"] += b" "
        fit(files)

    says = "bad signature: manifest.json.sig is not one of manifest.json; do not trust this bundle"
    assert refusal(altered(signed, tmp_path / "forged.zip", forge)) == says


@has_ssh
def test_a_signed_bundle_that_claims_an_older_format_is_checked_all_the_same(signed: Path, tmp_path: Path) -> None:
    def forge(files: dict[str, bytes]) -> None:
        files["bundle.json"] = files["bundle.json"].replace(b'"format": 3', b'"format": 1')

    assert refusal(altered(signed, tmp_path / "forged.zip", forge)).startswith("bundle.json does not fit manifest.json")


@has_ssh
def test_what_is_missing_for_a_signature_is_one_line(lab: Path, signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        answer = oneshot("report", *arguments, cwd=lab)
        assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1), answer
        return answer.err

    assert "--sign: nowhere: no such key; make one with" in said("attacked", "--bundle", "--sign", "nowhere")
    assert "--sign: sweep.yaml: ssh-keygen cannot sign with it: " in said(
        "attacked", "--bundle", "--sign", "sweep.yaml"
    )
    assert "--sign: signs a bundle; add --bundle" in said("attacked", "--sign", "ann")
    assert "--signers: nowhere: no such file" in said(signed.name, "--signers", "nowhere")
    assert "--signers: attacked is not a bundle" in said("attacked", "--signers", "ann.pub")
    monkeypatch.setattr("oneshot.report.manifest.shutil.which", lambda name: None)
    for arguments in (["attacked", "--bundle", "--sign", "ann"], [signed.name]):
        assert "ssh-keygen: not installed, so bundles cannot be signed or verified; install OpenSSH" in said(*arguments)
