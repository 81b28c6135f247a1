"""A sweep file with a search: what it means, what it may not say, and what chooses kept from what judges."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oneshot.config.file import read
from oneshot.config.search import RangeConfig
from oneshot.errors import UserError
from oneshot.plan.pinned import PinnedSweep, Winner
from oneshot.plan.plan import Plan, make_plan, with_point
from oneshot.plan.studies import freeze_point, freeze_winner, frozen_search
from oneshot.plan.trial import Trial
from oneshot.store.store import Store
from oneshot.tasks.arithmetic import held_out

HUNT = """\
version: 1
name: hunt
question: Which learning rate is best?
trial:
  script: {bowl: {optim.lr: 1e-3}}
  train.num_steps: 4
axes:
  model:
    small: {set: {rollout.num_groups: 4}}
    large: {set: {rollout.num_groups: 8}}
  arm:
    found: {}
    fixed: {set: {optim.lr: 1e-4}}
seeds: [0, 1]
search:
  per: [model]
  on: {arm: found}
  seeds: [100]
  num_trials: 3
  objective: {metric: script/bowl}
  space: {optim.lr: {low: 1e-6, high: 1e-2, log: true}}
"""
RANGE = "{low: 1e-6, high: 1e-2, log: true}"
CLAIM = "{name: found wins, metric: script/m1, a: {arm: found}, b: {arm: fixed}, expect: {greater_by: 0}}"


def edited(old: str, new: str, text: str = HUNT) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def also(lines: str, text: str = HUNT) -> str:
    """The file with a section of its own, at line 14."""
    return edited("seeds: [0, 1]\n", f"{lines}\nseeds: [0, 1]\n", text)


def sweep_of(
    text: str,
    *overrides: str,
    points: dict[str, list[dict[str, Any]]] | None = None,
    winners: dict[str, dict[str, Any]] | None = None,
) -> PinnedSweep:
    """The sweep, and what its search is said to have asked and found."""
    found = {name: Winner(point=0, params=params, value=1.0, num_points=3) for name, params in (winners or {}).items()}
    return replace(PinnedSweep.of(read(text, name="s.yaml", overrides=overrides)), points=points or {}, winners=found)


def plan(text: str, *overrides: str, **found: Any) -> Plan:
    return make_plan(sweep_of(text, *overrides, **found))


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        plan(text)
    assert len(str(caught.value).splitlines()) == 1, caught.value
    return str(caught.value)


# what is changed, and how the one error begins
BAD = {
    "misspelt key": ("num_trials: 3", "num_trial: 3", "s.yaml:19: search.num_trial: unknown key; did you mean 'num_trials'?"),
    "no objective": ("  objective: {metric: script/bowl}\n", "", "s.yaml:15: search.objective: missing; add it"),
    "another mode": ("script/bowl}", "script/bowl, mode: maximise}", "s.yaml:20: search.objective.mode: 'maximise' is not one of 'max' or 'min'"),
    "a path of no trial": ("space: {optim.lr:", "space: {optim.lrr:", "s.yaml:21: search.space.optim.lrr: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
    "a section": ("space: {optim.lr:", "space: {optim:", "s.yaml:21: search.space.optim: optim is a section"),
    "no path": (f"{{optim.lr: {RANGE}}}", "{}", "s.yaml:21: search.space: "),
    "a range upside down": (RANGE, "{low: 1e-2, high: 1e-6}", "s.yaml:21: search.space.optim.lr: low 0.01 is not below high 1e-06"),
    "the logarithm of 0": (RANGE, "{low: 0, high: 1, log: true}", "s.yaml:21: search.space.optim.lr: low 0 has no logarithm; set it above 0, or remove log"),
    "two kinds of range": (RANGE, "{low: 0, high: 1, choice: [0.1, 0.2]}", "s.yaml:21: search.space.optim.lr: a range has either low and high, or choice"),
    "half a range": (RANGE, "{low: 0}", "s.yaml:21: search.space.optim.lr: a range needs low and high, or choice"),
    "an end that is text": (RANGE, "{low: a, high: 1}", "s.yaml:21: search.space.optim.lr.low: must be a number, not 'a'"),
    "an end that is no end": (RANGE, "{low: 1e-6, high: .inf}", "s.yaml:21: search.space.optim.lr.high: must be a number, not inf"),
    "a range as a list": (RANGE, "[1e-6, 1e-2]", "s.yaml:21: search.space.optim.lr: must be a mapping"),
    "a choice of one": (RANGE, "{choice: [0.1]}", "s.yaml:21: search.space.optim.lr.choice: needs at least 2 items"),
    "a choice twice": (RANGE, "{choice: [0.1, 0.1]}", "s.yaml:21: search.space.optim.lr: a value of the choice appears twice"),
    "a choice twice, written otherwise": (RANGE, "{choice: [1, 1.0]}", "s.yaml:21: search.space.optim.lr: a value of the choice appears twice"),
    "a choice of lists": (RANGE, "{choice: [[1], [2]]}", "s.yaml:21: search.space.optim.lr: a choice must list single values"),
    "a range that no trial takes": (RANGE, "{low: 1e-6, high: 2}", "s.yaml:21: search.space.optim.lr: optim.lr: must be at most 1, not 2"),
    "a choice that no trial takes": (RANGE, "{choice: [0.1, fast]}", "s.yaml:21: search.space.optim.lr: optim.lr: must be a number, not 'fast'"),
    "per an unknown axis": ("per: [model]", "per: [modle]", "s.yaml:16: search.per.0: unknown axis 'modle'; choose one of model, arm"),
    "per an axis twice": ("per: [model]", "per: [model, model]", "s.yaml:16: search.per.1: 'model' appears twice; keep one"),
    "on an unknown axis": ("on: {arm: found}", "on: {arms: found}", "s.yaml:17: search.on.arms: unknown axis 'arms'; choose one of model, arm"),
    "on an unknown cell": ("on: {arm: found}", "on: {arm: fund}", "s.yaml:17: search.on.arm: unknown cell 'fund'; did you mean 'found'?"),
    "on a cell of per": ("on: {arm: found}", "on: {model: small}", "s.yaml:17: search.on.model: each cell of 'model' has its own study; remove it here"),
    "on no cell": ("on: {arm: found}", "on: {arm: {not: [found, fixed]}}", "s.yaml:17: search.on.arm: selects no cell"),
    "on cells that set it all": ("on: {arm: found}", "on: {arm: fixed}", "s.yaml:21: search.space: nothing is searched, because the tuned cells set all these paths"),
    "a setting of no trial": ("  seeds: [100]", "  seeds: [100]\n  set: {train.num_stepz: 2}", "s.yaml:19: search.set.train.num_stepz: unknown key"),
    "a setting of another type": ("  seeds: [100]", "  seeds: [100]\n  set: {train.num_steps: two}", "s.yaml:19: search.set.train.num_steps: train.num_steps: must be a whole number, not 'two'"),
    "a setting that is searched": ("  seeds: [100]", "  seeds: [100]\n  set: {optim: {lr: 0.1}}", "s.yaml:19: search.set.optim.lr: optim.lr is also in search.space; keep only one of them"),
    "no seeds": ("  seeds: [100]", "  seeds: []", "s.yaml:18: search.seeds: needs at least one seed"),
    "a seed twice": ("  seeds: [100]", "  seeds: [100, 100]", "s.yaml:18: search.seeds.1: seed 100 appears twice; each seed is one replicate"),
    "no points": ("num_trials: 3", "num_trials: 0", "s.yaml:19: search.num_trials: must be at least 1, not 0"),
    "begun with what is not searched": ("num_trials: 3", "num_trials: 3\n  warm_start: [{loss.kl_coef: 0}]", "s.yaml:20: search.warm_start.0.loss.kl_coef: loss.kl_coef is not searched; add it to search.space or remove it"),
    "begun out of range": ("num_trials: 3", "num_trials: 3\n  warm_start: [{optim.lr: 0.1}]", "s.yaml:20: search.warm_start.0.optim.lr: 0.1 is not from 1e-06 to 0.01 (log), the range of model=small"),
    "begun with more than there are": ("num_trials: 3", "num_trials: 1\n  warm_start: [{}, {}]", "s.yaml:20: search.warm_start.1: 2 points, but search.num_trials is 1"),
    "another sampler": ("num_trials: 3", "num_trials: 3\n  sampler: {kind: cma}", "s.yaml:20: search.sampler.kind: 'cma' is not one of 'tpe' or 'random'"),
    "a constraint without end": ("num_trials: 3", "num_trials: 3\n  constraint: {metric: script/m1}", "s.yaml:20: search.constraint: a constraint needs exactly one of max and min"),
    "an objective that no trial has": ("metric: script/bowl", "metric: eval/val/pass_at_1", "s.yaml:20: search.objective.metric: model=small arm=found has no metric eval/val/pass_at_1; it has no suites (eval.suites)"),
    "a cell's range of no path": ("found: {}", "found: {search: {optim.lrr: {low: 1, high: 2}}}", "s.yaml:12: axes.arm.found.search.optim.lrr: unknown key"),
    "a cell's range without study": ("found: {}", "found: {search: {optim.lr: {low: 0.1, high: 0.2}}}", "s.yaml:12: axes.arm.found.search: cells of 'arm' do not have their own study; add arm to search.per"),
    "a cell's range that no trial takes": ("small: {set: {rollout.num_groups: 4}}", "small: {search: {optim.lr: {low: 0.1, high: 2}}}", "s.yaml:9: axes.model.small.search.optim.lr: optim.lr: must be at most 1, not 2"),
    "grid of no block": ("seeds: [0, 1]", "grid: []\nseeds: [0, 1]", "s.yaml:14: grid: the grid has no block; write `none` for a search without a grid"),
}  # fmt: skip
# lines that are added before line 14
BAD_SECTIONS = {
    "early stopping of another kind": ("early_stop: {kind: ashaa, grace_steps: 1}", "early_stop.kind: 'ashaa' is not one of 'asha' or 'median'"),
    "early stopping without grace": ("early_stop: {kind: asha}", "early_stop.grace_steps: missing; add it"),
    "early stopping of nothing": ("early_stop: {kind: asha, grace_steps: 1, factor: 1}", "early_stop.factor: must be at least 1.1, not 1"),
    "early stopping per an unknown axis": ("early_stop: {kind: asha, grace_steps: 1, per: [modle]}", "early_stop.per.0: unknown axis 'modle'; choose one of model, arm"),
    "early stopping by what no trial has": ("early_stop: {kind: asha, grace_steps: 1, metric: eval/val/gain}", "early_stop.metric: model=small arm=found has no metric eval/val/gain"),
    "a guard without bound": ("guards: [{metric: loss/total}]", "guards.0: a guard needs exactly one of `is: nan`, `above` and `below`"),
    "a guard of two bounds": ("guards: [{metric: loss/total, above: 1, below: 0}]", "guards.0: a guard needs exactly one of"),
    "a guard of another kind": ("guards: [{metric: loss/total, is: inf}]", "guards.0.is: 'inf' is not one of 'nan'"),
    "a guard for no step": ("guards: [{metric: loss/total, is: nan, for_steps: 0}]", "guards.0.for_steps: must be at least 1, not 0"),
    "a guard of what no trial has": ("guards: [{metric: eval/math501/pass_at_1, below: 0.1}]", "guards.0.metric: no trial has the metric eval/math501/pass_at_1"),
    "a claim of an unknown axis": (f"claims: [{CLAIM.replace('{arm: found}', '{arms: found}')}]", "claims.0.a.arms: unknown axis; did you mean 'arm'?"),
    "a claim of an unknown cell": (f"claims: [{CLAIM.replace('{arm: fixed}', '{arm: fxed}')}]", "claims.0.b.arm: unknown cell 'fxed'; did you mean 'fixed'?"),
    "a claim at no step": (f"claims: [{CLAIM.replace('{arm: found}', '{at: end}')}]", "claims.0.a.at: 'end' is not a step"),
    "a claim of nothing": (f"claims: [{CLAIM.replace('{greater_by: 0}', '{}')}]", "claims.0.expect: expect needs exactly one of greater_by, less_by, within and share_at_least"),
    "a claim for each of nothing": (f"claims: [{CLAIM.replace('expect', 'for_each: [modle], expect')}]", "claims.0.for_each.0: unknown axis; did you mean 'model'?"),
    "a claim of what no trial has": (f"claims: [{CLAIM.replace('script/m1', 'eval/math501/pass_at_1')}]", "claims.0.metric: no trial has the metric eval/math501/pass_at_1"),
    "no time of day": ("budget: {until: 8:00}", "budget.until: '8:00' is not a time; write it as 08:00 or 2026-12-01T08:00"),
    "no day of the calendar": ("budget: {until: 2026-02-30T08:00}", "budget.until: '2026-02-30T08:00' is not a time; write it as"),
    "a time that YAML takes for one": ("budget: {until: 2026-12-01T08:00:00}", "budget.until: '2026-12-01T08:00:00' is not a time; write it as"),
    "no hours": ("budget: {gpu_hours: 0}", "budget.gpu_hours: must be greater than 0, not 0"),
    "misspelt budget": ("budget: {gpu_hour: 1}", "budget.gpu_hour: unknown key; did you mean 'gpu_hours'?"),
    "fewer retries than none": ("faults: {retries: -1}", "faults.retries: must be at least 0, not -1"),
    "alike alone": ("faults: {same_failure_limit: 1}", "faults.same_failure_limit: must be at least 2, not 1"),
    "misspelt faults": ("faults: {stall: 60}", "faults.stall: unknown key; did you mean 'stall_s'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_search_gets_one_clear_error(name: str) -> None:
    old, new, expected = BAD[name]
    assert complaint(edited(old, new)).startswith(expected)


@pytest.mark.parametrize("name", BAD_SECTIONS)
def test_a_bad_section_gets_one_clear_error(name: str) -> None:
    lines, expected = BAD_SECTIONS[name]
    assert complaint(also(lines)).startswith(f"s.yaml:14: {expected}")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("grid: none", "s.yaml:15: grid: there is no grid and no `search`, so nothing to run"),
        (
            "early_stop: {kind: asha, grace_steps: 1}",
            "s.yaml:15: early_stop: it ends only search trials, and there is no `search`; remove it",
        ),
    ],
)
def test_what_only_a_search_can_use_is_refused_without_one(lines: str, expected: str) -> None:
    without = HUNT[: HUNT.index("search:")]
    assert len(plan(without).trials) == 8
    assert complaint(f"{without}{lines}\n").startswith(expected)


def test_a_range_of_a_cell_is_refused_without_a_search() -> None:
    text = edited("large: {set", "large: {search: {optim.lr: {low: 0.1, high: 0.2}}, set")
    assert complaint(text[: text.index("\nsearch:") + 1]).startswith(
        "s.yaml:10: axes.model.large.search: the sweep has no `search`; add one, or remove this"
    )


def test_two_axes_that_range_over_one_path_are_refused() -> None:
    text = edited("per: [model]", "per: [model, arm]").replace("  on: {arm: found}\n", "")
    text = edited("large: {set", "large: {search: {optim.lr: {low: 0.1, high: 0.2}}, set", text)
    text = edited("found: {}", "found: {search: {optim.lr: {low: 0.3, high: 0.4}}}", text)
    expected = (
        "s.yaml:12: axes.arm.found.search.optim.lr: axis 'model' also has a range of optim.lr for model=large,arm=found"
    )
    assert complaint(text).startswith(expected)


# what a search is


def test_each_cell_of_per_has_a_study_on_the_cells_that_it_is_tuned_on() -> None:
    studies = plan(HUNT).studies
    assert [study.name for study in studies] == ["model=small", "model=large"]
    assert [[cell.names for cell in study.cells] for study in studies] == [
        [{"model": "small", "arm": "found"}],
        [{"model": "large", "arm": "found"}],
    ]


def test_without_per_one_study_is_of_all_cells() -> None:
    (study,) = plan(edited("  per: [model]\n", "")).studies
    assert study.name == "all"
    assert [cell.names["model"] for cell in study.cells] == ["small", "large"]


def test_per_several_axes_each_pair_has_a_study() -> None:
    text = edited("per: [model]", "per: [model, arm]").replace("  on: {arm: found}\n", "")
    # cells of `fixed` set what is searched
    assert [study.name for study in plan(text).studies] == ["model=small,arm=found", "model=large,arm=found"]


def test_only_what_the_grid_has_is_searched_for() -> None:
    assert [study.name for study in plan(also("grid: [{model: large}]")).studies] == ["model=large"]


def test_points_come_before_the_grid_and_in_turn_of_their_studies() -> None:
    trials = plan(HUNT).trials
    small, large = "model=small", "model=large"
    searched = [(trial.study, trial.point, trial.seed) for trial in trials if trial.phase == "search"]
    assert searched == [(study, point, 100) for point in range(3) for study in (small, large)]
    assert [trial.phase for trial in trials] == ["search"] * 6 + ["grid"] * 8


def test_a_point_is_a_trial_for_each_of_its_cells_and_seeds() -> None:
    text = edited("  per: [model]\n", "").replace("  seeds: [100]", "  seeds: [100, 101]")
    first = [trial for trial in plan(text).trials if trial.point == 0]
    assert {(trial.cell["model"], trial.seed) for trial in first} == set(product(("small", "large"), (100, 101)))


def test_a_cell_may_range_elsewhere() -> None:
    text = edited(
        "large: {set", "large: {search: {optim.lr: {choice: [0.1, 0.2]}, loss.kl_coef: {low: 0, high: 1}}, set"
    )
    small, large = plan(text).studies
    assert set(small.space) == {"optim.lr"}
    assert set(large.space) == {"optim.lr", "loss.kl_coef"}
    assert large.space["optim.lr"].choice == [0.1, 0.2]
    assert small.space["optim.lr"].choice is None


def test_what_every_cell_of_a_study_sets_is_not_searched_there() -> None:
    text = edited("small: {set: {", "small: {set: {loss.kl_coef: 0.5, ")
    text = text.replace("space: {", "space: {loss.kl_coef: {choice: [0.1, 0.2]}, ")
    small, large = plan(text).studies
    assert set(small.space) == {"optim.lr"}
    assert set(large.space) == {"optim.lr", "loss.kl_coef"}
    assert {cell.config.loss.kl_coef for cell in small.cells} == {0.5}


def test_what_set_takes_over_is_not_searched() -> None:
    made = plan(HUNT, "optim.lr=1e-5")
    assert made.studies == ()
    assert {trial.config.optim.lr for trial in made.trials} == {1e-5}
    assert None not in {trial.key for trial in made.trials}


def test_whole_ends_are_whole_numbers_only_where_the_path_takes_no_others() -> None:
    text = edited(f"optim.lr: {RANGE}", "rollout.temperature: {low: 1, high: 2}, train.num_steps: {low: 2, high: 4}")
    for study in plan(text).studies:
        assert study.space["rollout.temperature"].holds(1.5)
        assert not study.space["train.num_steps"].holds(2.5)
        assert study.space["train.num_steps"].holds(3)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_range_holds_its_ends_and_what_is_between(low: float, high: float, value: float) -> None:
    if not low < high:
        with pytest.raises(ValidationError):
            RangeConfig(low=low, high=high)
        return
    of = RangeConfig(low=low, high=high)
    assert of.holds(low) and of.holds(high)
    assert of.holds(value) == (low <= value <= high)


def test_settings_of_the_search_are_of_its_trials_alone() -> None:
    made = plan(edited("  seeds: [100]", "  seeds: [100]\n  set: {train.num_steps: 2}"))
    assert {(trial.phase, trial.config.train.num_steps) for trial in made.trials} == {("search", 2), ("grid", 4)}


def test_a_search_without_grid_is_points_alone() -> None:
    made = plan(also("grid: none"))
    assert (made.num_cells, made.grid) == (0, ())
    assert [trial.phase for trial in made.trials] == ["search"] * 6
    assert made.warnings == ("s.yaml:13: axes.arm.fixed: the search is not tuned on this cell",)


# who waits, and what a winner sets


def by_cell(made: Plan, seed: int = 0) -> dict[tuple[str, ...], Trial]:
    return {tuple(trial.cell.values()): trial for trial in made.grid if trial.seed == seed}


def test_the_grid_waits_for_its_study() -> None:
    made = plan(HUNT)
    trial = by_cell(made)["small", "found"]
    assert (trial.key, trial.waits_for) == (None, "the search of model=small")
    facts = [one for one in made.to_json()["trials"] if one["cell"] == trial.cell and "phase" not in one]
    assert {(one["key"], one["waits_for"]) for one in facts} == {(None, "the search of model=small")}


def test_a_cell_that_sets_all_that_is_searched_does_not_wait() -> None:
    made = plan(HUNT)
    assert by_cell(made)["small", "fixed"].key is not None
    two = edited("space: {", "space: {loss.kl_coef: {choice: [0.1, 0.2]}, ")
    assert by_cell(plan(two))["small", "fixed"].waits_for == "the search of model=small"


def test_a_group_without_study_does_not_wait() -> None:
    text = edited("    fixed: {set: {optim.lr: 1e-4}}\n", "")
    found = by_cell(plan(edited("small: {set: {", "small: {set: {optim.lr: 1e-5, ", text)))
    assert found["small", "found"].key is not None
    assert found["large", "found"].key is None


def test_a_block_that_sets_all_that_is_searched_does_not_wait() -> None:
    text = also("grid: [{arm: found, set: {optim.lr: 1e-5}}]")
    assert None not in {trial.key for trial in plan(text).grid}


def test_a_winner_sets_its_part_of_the_grid() -> None:
    made = by_cell(plan(HUNT, winners={"model=small": {"optim.lr": 2e-3}}))
    assert made["small", "found"].config.optim.lr == 2e-3
    assert made["small", "found"].key is not None
    assert made["small", "fixed"].config.optim.lr == 1e-4
    assert made["large", "found"].waits_for == "the search of model=large"


def test_a_study_that_nothing_can_win_is_waited_for_and_says_so() -> None:
    lost = Winner(point=None, params={}, value=None, num_points=3)
    made = by_cell(make_plan(replace(sweep_of(HUNT), winners={"model=small": lost})))
    assert made["small", "found"].key is None
    assert made["small", "found"].waits_for == "the search of model=small, in which no point can win"
    assert made["small", "fixed"].key is not None


LEVELS = ("trial", "winner", "axis", "block", "--set")
"""From the lowest; each sets optim.lr to (1 + its place) x 1e-6."""


@pytest.mark.parametrize("present", [one for one in product((False, True), repeat=5) if any(one)])
def test_the_highest_that_sets_a_path_sets_it(present: tuple[bool, ...]) -> None:
    lr = {level: f"optim.lr: {place + 1}e-6" for place, level in enumerate(LEVELS)}
    given = {level for level, is_there in zip(LEVELS, present, strict=True) if is_there}
    text = edited("    fixed: {set: {optim.lr: 1e-4}}\n", "")
    text = edited("space: {optim.lr", "space: {loss.kl_coef: {choice: [0.1, 0.2]}, optim.lr", text)
    if "winner" not in given:
        text = edited(f", optim.lr: {RANGE}", "", text)
    if "trial" in given:
        text = edited("  train.num_steps: 4\n", f"  train.num_steps: 4\n  {lr['trial']}\n", text)
    if "axis" in given:
        text = edited("found: {}", f"found: {{set: {{{lr['axis']}}}}}", text)
    if "block" in given:
        text = also(f"grid: [{{set: {{{lr['block']}}}}}]", text)
    overrides = ["optim.lr=5e-6"] if "--set" in given else []
    found = {"loss.kl_coef": 0.2} | ({"optim.lr": 2e-6} if "winner" in given else {})
    made = plan(text, *overrides, winners={"model=small": found, "model=large": found})
    highest = max(LEVELS.index(level) for level in given)
    assert {trial.config.optim.lr for trial in made.grid} == {float(f"{highest + 1}e-6")}
    assert {trial.config.loss.kl_coef for trial in made.grid} == {0.2}


# points


def test_a_point_that_has_not_been_asked_stands_for_itself() -> None:
    first = plan(HUNT).trials[0]
    assert (first.key, first.waits_for) == (None, "point 0 of the search of model=small")
    assert first.label == "small/found point 0 seed 100"


def test_a_point_that_was_asked_replaces_what_stood_for_it() -> None:
    before, after = sweep_of(HUNT), sweep_of(HUNT, points={"model=large": [{"optim.lr": 5e-4}]})
    made = make_plan(before)
    (large,) = (study for study in made.studies if study.name == "model=large")
    replaced = with_point(made, after, large, 0)
    assert replaced.trials == make_plan(after).trials
    (fresh,) = (trial for trial in replaced.trials if (trial.study, trial.point) == ("model=large", 0))
    assert fresh.key is not None
    assert fresh.config.optim.lr == 5e-4


def test_a_points_settings_stay_below_those_of_a_cell() -> None:
    # tuned on both arms: that of `fixed` is the same trial at every point
    text = edited("  on: {arm: found}\n", "")
    made = plan(text, points={"model=small": [{"optim.lr": 2e-4}, {"optim.lr": 3e-4}]})
    asked = [trial for trial in made.trials if trial.study == "model=small" and trial.key is not None]
    lrs = {(trial.point, trial.cell["arm"]): trial.config.optim.lr for trial in asked}
    assert lrs == {(0, "found"): 2e-4, (0, "fixed"): 1e-4, (1, "found"): 3e-4, (1, "fixed"): 1e-4}
    assert len({trial.key for trial in asked if trial.cell["arm"] == "fixed"}) == 1


@settings(max_examples=20)
@given(st.floats(1e-6, 1e-2))
def test_a_search_trial_has_the_key_of_a_plain_trial_with_its_settings(lr: float) -> None:
    (searched,) = (t for t in plan(HUNT, points={"model=small": [{"optim.lr": lr}]}).trials if t.key and t.point == 0)
    plain = HUNT[: HUNT.index("search:")].replace("seeds: [0, 1]", "seeds: [100]")
    (same,) = (t for t in plan(plain, f"optim.lr={lr!r}").trials if t.cell == searched.cell)
    assert searched.key == same.key


def test_a_winner_has_the_key_of_a_plain_trial_with_its_settings() -> None:
    won = by_cell(plan(HUNT, winners={"model=small": {"optim.lr": 2e-3}}))["small", "found"]
    plain = by_cell(plan(HUNT[: HUNT.index("search:")], "optim.lr=2e-3"))["small", "found"]
    assert won.key == plain.key


# what is kept of a search


def test_what_was_asked_and_found_is_read_back(tmp_path: Path) -> None:
    folder = Store(str(tmp_path)).sweep("hunt")
    points = [{"optim.lr": 1e-3 * number} for number in range(1, 4)]
    for number, params in enumerate(points):
        freeze_point(folder, "model=small", number, params)
    winner = Winner(point=1, params=points[1], value=0.5, num_points=3)
    freeze_winner(folder, "model=small", winner)
    found = frozen_search(sweep_of(HUNT), folder)
    assert found.points == {"model=small": points}
    assert found.winners == {"model=small": winner}
    # a search that was made longer goes on: what it had found may not be the best
    longer = frozen_search(sweep_of(edited("num_trials: 3", "num_trials: 4")), folder)
    assert longer.points == {"model=small": points}
    assert longer.winners == {}


def test_a_study_of_a_value_with_a_slash_is_read_back(tmp_path: Path) -> None:
    text = edited(
        "model:\n    small: {set: {rollout.num_groups: 4}}\n    large: {set: {rollout.num_groups: 8}}\n",
        "prompt.eval_suffix: [a/b, c]\n",
    )
    sweep = sweep_of(text.replace("per: [model]", "per: [prompt.eval_suffix]"))
    folder = Store(str(tmp_path)).sweep("hunt")
    for study in make_plan(sweep).studies:
        freeze_point(folder, study.name, 0, {"optim.lr": 1e-3})
    made = make_plan(frozen_search(sweep, folder))
    assert len(made.studies) == 2
    assert {trial.point for trial in made.trials if trial.phase == "search" and trial.key is not None} == {0}
    assert len([trial for trial in made.trials if trial.phase == "search" and trial.key is not None]) == 2


# settings that change nothing


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ("kind: asha, grace_steps: 4", "early_stop.grace_steps: no trial ends early, because search trials have at most 4 steps"),
        ("kind: asha, grace_steps: 2, min_trials: 4", "early_stop.min_trials: has no effect with kind: asha"),
        ("kind: median, grace_steps: 2, factor: 2", "early_stop.factor: has no effect with kind: median"),
    ],
)  # fmt: skip
def test_early_stopping_that_stops_nothing_is_a_warning(lines: str, warning: str) -> None:
    assert plan(also(f"early_stop: {{{lines}}}")).warnings == (f"s.yaml:14: {warning}",)


def test_early_stopping_that_stops_something_is_none() -> None:
    assert plan(also("early_stop: {kind: asha, grace_steps: 2, factor: 2}")).warnings == ()
    assert plan(also("early_stop: {kind: median, grace_steps: 3, min_trials: 2}")).warnings == ()


def test_a_setting_that_the_search_takes_over_is_no_warning() -> None:
    assert plan(edited("  train.num_steps: 4\n", "  train.num_steps: 4\n  optim.lr: 1e-5\n")).warnings == ()


# choosing and judging

JUDGED = (
    (PROJECT / "tests" / "cases" / "base.yaml")
    .read_text()
    .replace("arithmetic: {num_problems: 4}", "arithmetic: {num_problems: 4}, arithmetic-val: {num_problems: 4}, a-2: {source: arithmetic}")
    + """\
