"""The results that ship with the documentation: each bundle is judged again to the numbers that were published."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from verbs import oneshot

RESULTS = PROJECT / "docs" / "results"
BUNDLES = sorted(RESULTS.glob("*.oneshot.zip"))
EXACT = ("name", "cells", "verdict", "num_seeds", "num_problems", "test", "metric", "of", "at", "expect", "look")
NUMBERS = ("effect", "low", "high", "p_value", "p_holm")


def published(bundle: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(bundle.with_name(bundle.name.replace(".oneshot.zip", ".json")).read_text())
    return rows


def test_there_are_results() -> None:
    assert {bundle.name.partition(".")[0] for bundle in BUNDLES} >= {"quickstart", "miniature", "less-is-more-tiny"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name.partition(".")[0])
def test_a_published_result_is_judged_to_the_same_numbers(bundle: Path, tmp_path: Path) -> None:
    assert bundle.stat().st_size < 2**20
    said = oneshot("report", str(bundle), "--json", cwd=tmp_path)
    assert said.code == 0, said.err
    found, wanted = json.loads(said.out), published(bundle)
    assert [[row[name] for name in EXACT] for row in found] == [[row[name] for name in EXACT] for row in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        for name in NUMBERS:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-9), f"{ours['name']}: {name}"
        assert (ours["share"] is None) == (theirs["share"] is None)
        if theirs["share"] is not None:
            assert ours["share"] == pytest.approx(theirs["share"], abs=1e-9)
