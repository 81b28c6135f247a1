"""Trial keys: what changes them, and what does not; trainings that several trials share."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import SMALL, make_store
from verbs import oneshot

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.file import read
from oneshot.config.paths import flatten, unflatten
from oneshot.config.resources import ResourceConfig
from oneshot.config.sweep import CostConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.source import folder_digest
from oneshot.plan.cost import estimate
from oneshot.plan.keys import identify_trial, trial_keys
from oneshot.plan.plan import make_plan, with_seed
from oneshot.plan.trainings import trainings
from oneshot.plan.trial import Trial
from oneshot.store.records import Result
from oneshot.tasks.benchmarks import DueEvaluations, DueSteps, due_evaluations, load_suite
from oneshot.trial.state import end_accuracies, trial_standing

MakeConfig = Callable[..., TrialConfig]


def trial(config: TrialConfig, *, name: str = "a", seed: int = 0) -> Trial:
    made = Trial(
        cell={"x": name},
        seed=seed,
        key=None,
        waits_for=None,
        config=config,
        resources=ResourceConfig(),
        labels={},
        cost=estimate(config, (), CostConfig(), gpus=0, measured_s=None),
    )
    return with_seed(made, seed)


CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": {"path": "tiny:llama"}},
    "dtype": {"model": {"dtype": "float64"}},
    "prompt": {"prompt": {"train_suffix": "Go."}},
    "examples": {"examples": ["arithmetic:47+39"]},
    "arm": {"reward": {"kind": "format"}},
    "rollout": {"rollout": {"temperature": 0.9}},
    "advantage": {"advantage": {"normalize_std": False}},
    "loss": {"loss": {"kl_coef": 0.01}},
    "optim": {"optim": {"lr": 2e-4}},
    "updates": {"train": {"updates_per_rollout": 2}},
    "clip": {"train": {"updates_per_rollout": 2}, "loss": {"clip_low": 0.5}},
    "ratio": {"train": {"updates_per_rollout": 2}, "loss": {"ratio": "sequence"}},
    "surrogate": {"train": {"updates_per_rollout": 2}, "loss": {"surrogate": "cispo"}},
    "resampling": {"rollout": {"resample": 1}},
    "more resampling": {"rollout": {"resample": 2}},
    "penalty for length": {"reward": {"overlong": {"buffer": 8}}},
    "overlong filtering": {"loss": {"mask_truncated": True}},
    "float16": {"model": {"mixed_precision": "fp16"}},
    "shots": {"prompt": {"shots": [{"problem": "1+1=?", "completion": "2"}]}},
    "ends": {"prompt": {"stop": "eos"}},
    "label": {"examples": [{"row": "arithmetic:47+38", "answer": "84"}]},
}
SAME: dict[str, dict[str, Any]] = {
    "a clip at one update": {"loss": {"clip_low": 0.5}},
    "a ratio at one update": {"loss": {"ratio": "sequence"}},
    "a surrogate at one update": {"loss": {"surrogate": "cispo"}},
    "defaults": {
        "loss": {"ratio": "token", "surrogate": "ppo", "mask_truncated": False},
        "rollout": {"resample": 0},
        "reward": {"overlong": None},
    },
    "the coin of another arm": {"reward": {"probability": 0.1}},
    "steps": {"train": {"num_steps": 9}},
    "split of the work": {"train": {"microbatch_tokens": 10}},
    "waves": {"rollout": {"kv_gib": 3.0}},
    "activations": {"train": {"activation_checkpointing": True}},
    "evaluation": {"eval": {"every_steps": 7, "suites": {}}},
    "evaluation prompt": {"prompt": {"eval_suffix": "Go."}},
    "checkpoints": {"checkpoint": {"every_steps": 3}},
    "best weights": {"checkpoint": {"keep": {"best": "eval/arithmetic/pass_at_1"}}},
    "device": {"model": {"device": "cpu"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_training_changes_the_key(tiny_config: MakeConfig, name: str) -> None:
    assert trial(tiny_config(**CHANGES[name])).key != trial(tiny_config()).key


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_training_does_not(tiny_config: MakeConfig, name: str) -> None:
    assert trial(tiny_config(**SAME[name])).key == trial(tiny_config()).key


def test_a_seed_is_part_of_the_key_and_a_name_is_not(tiny_config: MakeConfig) -> None:
    assert trial(tiny_config(), seed=1).key != trial(tiny_config(), seed=0).key
    assert trial(tiny_config(), name="b").key == trial(tiny_config(), name="a").key


def test_all_keys_of_all_changes_differ(tiny_config: MakeConfig) -> None:
    keys = {trial(tiny_config(**change), seed=seed).key for change in CHANGES.values() for seed in range(3)}
    assert len(keys) == 3 * len(CHANGES)


def test_the_key_of_a_known_trial_stays(tiny_config: MakeConfig) -> None:
    """Finished trials are found by it: should it move, TRIAL_VERSION moves with it, on purpose."""
    assert trial_keys(tiny_config(), [0], {"model": "m", "examples": ["e"]})[0] == "2c27b78675183fc0"


def test_a_key_names_the_reward_grader_only_if_it_is_not_ours(tiny_config: MakeConfig) -> None:
    plain, strict, released = (
        trial_keys(config, [0], {"model": "m"})[0]
        for config in (
            tiny_config(),
            tiny_config(reward={"grader": "strict"}),
            tiny_config(reward={"grader": "released"}),
        )
    )
    assert plain == strict != released


PATHS = {
    "loss.kl_coef": st.floats(0, 1),
    "loss.entropy_coef": st.floats(-1, 1),
    "optim.lr": st.floats(1e-8, 1),
    "rollout.group_size": st.integers(2, 64),
    "train.num_steps": st.integers(0, 99),
    "eval.suites.arithmetic.num_problems": st.integers(1, 99),
}


@settings(max_examples=60)
@given(st.fixed_dictionaries({}, optional=PATHS), st.randoms(use_true_random=False))
def test_dotted_or_nested_and_in_any_order_is_the_same(chosen: dict[str, Any], rng: Any) -> None:
    dotted = list(chosen.items())
    rng.shuffle(dotted)
    nested = unflatten(chosen)
    flat_from_nested = {path: setting.value for path, setting in flatten(nested, ()).items()}
    flat_from_dotted = {path: setting.value for path, setting in flatten(dict(dotted), ()).items()}
    assert flat_from_nested == flat_from_dotted == chosen
    assert unflatten(flat_from_dotted) == nested


def test_the_identity_of_a_model_is_its_files(tiny_config: MakeConfig) -> None:
    contents = {
        path: identify_trial(tiny_config(model={"path": path})).contents for path in ("tiny:qwen2", "tiny:llama")
    }
    assert contents["tiny:qwen2"] is not None
    assert contents["tiny:qwen2"] != contents["tiny:llama"]
    assert contents["tiny:qwen2"] == identify_trial(tiny_config(model={"path": "oneshot/tiny/qwen2"})).contents


def test_trials_that_differ_in_evaluation_share_a_training_that_serves_both(tiny_config: MakeConfig) -> None:
    short = trial(tiny_config(train={"num_steps": 4}), name="short")
    long = trial(
        tiny_config(
            train={"num_steps": 6}, eval={"at_start": False, "suites": {"other": {"source": "tests/cases/two.jsonl"}}}
        ),
        name="long",
    )
    (training,) = trainings([short, long])
    assert training.trials == (short, long)
    assert training.config.train.num_steps == 6
    assert set(training.config.eval.suites) == {"arithmetic", "other"}
    assert due_evaluations(short.config) | due_evaluations(long.config) <= due_evaluations(training.config)


def test_one_suite_name_with_two_meanings_in_one_training_is_evaluated_both_ways(tiny_config: MakeConfig) -> None:
    other = tiny_config(eval={"suites": {"arithmetic": {"num_problems": 5, "temperature": 1.0}}})
    hinted = tiny_config(prompt={"eval_suffix": "Go.", "eval_template": "chat"})
    three = [trial(config, name=name) for name, config in (("a", tiny_config()), ("b", other), ("c", hinted))]
    (training,) = trainings(three)
    assert list(training.config.eval.suites) == ["arithmetic", "arithmetic 2", "arithmetic 3"]
    for one in three:
        assert due_evaluations(one.config) <= due_evaluations(training.config)


RULES = st.tuples(st.integers(1, 12), st.integers(0, 30), st.sets(st.integers(0, 30), max_size=4))


@given(RULES, RULES)
def test_due_steps_are_a_set_by_their_rule(one: tuple[int, int, set[int]], other: tuple[int, int, set[int]]) -> None:
    steps = [DueSteps(range(every, last, every), also=also) for every, last, also in (one, other)]
    sets = [{*range(every, last, every), *also} for every, last, also in (one, other)]
    for due, listed in zip([*steps, steps[0].merged(steps[1])], [*sets, sets[0] | sets[1]], strict=True):
        assert list(due) == sorted(listed)
        assert len(due) == len(listed)
        assert [step for step in range(-1, 32) if step in due] == sorted(listed)
    ours, theirs = (DueEvaluations({"digest": due}) for due in steps)
    assert (ours == theirs) == (sets[0] == sets[1])
    assert (ours <= theirs) == (sets[0] <= sets[1])
    assert ours != theirs or hash(ours) == hash(theirs)
    assert ours - theirs == {("digest", step) for step in sets[0] - sets[1]}


def test_two_suites_with_the_same_problems_are_due_together(tiny_config: MakeConfig) -> None:
    suites = {"one": {"source": "arithmetic", "every_steps": 2}, "two": {"source": "arithmetic", "every_steps": 3}}
    due = due_evaluations(tiny_config(train={"num_steps": 7}, eval={"suites": {"arithmetic": {}, **suites}}))
    whole = load_suite("one", SuiteConfig(source="arithmetic"), tiny_config())
    assert {step for digest, step in due if digest == whole.digest} >= {0, 2, 3, 4, 6, 7}
    assert len(due) == len(set(due))


def test_a_plan_of_a_million_steps_is_no_larger_than_one_of_ten() -> None:
    text = """