search:
  per: [arm]
  on: {example: sum}
  seeds: [100]
  num_trials: 2
  objective: {metric: eval/arithmetic-val/pass_at_1}
  space: {optim.lr: {choice: [1e-5, 1e-4]}}
claims:
  - {name: more than format, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0}}
"""
)  # fmt: skip
ALLOWED = "allow_selection_on_test: true\n"
TURNS = {
    "the objective is the claim's": (
        "{metric: eval/arithmetic-val/pass_at_1}",
        "{metric: eval/arithmetic/pass_at_1}",
        "s.yaml:27: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: search.objective; choose by `val`",
    ),
    "... or another metric of its suite": (
        "{metric: eval/arithmetic-val/pass_at_1}",
        "{metric: eval/arithmetic/pass_at_1_lenient}",
        "s.yaml:27: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: search.objective",
    ),
    "... or of the same problems under another name": (
        "{metric: eval/arithmetic-val/pass_at_1}",
        "{metric: eval/a-2/pass_at_1}",
        "s.yaml:27: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: search.objective",
    ),
    "the constraint is the claim's": (
        "  num_trials: 2\n",
        "  num_trials: 2\n  constraint: {metric: eval/arithmetic/gain, min: 0}\n",
        "s.yaml:28: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: search.constraint",
    ),
    "early stopping is by the claim's": (
        "search:\n",
        "early_stop: {kind: asha, grace_steps: 1, metric: eval/arithmetic/pass_at_1}\nsearch:\n",
        "s.yaml:28: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: early_stop.metric",
    ),
    "a seed of the search is the grid's": (
        "seeds: [100]",
        "seeds: [100, 1]",
        "s.yaml:22: search.seeds.1: seed 1 is also a seed of the grid, which judges the winner; use another seed, such as 101",
    ),
}


@pytest.mark.parametrize("name", TURNS)
def test_what_chooses_may_not_judge_unless_the_file_says_so(name: str) -> None:
    old, new, expected = TURNS[name]
    text = edited(old, new, JUDGED)
    assert complaint(text).startswith(expected)
    assert plan(text + ALLOWED).trials


def test_what_chooses_by_one_suite_may_be_judged_by_another() -> None:
    made = plan(JUDGED)
    assert [study.name for study in made.studies] == ["arm=outcome", "arm=format"]
    assert len(made.grid) == 8


def test_the_best_step_may_be_claimed_where_another_suite_is_for_choosing() -> None:
    best = edited("a: {arm: outcome}", "a: {arm: outcome, at: best}", JUDGED)
    assert plan(best).trials
    judged_alone = best.replace("arithmetic-val: {num_problems: 4}, ", "").replace("eval/arithmetic-val", "loss/total#")
    message = complaint(judged_alone.replace("loss/total#/pass_at_1", "reward/mean"))
    assert "claims.0.metric: eval/arithmetic/pass_at_1 also chooses: `at: best`, which chooses a step by it" in message


def test_a_search_without_grid_may_have_any_seeds() -> None:
    text = edited("seeds: [100]", "seeds: [0, 1]", JUDGED[: JUDGED.index("claims:")])
    assert plan(text.replace("search:", "grid: none\nsearch:")).trials


def test_what_is_chosen_by_may_not_be_trained_on_in_the_search_either() -> None:
    asked = held_out(4, which="val")[0].id
    text = edited("  seeds: [100]", f'  seeds: [100]\n  set: {{examples: ["{asked}"]}}', JUDGED)
    assert complaint(text).startswith(
        "s.yaml:23: search.set.examples: example=sum arm=outcome trains on 1 of the problems that the suite "
        f"`arithmetic-val` holds out ({asked}, ...)"
    )


def test_the_objective_must_be_of_every_trial_that_is_tuned_on() -> None:
    text = edited("  outcome: {}", "  outcome: {set: {eval.suites: {more: {source: arithmetic-val}}}}", JUDGED)
    assert plan(text).trials
    text = text.replace("objective: {metric: eval/arithmetic-val/", "objective: {metric: eval/more/")
    assert complaint(text).startswith(
        "s.yaml:24: search.objective.metric: example=sum arm=format has no metric eval/more/"
    )
