"""How long a plan takes on so many GPUs, and what its budget lets be done: worked by hand."""

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_search_file import HUNT
from test_sweepfile import BASE
from verbs import oneshot

from oneshot.config.file import read
from oneshot.config.resources import BudgetConfig, ResourceConfig, deadline
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.cost import Cost
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trial import Trial
from oneshot.plan.wallclock import Schedule, schedule


@cache
def config(num_steps: int = 1) -> TrialConfig:
    return TrialConfig.model_validate({"script": {}, "train": {"num_steps": num_steps}})


def trial(
    name: str,
    hours: float | None,
    *,
    gpus: float = 1,
    phase: Literal["search", "grid"] = "grid",
    key: str | None = None,
    num_steps: int = 1,
) -> Trial:
    """So many hours on so many GPUs."""
    gpu_hours = None if hours is None else hours * gpus
    return Trial(
        cell={"x": name},
        seed=0,
        key=key or name,
        waits_for=None,
        config=config(num_steps),
        resources=ResourceConfig(gpus=gpus),
        labels={},
        cost=Cost(
            train_tokens=0, eval_tokens=0, step_s=None, gpu_hours=gpu_hours, basis="stated"
        ),
        phase=phase,
    )  # fmt: skip


def plan(*trials: Trial) -> Plan:
    return Plan(name="p", num_cells=len(trials), trials=trials, warnings=())


def scheduled(gpus: float, *trials: Trial) -> Schedule:
    found = schedule(plan(*trials), gpus=gpus)
    assert found is not None
    return found


# when each ends


def test_on_one_gpu_one_comes_after_another() -> None:
    found = scheduled(1, trial("a", 2), trial("b", 1), trial("c", 3))
    assert found.end_hours == (2, 3, 6)
    assert found.gpu_hours == (2, 3, 6)
    assert found.hours == 6


def test_on_two_gpus_each_begins_as_soon_as_one_is_free() -> None:
    # a 0 to 2, b 0 to 1, c 1 to 4 where b was, d 2 to 3 where a was
    found = scheduled(2, trial("a", 2), trial("b", 1), trial("c", 3), trial("d", 1))
    assert found.end_hours == (2, 1, 4, 3)
    assert found.gpu_hours == (2, 3, 6, 7)
    assert found.hours == 4


def test_a_trial_that_needs_both_gpus_is_not_overtaken() -> None:
    # a 0 to 3; b needs both: 3 to 4; c 4 to 5, though a GPU was idle from the start
    found = scheduled(2, trial("a", 3), trial("b", 1, gpus=2), trial("c", 1))
    assert found.end_hours == (3, 4, 5)
    assert found.gpu_hours == (3, 5, 6)


def test_shares_of_a_gpu_are_packed() -> None:
    # four quarters of 2 h at once, the fifth after them
    found = scheduled(1, *(trial(f"q{number}", 2, gpus=0.25) for number in range(4)), trial("last", 1, gpus=0.25))
    assert found.end_hours == (2, 2, 2, 2, 3)
    assert found.gpu_hours == (0.5, 1, 1.5, 2, 2.25)


def test_ten_tenths_are_one_gpu() -> None:
    # 1 - 10 x 0.1 is not quite 0 in floating point
    found = scheduled(1, *(trial(str(number), 1, gpus=0.1) for number in range(10)))
    assert set(found.end_hours) == {1}


def test_the_grid_waits_for_the_whole_search() -> None:
    # the search is through after 3 h, though one GPU is free after 1
    found = scheduled(2, trial("a", 1, phase="search"), trial("b", 3, phase="search"), trial("c", 1), trial("d", 1))
    assert found.end_hours == (1, 3, 4, 4)
    assert found.hours == 4


def test_a_training_that_trials_share_takes_its_time_once() -> None:
    # the longer of the two is what is trained
    found = scheduled(1, trial("a", 1, key="k", num_steps=1), trial("b", 4, key="k", num_steps=4), trial("c", 1))
    assert found.end_hours == (4, 5)


def test_trials_without_gpu_are_not_in_the_way() -> None:
    assert scheduled(1, trial("a", 2), trial("cpu", 50, gpus=0), trial("b", 1)).end_hours == (2, 3)


def test_nothing_is_said_where_nothing_is_known_or_no_gpu_is_asked_for() -> None:
    assert schedule(plan(trial("a", 1), trial("b", None)), gpus=1) is None
    assert schedule(plan(trial("a", 1, gpus=0)), gpus=1) is None
    assert schedule(plan(), gpus=1) is None


def test_a_trial_that_is_too_large_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"--gpus 1.5: b seed 0 needs 2; lower its `resources`"):
        schedule(plan(trial("a", 1), trial("b", 1, gpus=2)), gpus=1.5)


QUARTERS = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 3, 4, 8]), st.booleans()), min_size=1, max_size=20
)
"""Quarters of an hour, quarters of a GPU, whether it is of the search."""


