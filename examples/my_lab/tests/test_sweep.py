"""The sweep's trials run: two steps of each, in this process."""

from pathlib import Path

import pytest
from my_lab.graders import exact
from my_lab.rewards import length_bonus
from my_lab.rules import recent
from my_lab.sets import hard
from my_lab.templates import BARE

import oneshot
from oneshot.config.file import load
from oneshot.plan.plan import make_plan
from oneshot.tasks.foreign import trust

FOLDER = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _trusted():
    trust(FOLDER)


@pytest.mark.parametrize("reward", ["right", "short"])
def test_two_steps_of_a_trial(reward):
    plan = make_plan(load(FOLDER / "sweep.yaml", overrides=("train.num_steps=2", "eval.every_steps=2")))
    trial = next(trial for trial in plan.trials if trial.cell["reward"] == reward)
    steps = list(oneshot.train(trial.config, seed=trial.seed))
    assert [step.step for step in steps] == [0, 1, 2]
    assert steps[1].metrics.get("reward/errors", 0) == 0
    for suite in ("hard", "held-out"):
        (measured,) = [each.metrics for each in steps[-1].evaluations if each.suite == suite]
        assert measured[f"eval/{suite}/pass_at_1_exact"] <= measured[f"eval/{suite}/pass_at_1"]


def test_the_parts_by_themselves():
    assert length_bonus(["a", "b", "c"], [[1] * 40, [1] * 60, [1]], [True, True, False], {}, target=40) == [1, 0.5, 0]
    assert hard()[3] == {"problem": "15+79=?", "answer": 94, "category": "addition"}
    assert [exact(rf"\boxed{{{text}}}", "84") for text in ("84", "84.0")] == [True, False]
    assert exact(r"\boxed{1} or \boxed{2}", "2") is None
    assert recent([1, 1, 0.5, 0.5, 0.5, 0.5]) > recent([0.5, 0.5, 1, 1, 1, 1])
    assert BARE.count("{problem}") == 1