version: 1
name: long
question: q
seeds: [0]
trial:
  model.path: tiny:llama
  examples: ["arithmetic:47+38"]
  rollout: {num_groups: 2, group_size: 2, max_tokens: 8}
  train.num_steps: STEPS
  eval: {every_steps: 1, suites: {arithmetic: {num_problems: 2}}}
"""
    make_plan(read(text.replace("STEPS", "10"), name="s.yaml"))  # fills the caches
    tracemalloc.start()
    made = make_plan(read(text.replace("STEPS", "1000000"), name="s.yaml"))
    due = due_evaluations(made.trials[0].config)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(due) == 1_000_001
    assert peak_bytes < 8e6  # a set of as many numbers takes 60 MB


def result(config: TrialConfig, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "outcome": "finished", "attempt": 1, "steps_done": config.train.num_steps, "reason": "", "traceback": "",
        "evaluations": frozenset(due_evaluations(config)), "log_path": "",
        "checkpoint": "none", "started_ms": 0, "ended_ms": 1,
    }  # fmt: skip
    return Result(**{**fields, **changes})


def test_a_trial_is_finished_when_its_steps_and_evaluations_are_on_record(tiny_config: MakeConfig) -> None:
    config = tiny_config(train={"num_steps": 4})
    made = trial(config)
    assert trial_standing(made, None) == "missing"
    assert trial_standing(made, result(config)) == "finished"
    assert trial_standing(made, result(config, steps_done=9)) == "finished"
    assert trial_standing(made, result(config, steps_done=3)) == "missing"
    assert trial_standing(made, result(config, evaluations=frozenset())) == "missing"
    assert trial_standing(made, result(config, outcome="failed", steps_done=3)) == "failed"


def test_a_trial_that_was_lost_after_its_last_step_is_finished_if_it_has_the_weights_that_it_keeps(
    tiny_config: MakeConfig,
) -> None:
    keeps = tiny_config(train={"num_steps": 4})
    lost = result(keeps, outcome="failed", kind="node")
    assert trial_standing(trial(keeps), lost) == "failed"  # which is tried again
    assert trial_standing(trial(keeps), replace(lost, checkpoint="weights")) == "finished"
    assert trial_standing(trial(keeps), replace(lost, steps_done=5)) == "finished", "another trial went on from it"
    assert trial_standing(trial(keeps), replace(lost, kind="guard")) == "finished", "its record is whole"
    assert trial_standing(trial(tiny_config(train={"num_steps": 4}, checkpoint={"keep": "none"})), lost) == "finished"
    only_evaluates = tiny_config(train={"num_steps": 0})
    lost = result(only_evaluates, outcome="failed", kind="node")
    assert trial_standing(trial(only_evaluates), lost) == "finished", "which has no weights"


def test_a_plan_says_what_has_ended_and_how_long_the_rest_takes(tmp_path: Path) -> None:
    # 12 trials of 12 steps; the finished ones took 4 s a step, and 3 are missing: 3 x 12 x 4 s
    missing = [f"tiny-qwen2/format seed {seed}" for seed in (0, 1, 2)]
    text = f"{SMALL}resources: {{max_concurrent: 1}}\n"
    make_store(tmp_path, text, missing=missing, failed=["tiny-llama/format seed 0"])
    made = json.loads(oneshot("plan", "sweep.yaml", "--json", cwd=tmp_path).out)
    assert (made["finished"], made["failed"], made["stopped"]) == (8, 1, 0)
    assert made["seconds_left"] == pytest.approx(144, rel=0.05)
    lines = oneshot("plan", "sweep.yaml", cwd=tmp_path).out.splitlines()
    assert "of 12 trials: 8 finished, 1 failed, 3 to run" in lines
    assert "about 2 min on CPUs with one trial at a time, as finished trainings in the store took" in lines
    # of another speed nothing is known
    text = oneshot("plan", "sweep.yaml", "--set", "rollout.max_tokens=40", cwd=tmp_path).out
    assert "on CPUs" not in text and "finished" not in text


def test_the_accuracies_at_both_ends_of_a_trial_are_those_on_record(tmp_path: Path) -> None:
    _, plan, store = make_store(tmp_path, SMALL, accuracy=lambda trial, step, problem: step / 12)
    (first, *_) = plan.trials
    assert first.key is not None
    assert end_accuracies(first, store.trial(first.key)) == {"arithmetic": (0.0, 1.0)}


def test_an_evaluation_suffix_makes_another_suite(tiny_config: MakeConfig) -> None:
    plain, hinted = tiny_config(), tiny_config(prompt={"eval_suffix": "Go."})
    assert not due_evaluations(plain) & due_evaluations(hinted)


def test_hidden_files_of_a_model_folder_are_not_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    (tmp_path / ".cache" / "hub").mkdir(parents=True)
    (tmp_path / ".cache" / "hub" / "download.metadata").write_text("today")
    assert folder_digest(tmp_path) == before
    (tmp_path / "weights").write_text("w")
    assert folder_digest(tmp_path) != before
