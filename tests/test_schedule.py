"""Early stopping: rungs and medians worked by hand, and the law that a rebuilt state decides as the one it replaces."""

import math
from random import Random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler

from oneshot.config.search import EarlyStopConfig
from oneshot.sweep.search.pruners import EarlyStop, Judgement, rungs

FAR = 10**6  # steps of a trial whose last one is not what a test is about


def asha(grace_steps: int = 10, factor: float = 3, mode: Any = "max") -> EarlyStop:
    return EarlyStop(EarlyStopConfig(kind="asha", grace_steps=grace_steps, factor=factor), mode=mode)


def by_median(grace_steps: int = 1, min_trials: int = 2, mode: Any = "max") -> EarlyStop:
    return EarlyStop(EarlyStopConfig(kind="median", grace_steps=grace_steps, min_trials=min_trials), mode=mode)


def at_rung(early: EarlyStop, *values: float, step: int = 10, group: str = "g") -> list[bool]:
    """Whether each of some trials, a, b, c ..., stops as they arrive one after another."""
    keys = "abcdefghijklmnopqrstuvwxyz"
    return [arrived(early, key, step, value, group=group).stop for key, value in zip(keys, values, strict=False)]


def arrived(early: EarlyStop, key: str, step: int, value: float, *, group: str = "g") -> Judgement:
    judgement = early.arrive(group, key, step, value, num_steps=FAR)
    assert judgement is not None
    return judgement


def test_rungs_are_grace_steps_times_powers_of_the_factor_below_the_last_step() -> None:
    config = EarlyStopConfig(kind="asha", grace_steps=20, factor=3)
    assert rungs(config, below=200) == [20, 60, 180]
    assert rungs(config, below=180) == [20, 60]  # at its last step nobody is stopped
    assert rungs(config, below=20) == []


def test_rungs_of_a_broken_factor_are_rounded_and_stand_once() -> None:
    # 2, 3, 4.5, 6.75, 10.125; and 1, 1.2, 1.44, 1.728, 2.0736
    assert rungs(EarlyStopConfig(kind="asha", grace_steps=2, factor=1.5), below=11) == [2, 3, 4, 7, 10]
    assert rungs(EarlyStopConfig(kind="asha", grace_steps=1, factor=1.2), below=3) == [1, 2]


def test_asha_by_hand_with_factor_3() -> None:
    # of 1: first; of 2 and 3 the best 1: 0.5; of 4 and 5 the best 1: 0.7; of 6 and 7 the best 2: 0.65
    assert at_rung(asha(), 0.5, 0.4, 0.5, 0.7, 0.6, 0.65, 0.6) == [False, True, False, False, True, False, True]


def test_asha_by_hand_with_factor_2() -> None:
    # of 1: first; of 2 and 3 the best 1: 0.5, then 0.6; of 4 and 5 the best 2: 0.55; of 6 and 7 the best 3: 0.54
    found = at_rung(asha(factor=2), 0.5, 0.4, 0.6, 0.55, 0.52, 0.54, 0.53)
    assert found == [False, True, False, False, True, False, True]


