"""A run and `start`, `last`, `best` or `saturation` -> the step that it stands for."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from builders import sweep_run
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_store

from oneshot.report.runs import Run, RunSuite, gather
from oneshot.report.steps import NoStepError, collapse, evaluated_after, find_step, saturation
from oneshot.report.verdicts import verdicts
from oneshot.store.records import Row

ACCURACY = "eval/arithmetic/pass_at_1"
SOURCES = {"arithmetic": "arithmetic", "val": "arithmetic-val", "other": "arithmetic-val"}


def run(
    rewards: Sequence[float] = (),
    *,
    num_steps: int | None = None,
    measured: Mapping[str, Mapping[int, float]] | None = None,
) -> Run:
    """A finished run with the mean reward of each step from 1 on, and pass@1 of suites by step."""
    scores = {} if measured is None else measured
    return Run(
        label="only seed 0",
        cell={},
        seed=0,
        key="k",
        state="finished",
        reason="",
        labels={},
        trained=(),
        examples=(),
        num_examples=1,
        config={},
        num_steps=len(rewards) if num_steps is None else num_steps,
        gpus=0.0,
        spent_h=1.0,
        started_ms=0,
        ended_ms=0,
        origin="s",
        suites=tuple(
            RunSuite(name=name, source=SOURCES[name], digest=name, samples=1, num_problems=None)
            for name, by_step in scores.items()
        ),
        rows=tuple(
            Row(step=step, time_ms=step, metrics={"reward/mean": reward}) for step, reward in enumerate(rewards, 1)
        ),
        measured={
            name: {step: {"pass_at_1": score} for step, score in by_step.items()} for name, by_step in scores.items()
        },
        environments=(),
    )


def step(
    one: Run, at: str, *, suite: str | None = "arithmetic", metric: str = ACCURACY, may_select: bool = False
) -> int:
    return find_step(one, at, suite=suite, metric=metric, selects_on_test=may_select)


# collapse


def collapse_step(accuracies: Mapping[int, float], rewards: Sequence[float]) -> int | None:
    found = collapse(run(rewards, measured={"arithmetic": accuracies}), "arithmetic")
    return None if found is None else found.step


def test_collapse_by_hand() -> None:
    # the highest is 0.7 at step 2, of which 80% is 0.56: step 4 has more, step 6 just that
    found = collapse(
        run([-9, -8, -7, -6, -5, -4, -3, -2], measured={"arithmetic": {0: 0.3, 2: 0.7, 4: 0.57, 6: 0.56, 8: 0.1}}),
        "arithmetic",
    )
    assert found is not None
    assert (found.step, found.highest_step, found.highest, found.accuracy) == (6, 2, 0.7, 0.56)


@pytest.mark.parametrize(
    ("accuracies", "rewards", "expected"),
    [
        # accuracy rises, stays, or falls by less than a fifth
        ({0: 0.3, 2: 0.5, 4: 0.6}, [1, 2, 3, 4], None),
        ({0: 0.5, 2: 0.5, 4: 0.5}, [1, 2, 3, 4], None),
        ({0: 0.3, 2: 0.5, 4: 0.41}, [1, 2, 3, 4], None),
        # the reward falls with it
        ({0: 0.3, 2: 0.5, 4: 0.1}, [1, 4, 3, 3.9], None),
        # it stays where it was
        ({0: 0.3, 2: 0.5, 4: 0.1}, [1, 4, 3, 4], 4),
        # it falls at step 4, and is back at step 6
        ({0: 0.3, 2: 0.5, 4: 0.1, 6: 0.1}, [1, 4, 3, 3, 3, 5], 6),
        # a fall before the highest accuracy is none
        ({0: 0.5, 2: 0.1, 4: 0.6}, [1, 2, 3, 4], None),
        # of equal ones the earliest is the highest, whose reward counts
        ({0: 0.1, 2: 0.5, 4: 0.5, 6: 0.2}, [1, 2, 3, 9, 4, 5], 6),
        # a run that only falls; its reward at the start is that of the first step
        ({0: 0.5, 2: 0.2}, [3, 3], 2),
        ({0: 0.5, 2: 0.2}, [3, 2.9], None),
        # nothing to fall from, and nothing that is known
        ({0: 0.0, 2: 0.0}, [1, 2], None),
        ({0: 0.5, 2: 0.1}, [], None),
        ({}, [1, 2], None),
    ],
)
def test_accuracy_collapses_only_if_it_falls_and_reward_does_not(
    accuracies: Mapping[int, float], rewards: Sequence[float], expected: int | None
) -> None:
    assert collapse_step(accuracies, rewards) == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-5, 5)), min_size=1, max_size=8), st.floats(-9, 9))
def test_collapse_does_not_depend_on_where_a_reward_has_its_zero(
    points: list[tuple[float, float]], shift: float
) -> None:
    accuracies = {number: accuracy for number, (accuracy, _) in enumerate(points, 1)}
    ranks = sorted({reward for _, reward in points})
    rewards = [float(ranks.index(reward)) for _, reward in points]  # whole numbers, which a shift keeps in their order
    assert collapse_step(accuracies, [reward + round(shift) for reward in rewards]) == collapse_step(
        accuracies, rewards
    )


# saturation


def test_saturation_by_hand() -> None:
    # the largest is 0.9, of which 0.99 is 0.891: step 3 has 0.895, and step 5 the largest
    found = saturation(run([0.1, 0.5, 0.895, 0.7, 0.9, 0.89, 0.88, 0.9]))
    assert found is not None
    assert (found.step, found.reward) == (3, 0.895)
    assert found.is_seen  # 5 steps follow; a quarter of 8 are 2


def test_what_is_just_below_is_not_saturated() -> None:
    # 0.99 of 1.0
    found = saturation(run([0.9899, 0.99, 1.0, 1.0]))
    assert found is not None
    assert found.step == 2


def test_a_reward_that_is_flat_saturates_at_once() -> None:
    found = saturation(run([0.25] * 8))
    assert found is not None
    assert (found.step, found.is_seen) == (1, True)


@pytest.mark.parametrize("rewards", [[], [0.0, 0.0, 0.0], [-1.0, -0.5, 0.0]])
def test_a_reward_that_was_never_positive_does_not_saturate(rewards: list[float]) -> None:
    one = run(rewards, measured={"arithmetic": {0: 0.1, 3: 0.2}})
    assert saturation(one) is None
    with pytest.raises(NoStepError, match="never above 0"):
        step(one, "saturation")


@pytest.mark.parametrize(
    ("num_steps", "last_seen"),
    [
        (400, 350),  # 50 steps follow
        (200, 150),  # a quarter of it, which is 50
        (100, 75),
        (12, 9),
        (4, 3),
        (3, 2),  # a quarter of 3 is less than a step: one must follow
        (2, 1),
    ],
)
def test_saturation_is_seen_where_enough_steps_follow(num_steps: int, last_seen: int) -> None:
    def is_seen(at: int) -> bool:
        found = saturation(run([1.0 if n >= at else 0.1 for n in range(1, num_steps + 1)]))
        assert found is not None
        assert found.step == at
        return found.is_seen

    assert is_seen(last_seen)
    assert not is_seen(last_seen + 1)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_saturation_is_the_first_step_of_those_near_the_largest(rewards: list[float]) -> None:
    found = saturation(run(rewards))
    if max(rewards) <= 0:
        assert found is None
        return
    assert found is not None
    assert found.reward >= 0.99 * max(rewards)
    assert all(reward < 0.99 * max(rewards) for reward in rewards[: found.step - 1])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_saturation_does_not_depend_on_the_rewards_unit(rewards: list[int], unit: float) -> None:
    own, other = saturation(run(rewards)), saturation(run([unit * reward for reward in rewards]))
    assert own is not None
    assert other is not None
    assert own.step == other.step


def test_saturation_stands_for_the_evaluation_at_it_or_next() -> None:
    rewards = [0.1, 0.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    scores = {0: 0.0, 3: 0.0, 4: 0.0, 8: 0.0}
    assert step(run(rewards, measured={"arithmetic": scores}), "saturation") == 3
    del scores[3]
    one = run(rewards, measured={"arithmetic": scores})
    assert step(one, "saturation") == 4
    assert [evaluated_after(one, "arithmetic", after) for after in (0, 1, 4, 5, 9)] == [0, 4, 4, 8, None]
    assert evaluated_after(one, "val", 0) is None


def test_of_a_metric_of_training_saturation_is_the_step_itself() -> None:
    assert step(run([0.1, 0.1, 1.0, 1.0]), "saturation", suite=None, metric="rollout/entropy") == 3


def test_without_an_evaluation_from_saturation_on_there_is_no_step() -> None:
    one = run([0.1, 0.1, 1.0], measured={"arithmetic": {0: 0.0, 2: 0.1}})
    with pytest.raises(NoStepError, match="no evaluation on arithmetic at or after step 3, where it saturates"):
        step(one, "saturation")


# start, last


def test_start_and_last_are_what_was_planned() -> None:
    one = run([0.1] * 5)
    assert (step(one, "start"), step(one, "last")) == (0, 5)
    nothing = run(num_steps=0)
    assert (step(nothing, "start"), step(nothing, "last")) == (0, 0)


# best


def best(measured: Mapping[str, Mapping[int, float]], **more: bool) -> int:
    return step(run([0.1] * 12, measured=measured), "best", **more)


def test_the_best_step_is_the_one_that_val_answers_best() -> None:
    assert best({"arithmetic": {0: 0.9, 4: 0.1, 8: 0.2, 12: 0.3}, "val": {0: 0.1, 4: 0.5, 8: 0.4, 12: 0.3}}) == 4


def test_of_equals_the_best_step_is_the_earliest() -> None:
    assert best({"arithmetic": dict.fromkeys((0, 4, 8, 12), 0.5), "val": {0: 0.1, 4: 0.3, 8: 0.5, 12: 0.5}}) == 8


def test_the_best_step_is_one_at_which_both_were_asked() -> None:
    # val is best at 6, where nothing can be judged
    assert best({"arithmetic": {0: 0.5, 4: 0.5, 12: 0.5}, "val": {0: 0.1, 4: 0.2, 6: 0.9, 12: 0.3}}) == 12


def test_the_best_step_may_be_the_start() -> None:
    assert best({"arithmetic": {0: 0.5, 12: 0.9}, "val": {0: 0.6, 12: 0.5}}) == 0


def test_of_a_metric_of_training_any_step_of_val_may_be_the_best() -> None:
    one = run([0.1] * 12, measured={"val": {0: 0.1, 6: 0.9, 12: 0.3}})
    assert step(one, "best", suite=None, metric="rollout/entropy") == 6


def test_what_judges_does_not_choose_unless_the_sweep_says_so() -> None:
    scores = {"arithmetic": {0: 0.1, 4: 0.9, 12: 0.3}}
    with pytest.raises(NoStepError, match=r"no suite for choosing \(val, arithmetic-val\), so there is no best step"):
        best(scores)
    assert best(scores, may_select=True) == 4
    # with a suite for choosing at hand it chooses all the same
    assert best({**scores, "val": {0: 0.1, 4: 0.2, 12: 0.3}}, may_select=True) == 12


def test_a_suite_for_choosing_that_is_judged_itself_is_chosen_by_another() -> None:
    one = run([0.1] * 12, measured={"val": {0: 0.9, 12: 0.1}, "other": {0: 0.1, 12: 0.9}})
    assert step(one, "best", suite="val", metric="eval/val/pass_at_1") == 12


def test_without_a_step_that_both_have_there_is_no_best() -> None:
    with pytest.raises(NoStepError, match="no step has evaluations on val and arithmetic"):
        best({"arithmetic": {0: 0.5, 12: 0.5}, "val": {6: 0.5}})


@given(st.dictionaries(st.integers(0, 12), st.integers(0, 4).map(lambda n: n / 4), min_size=1))
def test_no_step_is_better_than_the_best_and_none_before_it_as_good(scores: dict[int, float]) -> None:
    chosen = best({"arithmetic": dict.fromkeys(scores, 0.5), "val": scores})
    assert scores[chosen] == max(scores.values())
    assert all(score < scores[chosen] for step, score in scores.items() if step < chosen)


# in a verdict

RISING = """\
version: 1
name: rising
question: Is all gained by the time that reward saturates?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 8
  eval: {every_steps: 2, suites: {arithmetic: {num_problems: 4}, val: {source: arithmetic-val, num_problems: 4}}}
