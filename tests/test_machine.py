"""`oneshot doctor` without a sweep: what this machine can do."""

import os
from pathlib import Path

import pytest
from verbs import oneshot

from oneshot.sweep.machine import check_machine


def test_every_check_has_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {finding.check: finding for finding in check_machine(str(tmp_path / "runs"))}
    assert list(found) == ["libraries", "processors", "GPUs", "engines", "model hub", "storage", "temporary files"]
    assert f"{os.cpu_count()} cores" in found["processors"].text
    assert "lockstep, hf" in found["engines"].text
    assert not (tmp_path / "runs").exists()


def test_the_verb_prints_them_and_says_when_something_is_bad(tmp_path: Path) -> None:
    said = oneshot("doctor", cwd=tmp_path)
    assert said.code == 0 and "processors" in said.out
    (tmp_path / "file").write_text("")
    blocked = oneshot("doctor", "--storage", "/proc/oneshot", cwd=tmp_path)
    assert blocked.code == 2 and "cannot be written" in blocked.out


def test_what_needs_a_sweep_says_so(tmp_path: Path) -> None:
    said = oneshot("doctor", "--address", "http://head:8265", cwd=tmp_path)
    assert said.err == "oneshot: doctor: --set and --address need a sweep file; write `oneshot doctor FILE ...`\n"