def test_in_mode_min_the_small_go_on() -> None:
    assert at_rung(asha(mode="min"), 0.5, 0.6, 0.5, 0.3, 0.4, 0.35, 0.4) == [
        False,
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_equals_of_the_cutoff_go_on() -> None:
    assert at_rung(asha(), *[0.5] * 9) == [False] * 9


def test_a_judgement_says_why() -> None:
    early = asha(grace_steps=60)
    found = [arrived(early, key, 60, value) for key, value in (("a", 0.25), ("b", 0.3125), ("c", 0.125))]
    assert [one.reason for one in found] == [
        "rung 60: 0.25 is the first to arrive",
        "rung 60: 0.3125 is among the best 1/3 of 2 (cutoff 0.3125)",
        "rung 60: 0.125 is not among the best 1/3 of 3 (cutoff 0.3125)",
    ]
    reason = "rung 60: 0.125 is not among the best 1/3 of 3 (cutoff 0.3125)"
    assert found[2] == Judgement(group="g", key="c", step=60, rung=60, value=0.125, stop=True, reason=reason)


def test_a_cutoff_in_mode_min_is_given_as_it_was_seen() -> None:
    early = asha(mode="min")
    arrived(early, "a", 10, 0.25)
    assert arrived(early, "b", 10, 0.5).reason == "rung 10: 0.5 is not among the best 1/3 of 2 (cutoff 0.25)"


def test_groups_are_never_compared() -> None:
    early = asha()
    assert at_rung(early, 0.9, group="big model") == [False]
    assert at_rung(early, 0.1, 0.05, group="small model") == [False, True]


def test_only_new_rungs_are_judged() -> None:
    early = asha()
    assert early.arrive("g", "a", 9, 0.1, num_steps=FAR) is None
    assert arrived(early, "a", 12, 0.2).rung == 10
    assert early.arrive("g", "a", 29, 0.3, num_steps=FAR) is None
    assert arrived(early, "a", 30, 0.3).rung == 30
    assert early.arrive("g", "a", 10, 0.9, num_steps=FAR) is None  # it went on from a checkpoint at step 9


def test_who_skips_rungs_is_judged_at_the_highest_and_counts_in_those_below() -> None:
    early = asha()
    assert arrived(early, "a", 100, 0.5).rung == 90
    assert arrived(early, "b", 10, 0.4).reason == "rung 10: 0.4 is not among the best 1/3 of 2 (cutoff 0.5)"
    assert arrived(early, "c", 30, 0.6).reason == "rung 30: 0.6 is among the best 1/3 of 2 (cutoff 0.6)"
    # in a rung where it was judged before, its value stays: 0.1 at 10, though 0.9 at 90
    early = asha()
    arrived(early, "a", 10, 0.1)
    arrived(early, "a", 90, 0.9)
    assert not arrived(early, "b", 10, 0.2).stop
    assert arrived(early, "c", 30, 0.2).stop


def test_the_last_step_stops_nobody_and_counts_for_others() -> None:
    early = asha()
    arrived(early, "a", 30, 0.5)
    judgement = early.arrive("g", "b", 30, 0.4, num_steps=30)
    assert judgement is not None
    assert not judgement.stop
    assert judgement.reason == "rung 30: 0.4 at the last step"
    assert "of 3" in arrived(early, "c", 30, 0.3).reason


def test_who_was_told_to_stop_is_told_again() -> None:
    early = asha()
    told = [arrived(early, key, 10, value) for key, value in (("a", 0.5), ("b", 0.4))][1]
    rebuilt = asha()
    rebuilt.replay(told)
    assert told.stop
    assert arrived(early, "b", 90, 0.9) == arrived(rebuilt, "b", 11, 0.9) == told
    assert not arrived(early, "c", 90, 0.1).stop  # the first at 90: b never was there


def test_not_a_number_stops_even_the_first() -> None:
    early = asha()
    judgement = arrived(early, "a", 10, math.nan)
    assert judgement.stop
    assert judgement.reason == "rung 10: the value is not a number"


def test_not_a_number_counts_as_the_worst_that_arrived() -> None:
    # of 4: 0.5; of 5: 0.5; of 6 the best 2: 0.5 and 0.4
    assert at_rung(asha(), math.nan, math.nan, math.nan, 0.5, 0.4, 0.4) == [True, True, True, False, True, False]


@given(st.integers(2, 4), st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_who_goes_on_here_goes_on_in_ray_too(factor: int, values: list[int]) -> None:
    # of m others in order Ray asks for the one at (1 - 1/f)(m - 1), we for that at m - max(1, floor((m + 1)/f)): never
    # lower, and the same at f = 2 with m odd
    theirs = ASHAScheduler(
        time_attr="step", metric="value", mode="max", grace_period=10, max_t=100, reduction_factor=factor
    )
    ours = asha(factor=factor)
    for num_others, value in enumerate(values):
        trial: Any = SimpleNamespace(trial_id=str(num_others))
        theirs.on_trial_add(None, trial)  # type: ignore[arg-type]  # no controller
        told = theirs.on_trial_result(None, trial, {"step": 10, "value": value})  # type: ignore[arg-type]
        stop = arrived(ours, str(num_others), 10, value).stop
        assert stop or told == "CONTINUE"
        if num_others == 1 or (factor == 2 and num_others % 2):
            assert stop == (told == "STOP")


def others(early: EarlyStop, **values: list[float]) -> None:
    """Trials with a value at each of the steps 1, 2, 3 ..."""
    for key, run in values.items():
        for step, value in enumerate(run, start=1):
            early.arrive("g", key, step, value, num_steps=FAR)


def test_median_by_hand() -> None:
    early = by_median()
    others(early, a=[0.25, 0.5, 0.75], b=[0.5, 0.5, 0.5])
    # up to step 1 the others' means are 0.25 and 0.5, up to step 2 they are 0.375 and 0.5
    judged = [arrived(early, "c", 1, 0.375), arrived(early, "c", 2, 0.125)]
    assert [one.stop for one in judged] == [False, True]
    assert [one.reason for one in judged] == [
        "step 1: its best, 0.375, is not worse than 0.375, the median of 2 others' means",
        "step 2: its best, 0.375, is worse than 0.4375, the median of 2 others' means",
    ]
    assert [one.rung for one in judged] == [0, 0]


def test_median_in_mode_min_by_hand() -> None:
    early = by_median(mode="min")
    others(early, a=[0.8, 0.6, 0.4], b=[0.6, 0.6, 0.6])
    assert not arrived(early, "c", 1, 0.7).stop
    assert arrived(early, "c", 2, 0.9).reason == (
        "step 2: its best, 0.7, is worse than 0.65, the median of 2 others' means"
    )


def test_median_waits_until_enough_have_come_as_far() -> None:
    early = by_median(min_trials=2)
    others(early, a=[0.9, 0.9], b=[0.9])
    assert arrived(early, "c", 1, 0.1).stop
    assert arrived(early, "d", 2, 0.1).reason == "step 2: 1 other trials have come this far; 2 are needed"


def test_a_trial_without_a_value_so_far_has_no_mean() -> None:
    early = by_median(min_trials=1)
    arrived(early, "a", 100, 0.9)
    assert not arrived(early, "b", 50, 0.1).stop
    assert arrived(early, "c", 60, 0.0).stop is False  # b has not come as far


def test_median_ends_nobody_before_grace_and_counts_the_values_from_there() -> None:
    early = by_median(grace_steps=3, min_trials=1)
    others(early, a=[0.1, 0.1, 0.7])
    judged = [arrived(early, "b", step, value) for step, value in ((1, 0.0), (2, math.nan), (3, 0.25))]
    # a's mean over all three is 0.3, from step 3 on it would be 0.7
    assert [one.reason for one in judged] == [
        "step 1: no trial stops before step 3",
        "step 2: no trial stops before step 3",
        "step 3: its best, 0.25, is worse than 0.3, the median of 1 others' means",
    ]


def test_median_stops_what_is_not_a_number_and_leaves_it_out_for_others() -> None:
    early = by_median(min_trials=1)
    others(early, a=[0.5, math.nan])
    assert arrived(early, "b", 1, 0.4).stop
    assert arrived(early, "c", 2, 0.1).reason == "step 2: 0 other trials have come this far; 1 are needed"
    assert arrived(early, "a", 3, 0.9).reason == "step 2: the value is not a number"


def test_median_takes_no_step_twice() -> None:
    early = by_median()
    arrived(early, "a", 5, 0.5)
    assert early.arrive("g", "a", 5, 0.1, num_steps=FAR) is None
    assert early.arrive("g", "a", 4, 0.1, num_steps=FAR) is None


VALUES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, math.nan, math.inf, -math.inf])
ARRIVALS = st.lists(
    st.tuples(st.sampled_from("gh"), st.sampled_from("abcdef"), st.integers(1, 40), VALUES), max_size=60
)


