"""Other settings beside a verdict, and the ends of its interval."""

import json
from dataclasses import replace
from typing import Any

import pytest
from test_claim_looks import FORMAT, LOOKS, OUTCOME, WEAK, after, judged
from told import ARMS, claim, gathered, grades, run, suite, told

from oneshot.plan.frozen import Rules
from oneshot.report.page import beside_texts, interval_text
from oneshot.report.verdicts import JudgedClaim, verdicts

# Other settings.


def with_settings(rules: Rules | None = None, *, num_ended: int = 3) -> JudgedClaim:
    """Best is step 4. The outcome arm is right on all, strictly and leniently, and format leniently at step 4."""
    steps = {0: {"pass_at_1": 0.1}, 4: {"pass_at_1": 0.9}, 8: {"pass_at_1": 0.5}}
    fields = {"suites": (suite(), suite("val")), "measured": {"val": steps, "arithmetic": steps}}
    runs = [
        run(cell, seed, **fields, state="finished" if seed < num_ended else "missing")
        for cell in ARMS
        for seed in range(3)
    ]
    tables = {
        (one.label, "arithmetic", step): grades([6] * 6, samples=6)
        if one.cell == OUTCOME
        else grades([0] * 6, samples=6, num_lenient=[6 if step == 4 else 0] * 6)
        for one in runs
        for step in (4, 8)
    }
    asked = claim(OUTCOME, FORMAT, over_settings={"grader": ["strict", "lenient"], "at": ["last", "best"]})
    return judged(gathered(runs, [asked], tables=tables, rules=rules))


def test_a_claim_is_supported_under_three_of_four_settings() -> None:
    found = with_settings()
    assert [(one["grader"], one["at"], one["effect"], one["verdict"]) for one in found.over_settings] == [
        ("strict", "last", 1.0, "supported"),
        ("strict", "best", 1.0, "supported"),
        ("lenient", "last", 1.0, "supported"),
        ("lenient", "best", 0.0, "inconclusive"),
    ]
    assert beside_texts(found) == ["supported under 3 of 4 settings (not lenient best)"]
    assert found.verdict == "supported"


def test_other_settings_are_judged_at_the_level_of_the_look() -> None:
    asked = claim(OUTCOME, FORMAT, over_settings={"at": ["last"]})
    (found,) = verdicts(after(3, WEAK, asked))
    (other,) = found.over_settings
    assert (found.verdict, other["verdict"]) == ("inconclusive", "inconclusive")
    assert (other["low"], other["high"]) == (found.low, found.high)


def test_before_a_look_other_settings_are_interim_too() -> None:
    found = with_settings(num_ended=2)
    assert {one["verdict"] for one in found.over_settings} == {"interim"}
    assert beside_texts(found) == []


# Ends of intervals.

SPARSE = {0: [1, 1, 1, 0, 0, 0], 1: [1, 1, 0, 0, 0, 0], 2: [1, 0, 0, 0, 0, 0]}


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [({"of": "gain"}, -2.0, 2.0), ({"of": "gain", "expect": {"share_at_least": 0.5}}, -1.5, 1.5), ({}, -1.0, 1.0)],
)
def test_no_interval_is_wider_than_its_quantity(change: dict[str, Any], low: float, high: float) -> None:
    asked = claim(OUTCOME, FORMAT, **change)
    found = judged(
        told(
            lambda cell, seed, step, _: SPARSE[seed % 3] if step and cell == OUTCOME else [0] * 6,
            asked,
            seeds=range(10),
            rules=LOOKS,
            of_run=lambda cell, seed: {} if seed < 3 else {"state": "missing"},
        )
    )
    assert (found.low, found.high) == (low, high)


def test_an_end_that_is_infinite_is_no_number_in_json() -> None:
    # lengths have no bounds: six problems, of which one is longer by far, at the level of the first of three looks
    runs = [run(cell, seed, state="finished" if seed < 3 else "missing") for cell in ARMS for seed in range(10)]
    tables = {
        (one.label, "arithmetic", 8): grades(
            [0] * 6, num_tokens=[10, 10, 10, 10, 10, 900 + one.seed] if one.cell == OUTCOME else [10] * 6
        )
        for one in runs
    }
    asked = claim(OUTCOME, FORMAT, metric="eval/arithmetic/length_mean")
    found = judged(gathered(runs, [asked], tables=tables, rules=LOOKS))
    assert (found.verdict, found.low, found.high) == ("inconclusive", None, None)
    json.dumps(found.to_json(), allow_nan=False)
    assert interval_text(found) == ""
    assert interval_text(replace(found, low=3.0)) == "[+3, no end]"
