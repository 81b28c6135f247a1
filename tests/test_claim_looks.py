"""Planned looks, primary claims, failed seeds and other settings: what is judged when, and at which level. By hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from told import Counts, Told, claim, told

from oneshot.config.claims import ClaimConfig
from oneshot.plan.frozen import Planned, Rules, record, thaw
from oneshot.report.looks import bounds, spent_level
from oneshot.report.page import beside_texts, summary
from oneshot.report.runs import Gathered
from oneshot.report.verdicts import JudgedClaim, decided_at, verdicts

OUTCOME, FORMAT = {"arm": "outcome"}, {"arm": "format"}
AGAINST_FORMAT = claim(OUTCOME, FORMAT)
LOOKS = Rules(looks=(3, 6, 10))
DECIDED = {"state": "stopped", "reason": "decided at look 1 of 3"}
SURE, WEAK = [6] * 10, [6, 5, 4, 6, 5, 4, 6, 5, 4, 5]
"""Of six completions of every problem so many are right in the outcome arm at each seed, in the other none.

So only seeds differ, and p is that of a t test: 0.0131 at three seeds of WEAK, 0.00004 at six.
"""


def right(of_outcome: Sequence[int], *, start: int = 0) -> Counts:
    def counts(cell: Mapping[str, str], seed: int, step: int, suite: str) -> int:
        return start if cell["arm"] == "format" or not step else of_outcome[seed]

    return counts


def sampled(counts: Counts, *claims: ClaimConfig, **changes: Any) -> Gathered:
    return told(counts, *claims, samples=6, **changes)


def after(
    num_seeds: int,
    of_outcome: Sequence[int] = SURE,
    *claims: ClaimConfig,
    rest: Mapping[str, Any] = {"state": "missing"},
    rules: Rules = LOOKS,
) -> Gathered:
    """Ten seeds are planned, and so many have finished."""
    return sampled(
        right(of_outcome),
        *(claims or (AGAINST_FORMAT,)),
        seeds=range(10),
        rules=rules,
        of_run=lambda cell, seed: {} if seed < num_seeds else rest,
    )


def judged(found: Gathered) -> JudgedClaim:
    (one,) = verdicts(found)
    return one


# Looks.


@pytest.mark.parametrize("num_seeds", [0, 1, 2])
def test_before_the_first_look_a_verdict_is_interim(num_seeds: int) -> None:
    found = judged(after(num_seeds))
    assert (found.verdict, found.num_seeds, found.look, found.p_value, found.p_holm) == (
        "interim",
        num_seeds,
        None,
        None,
        None,
    )
    assert decided_at(after(num_seeds)) is None


@pytest.mark.parametrize(("num_seeds", "look", "counted"), [(3, 1, 3), (5, 1, 3), (6, 2, 6), (9, 2, 6), (10, 3, 10)])
def test_between_two_looks_the_last_complete_one_counts(num_seeds: int, look: int, counted: int) -> None:
    found = judged(after(num_seeds, [6, 0, 0, 0, 6, 0, 0, 0, 0, 0]))
    assert found.look == {"number": look, "of": 3, "seeds": counted, "p_bound": bounds((3, 6, 10))[look - 1]}
    assert (found.num_seeds, found.verdict) == (counted, "inconclusive")


def test_a_claim_that_was_decided_at_a_look_stays_decided() -> None:
    # the same at three seeds, then nothing any more
    found = judged(after(10, [6, 6, 6, 0, 0, 0, 0, 0, 0, 0]))
    assert (found.verdict, found.num_seeds, found.effect) == ("supported", 3, 1.0)
    assert found.look is not None and found.look["number"] == 1


def test_a_p_value_below_5_percent_is_not_enough_at_the_first_look() -> None:
    found = judged(after(3, WEAK))
    assert found.p_value == pytest.approx(0.0131, abs=1e-4)
    assert found.p_holm == pytest.approx(spent_level(found.p_value, 0, (3, 6, 10)))
    assert found.p_holm is not None and found.p_holm > 0.15
    assert (found.verdict, found.low is not None and found.low < 0) == ("inconclusive", True)
    assert beside_texts(found) == ["look 1 of 3, after 3 seeds: p 0.013 >= 0.00035"]


def test_it_is_decided_at_the_second() -> None:
    found = judged(after(6, WEAK))
    assert found.look is not None and (found.look["number"], found.verdict) == (2, "supported")
    assert beside_texts(found)[0].startswith("look 2 of 3, after 6 seeds: p ")
    assert beside_texts(found)[0].endswith("< 0.011")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=5, max_size=5))
def test_the_interval_excludes_the_bound_exactly_if_p_is_below_the_looks(of_outcome: list[int]) -> None:
    found = judged(sampled(right(of_outcome), AGAINST_FORMAT, seeds=range(5), rules=Rules(looks=(3, 5))))
    assert found.look is not None and found.p_value is not None and found.low is not None
    if abs(found.p_value / found.look["p_bound"] - 1) > 1e-6:
        assert (found.low > 0) == (found.p_value < found.look["p_bound"])
    assert found.p_holm == pytest.approx(spent_level(found.p_value, found.look["number"] - 1, (3, 5)))


def test_one_look_at_all_seeds_is_the_plain_test() -> None:
    plain = judged(sampled(right(WEAK), AGAINST_FORMAT, seeds=range(6)))
    found = judged(sampled(right(WEAK), AGAINST_FORMAT, seeds=range(6), rules=Rules(looks=(6,))))
    assert (found.low, found.high, found.p_value, found.p_holm, found.verdict) == (
        plain.low,
        plain.high,
        plain.p_value,
        plain.p_holm,
        plain.verdict,
    )


def test_a_look_that_lacks_its_seeds_is_not_complete() -> None:
    # someone dropped seeds 3 to 9 from the file: there are three seeds, and looks at six and ten
    found = judged(sampled(right(WEAK), AGAINST_FORMAT, seeds=range(3), rules=LOOKS))
    assert found.look is not None and (found.look["number"], found.num_seeds) == (1, 3)
    assert found.verdict == "inconclusive"
    assert judged(sampled(right(WEAK), AGAINST_FORMAT, seeds=range(2), rules=LOOKS)).verdict == "interim"


def test_an_amended_claim_is_judged_at_the_same_looks() -> None:
    found = verdicts(replace(after(5), amended=(claim(OUTCOME, FORMAT, name="later"),)))
    assert [(one.is_amended, one.look and one.look["number"]) for one in found] == [(False, 1), (True, 1)]
    assert summary(found) == "Verdict: 1 of 1 supported; 1 amended, apart."


def test_a_start_that_is_not_there_yet_completes_no_look() -> None:
    # both sides at the start: of seed 2 nothing has been evaluated
    asked = claim({**OUTCOME, "at": "start"}, FORMAT)
    measured = {"measured": {"arithmetic": {0: {"pass_at_1": 0.0}}}}
    running = after(2, SURE, asked, rules=Rules(), rest={"state": "missing"})
    assert judged(running).verdict == "interim"
    begun = after(2, SURE, asked, rules=Rules(), rest={"state": "running", **measured})
    assert judged(begun).verdict != "interim"


@pytest.mark.parametrize("looks", [[6, 3], [3, 3], [0, 3], [-3], [2]])
def test_a_record_with_looks_that_no_file_can_have_is_not_read(looks: list[int]) -> None:
    fields = record(Planned(rules=LOOKS), 1)
    with pytest.raises(ValueError, match="must rise, and begin at 3 seeds"):
        thaw({**fields, "rules": {**fields["rules"], "looks": looks}})


# When a sweep may stop.


@pytest.mark.parametrize(
    ("num_seeds", "of_outcome", "look"),
    [
        (2, SURE, None),
        (3, SURE, 1),
        (5, WEAK, None),
        (6, WEAK, 2),
        (10, [6, 0, 0, 0, 6, 0, 0, 0, 0, 0], None),
        (10, SURE, 1),
        (10, WEAK, 2),
    ],
)
def test_the_claims_are_decided_at_the_first_look_that_decides_all(
    num_seeds: int, of_outcome: list[int], look: int | None
) -> None:
    assert decided_at(after(num_seeds, of_outcome)) == look


def test_every_claim_counts_unless_some_are_primary() -> None:
    open_claim = claim(OUTCOME, FORMAT, name="open", expect={"within": 0.999})
    sure = claim(OUTCOME, FORMAT, name="sure")
    never = claim({**OUTCOME, "at": "start"}, FORMAT, name="never")
    assert decided_at(after(3, SURE, sure, open_claim)) == 1
    assert decided_at(after(3, SURE, sure, never)) is None
    assert decided_at(after(3, SURE, claim(OUTCOME, FORMAT, primary=True), never)) == 1


def test_a_sweep_without_claims_is_never_decided() -> None:
    assert decided_at(sampled(right(SURE), rules=LOOKS)) is None


def test_a_claim_added_later_keeps_no_sweep_running() -> None:
    later = claim({**OUTCOME, "at": "start"}, FORMAT, name="later")
    assert decided_at(replace(after(3), amended=(later,))) == 1


def test_seeds_that_a_decision_stopped_have_not_failed() -> None:
    found = judged(after(3, rest=DECIDED))
    assert (found.verdict, found.num_seeds, found.effect) == ("supported", 3, 1.0)
    assert found.notes == ()
    assert found.without_failed is None


def test_seeds_that_a_decision_stopped_do_not_count_in_an_interim_verdict() -> None:
    found = judged(after(2, rest=DECIDED))
    assert (found.verdict, found.num_seeds, found.effect) == ("interim", 2, 1.0)
    assert "left out: seed 2: outcome seed 2 is stopped (decided at look 1 of 3)" in found.notes


def test_seeds_that_a_person_stopped_have_failed() -> None:
    found = judged(after(3, rest={"state": "stopped", "reason": "by request"}, rules=Rules()))
    assert (found.num_seeds, found.effect) == (10, pytest.approx(0.3))
    assert found.notes[0].startswith("14 of 20 trainings failed and count as their start: format seed 3")


# Primary claims.

NOT_PRIMARY = claim(OUTCOME, FORMAT, name="other", expect={"greater_by": -0.9})


def of_three(of_outcome: Sequence[int], *claims: ClaimConfig) -> list[JudgedClaim]:
    return verdicts(sampled(right(of_outcome), *claims))


def test_primary_claims_are_corrected_among_themselves() -> None:
    # p = 0.0131 alone; with one more primary twice that, whatever else there is
    others = [claim(OUTCOME, FORMAT, name=f"other {number}") for number in range(5)]
    first, second = (claim(OUTCOME, FORMAT, name=name, primary=True) for name in ("first", "second"))
    found = of_three(WEAK, first, second, *others)
    assert [one.p_holm for one in found[:2]] == [pytest.approx(2 * 0.0131, abs=2e-4)] * 2
    assert {one.verdict for one in found[:2]} == {"supported"}
    assert found[0].is_primary and not found[2].is_primary


def test_the_others_have_at_least_the_largest_p_of_the_primary_ones() -> None:
    # the other claim alone has a much smaller p
    found = of_three(WEAK, claim(OUTCOME, FORMAT, primary=True), NOT_PRIMARY)
    p_value = found[0].p_value
    assert p_value == pytest.approx(0.0131, abs=1e-4)
    assert found[1].p_value is not None and found[1].p_value < p_value / 2
    assert found[1].p_holm == p_value
    assert found[1].verdict == "supported"


def test_behind_a_primary_claim_that_is_open_nothing_is_decided() -> None:
    # 6, 6 and 0 of 6: p = 0.1835. The other, that a is not 300 points below, is certain by itself
    far = claim(OUTCOME, FORMAT, name="far", expect={"greater_by": -3})
    found = of_three([6, 6, 0], claim(OUTCOME, FORMAT, primary=True), far)
    gate = stats.ttest_1samp([1, 1, 0], 0).pvalue
    assert found[1].p_holm == pytest.approx(gate)
    assert found[1].p_value is not None and found[1].p_value < 0.01
    assert found[1].verdict == "inconclusive"
    expected = "supported as the only claim, but not after Holm's correction over 1 verdict, which come after 1 primary"
    assert found[1].notes[0] == expected


def test_a_primary_claim_that_cannot_be_judged_closes_the_gate() -> None:
    gone = claim(OUTCOME, FORMAT, metric="rollout/nothing", primary=True)
    found = of_three(SURE, gone, AGAINST_FORMAT)
    assert (found[0].p_holm, found[1].p_holm, found[1].verdict) == (None, 1.0, "inconclusive")


# Failed seeds.


def without_start(failed: Literal["start", "worst", "leave_out"], asked: ClaimConfig = AGAINST_FORMAT) -> JudgedClaim:
    """Three right at every start; seed 0 of the outcome arm broke before its evaluation there."""
    found = sampled(
        right([6, 6, 6], start=3),
        asked,
        rules=Rules(failed=failed),
        of_run=lambda cell, seed: {"state": "failed", "reason": "it broke"} if (cell, seed) == (OUTCOME, 0) else {},
    )
    assert isinstance(found.record, Told)
    tables = {name: table for name, table in found.record.tables.items() if name[0] != "outcome seed 0"}
    return judged(replace(found, record=Told(tables=tables)))


@pytest.mark.parametrize(
    ("failed", "effect", "num_seeds"),
    [
        ("start", (0 + 0.5 + 0.5) / 3, 3),  # 3 of 6, as at the start of another seed, against 3 of 6
        ("worst", (-0.5 + 0.5 + 0.5) / 3, 3),
        ("leave_out", 0.5, 2),
    ],
)
def test_a_seed_that_failed_before_its_start_has_that_of_another(
    failed: Literal["start", "worst", "leave_out"], effect: float, num_seeds: int
) -> None:
    found = without_start(failed)
    assert (found.effect, found.num_seeds) == (pytest.approx(effect), num_seeds)


def test_it_gained_nothing_also_against_its_own_start() -> None:
    found = without_start("start", claim(OUTCOME, {"at": "start"}))
    assert (found.effect, found.num_seeds) == (pytest.approx(1 / 3), 3)
    assert found.notes == ("1 of 3 trainings failed and count as their start: outcome seed 0",)


def test_where_every_training_failed_the_arms_are_not_alike() -> None:
    # each counts as its start, so that no problem differs: [-6.0, +6.0] is within 10 points
    asked = claim(OUTCOME, FORMAT, expect={"within": 0.1})
    found = judged(
        told(
            lambda *_: 0,
            asked,
            seeds=range(5),
            sizes={"arithmetic": 60},
            of_run=lambda cell, seed: {"state": "failed", "reason": "it broke"},
        )
    )
    assert (found.verdict, found.effect, found.p_value) == ("inconclusive", 0.0, None)
    assert "no training finished, so nothing is judged" in found.notes
    assert not any("carry the difference" in note for note in found.notes)


def test_without_the_failed_seeds_stands_beside_the_verdict() -> None:
    found = sampled(
        right([6] * 5),
        AGAINST_FORMAT,
        seeds=range(5),
        of_run=lambda cell, seed: {"state": "failed", "reason": "it broke"} if (cell, seed) == (OUTCOME, 4) else {},
    )
    one = judged(found)
    assert one.effect == pytest.approx(0.8)
    assert one.without_failed == {"verdict": "supported", "effect": 1.0, "low": 1.0, "high": 1.0, "num_seeds": 4}
    assert beside_texts(one) == ["without the seeds that failed: +100.0, supported"]


def test_of_a_metric_without_shares_the_worst_is_the_start() -> None:
    # 10 tokens everywhere: a length of 0 would be a strange worst
    asked = claim(OUTCOME, FORMAT, metric="eval/arithmetic/length_mean")
    assert without_start("worst", asked).effect == 0.0