seeds: [0, 1, 2]
claims:
  - {name: before, metric: eval/arithmetic/pass_at_1, a: {at: saturation}, b: {at: start}, expect: {greater_by: 0}}
  - {name: after, metric: eval/arithmetic/pass_at_1, a: {at: last}, b: {at: saturation}, expect: {greater_by: 0}}
  - {name: chosen, metric: eval/arithmetic/pass_at_1, a: {at: best}, b: {at: start}, expect: {greater_by: 0}}
"""


def test_each_seed_saturates_on_its_own(tmp_path: Path) -> None:
    # of 12 problems right: 0 before step 4, 6 from there, 12 at step 8. Seeds 0 and 1 saturate at 3 (evaluated at 4),
    # seed 2 at 7 (evaluated at 8): gains before (6 + 6 + 12) / 3 = 8 of 12, after (6 + 6 + 0) / 3 = 4 of 12
    text = RISING
    sweep, planned, store = make_store(
        tmp_path,
        text,
        accuracy=lambda trial, step, problem: float(problem < (12 if step == 8 else 6 if step >= 4 else 0)),
        reward=lambda trial, step: 1.0 if step >= (7 if trial.seed == 2 else 3) else 0.1,
    )
    before, after, chosen = verdicts(gather(sweep_run(sweep, planned, store)))
    assert before.effect == pytest.approx(8 / 12)
    assert after.effect == pytest.approx(4 / 12)
    # seed 2 goes on for one step of 8, of which a quarter are 2
    note = "reward still rising near the end, so saturation is not certain: only seed 2"
    labels = {run.seed: run.label for run in gather(sweep_run(sweep, planned, store)).runs}
    assert note.replace("only seed 2", labels[2]) in before.notes
    # val is asked the same way here: best at 8
    assert chosen.effect == pytest.approx(1.0)
    assert not any("saturate" in one for one in chosen.notes)


def test_a_seed_that_never_had_a_reward_is_left_out_of_what_saturates(tmp_path: Path) -> None:
    sweep, planned, store = make_store(
        tmp_path, RISING, reward=lambda trial, step: 0.0 if trial.seed == 1 else 0.5, accuracy=lambda *_: 1.0
    )
    before, _, chosen = verdicts(gather(sweep_run(sweep, planned, store)))
    assert (before.num_seeds, before.verdict, before.low) == (2, "inconclusive", None)
    assert [note for note in before.notes if "seed 1" in note and "never above 0" in note]
    assert chosen.num_seeds == 3
    assert chosen.effect is not None
    assert math.isclose(chosen.effect, 0.0)