@given(
    st.sampled_from([("asha", 3.0), ("asha", 2.0), ("asha", 1.3), ("median", 3.0)]),
    st.sampled_from(["max", "min"]),
    ARRIVALS,
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)
def test_a_rebuilt_state_decides_as_the_one_it_replaces(
    kind: tuple[str, float], mode: Any, arrivals: list[tuple[str, str, int, float]], cut: int, order: Random
) -> None:
    config = EarlyStopConfig.model_validate({"kind": kind[0], "factor": kind[1], "grace_steps": 3, "min_trials": 2})
    whole = EarlyStop(config, mode=mode)
    judged = [whole.arrive(*arrival, num_steps=30) for arrival in arrivals]
    rebuilt = EarlyStop(config, mode=mode)
    recorded = [one for one in judged[:cut] if one is not None]
    order.shuffle(recorded)
    for judgement in recorded:
        rebuilt.replay(judgement)
    again = [rebuilt.arrive(*arrival, num_steps=30) for arrival in arrivals[cut:]]
    assert repr(again) == repr(judged[cut:])  # by their text: nan is not itself


@given(ARRIVALS, st.sampled_from(["asha", "median"]))
def test_max_of_values_is_min_of_their_negatives(arrivals: list[tuple[str, str, int, float]], kind: Any) -> None:
    config = EarlyStopConfig(kind=kind, grace_steps=3, min_trials=2)
    upwards, downwards = EarlyStop(config, mode="max"), EarlyStop(config, mode="min")
    for group, key, step, value in arrivals:
        up = upwards.arrive(group, key, step, value, num_steps=30)
        down = downwards.arrive(group, key, step, -value, num_steps=30)
        assert (up and up.stop) == (down and down.stop)