@given(QUARTERS, st.integers(2, 6))
def test_no_more_gpus_are_held_than_there_are_and_no_work_is_lost(jobs: list[tuple[int, int, bool]], gpus: int) -> None:
    jobs = sorted(jobs, key=lambda job: not job[2])  # a plan has its search first
    made = [
        trial(str(number), hours / 4, gpus=share / 4, phase="search" if searched else "grid")
        for number, (hours, share, searched) in enumerate(jobs)
    ]
    found = scheduled(gpus, *made)
    spans = [(end - hours / 4, end, share / 4) for end, (hours, share, _) in zip(found.end_hours, jobs, strict=True)]
    for begin, _, _ in spans:
        assert sum(share for start, end, share in spans if start <= begin < end) <= gpus
    work = sum((end - start) * share for start, end, share in spans)
    assert found.gpu_hours[-1] == work
    assert max(work / gpus, *(end - start for start, end, _ in spans)) <= found.hours <= sum(h / 4 for h, _, _ in jobs)


# what a budget lets be done


def test_what_fits_a_budget_is_counted_in_the_order_of_the_plan() -> None:
    # ends 2, 1, 4, 3; held 2, 3, 6, 7
    found = scheduled(2, trial("a", 2), trial("b", 1), trial("c", 3), trial("d", 1))
    assert found.num_within(gpu_hours=None, hours=None) == 4
    assert found.num_within(gpu_hours=6, hours=None) == 3
    assert found.num_within(gpu_hours=5.9, hours=None) == 2
    assert found.num_within(gpu_hours=None, hours=3) == 3
    assert found.num_within(gpu_hours=None, hours=1.5) == 1
    # d is through in time, but not paid for; c is paid for, but not through
    assert found.num_within(gpu_hours=6, hours=3) == 2
    assert found.num_within(gpu_hours=1, hours=None) == 0


SEVEN = datetime(2026, 11, 30, 7, 0)


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("08:00", datetime(2026, 11, 30, 8, 0)),
        ("06:59", datetime(2026, 12, 1, 6, 59)),
        ("07:00", datetime(2026, 12, 1, 7, 0)),  # now is over
        ("00:00", datetime(2026, 12, 1, 0, 0)),
        ("2026-12-24T08:00", datetime(2026, 12, 24, 8, 0)),
        ("2020-01-01T00:00", datetime(2020, 1, 1)),  # a date stands for itself, past or not
    ],
)
def test_a_time_of_day_is_the_next_one(until: str, expected: datetime) -> None:
    assert deadline(until, SEVEN) == expected


def test_limits_are_gpu_hours_and_hours_from_now() -> None:
    assert BudgetConfig(gpu_hours=3, until="08:30").limits(SEVEN) == {"gpu_hours": 3, "hours": 1.5}
    assert BudgetConfig().limits(SEVEN) == {"gpu_hours": None, "hours": None}
    # 23 hours and 59 minutes
    assert BudgetConfig(until="06:59").limits(SEVEN)["hours"] == pytest.approx(23 + 59 / 60)


@given(st.integers(0, 23), st.integers(0, 59), st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)))
def test_the_next_time_of_day_is_within_a_day(hour: int, minute: int, now: datetime) -> None:
    found = deadline(f"{hour:02}:{minute:02}", now)
    assert 0 < (found - now).total_seconds() <= 24 * 3600
    assert (found.hour, found.minute, found.second) == (hour, minute, 0)


# what people see

# 8 trials of 2 steps of half an hour on half a GPU: an hour each, four at a time on two GPUs
PAID = """\
version: 1
name: paid
question: How long?
trial: {script: {}, train.num_steps: 2}
axes:
  size:
    small: {cost: {step_s: 1800}}
    large: {cost: {step_s: 1800}, set: {rollout.num_groups: 4}}
seeds: [0, 1, 2, 3]
resources: {gpus: 0.5}
budget: {gpu_hours: 2.5}
"""


def test_plan_says_how_long_it_takes_and_what_its_budget_lets_be_done(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(PAID)
    facts = json.loads(oneshot("plan", "s.yaml", "--gpus", "2", "--json", cwd=tmp_path).out)
    assert facts["wall_clock_hours"] == pytest.approx(2)
    assert facts["gpu_hours"] == pytest.approx(4)
    assert facts["num_within_budget"] == 5
    lines = oneshot("plan", "s.yaml", "--gpus", "2", cwd=tmp_path).out.splitlines()
    assert lines[-2:] == [
        "on 2 GPUs: about 2.0 h, if each trial starts as soon as its GPUs are free",
        "within the budget: 5 of 8 trainings, in the order of the plan",
    ]


def test_plan_on_too_few_gpus_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(PAID)
    said = oneshot("plan", "s.yaml", "--gpus", "0.25", cwd=tmp_path)
    assert (said.code, said.out) == (2, "")
    assert said.err == "oneshot: --gpus 0.25: small seed 0 needs 0.5; lower its `resources`\n"


def test_plan_on_gpus_that_nobody_asks_for_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(BASE)
    said = oneshot("plan", "s.yaml", "--gpus", "2", cwd=tmp_path)
    assert said.out.splitlines()[-1] == "on 2 GPUs: unknown, because no trial uses a GPU or a cost is unknown"


def test_a_search_that_has_not_begun_is_scheduled_by_what_its_trials_cost() -> None:
    # of each model 3 points, then 2 arms with 2 seeds; each has 4 steps of a quarter of an hour on one GPU
    cost = "cost: {step_s: 900}, set: {rollout"
    text = HUNT.replace("set: {rollout", cost) + "resources: {gpus: 1}\n"
    found = schedule(make_plan(read(text, name="s.yaml")), gpus=4)
    assert found is not None
    # 6 hours of search on 4 GPUs: 2; 8 of the grid: 2
    assert found.end_hours == (1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)
