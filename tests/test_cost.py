"""What a trial is expected to cost: worked by hand, and which of three ways to know its speed counts."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builders import begin_attempt
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st

from oneshot.config.file import read
from oneshot.config.sweep import CostConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.shapes import KNOWN_SHAPES
from oneshot.plan.cost import EFFICIENCY, PEAK_FLOPS, Cost, estimate, measured_steps, training_shape
from oneshot.plan.plan import Plan, make_plan
from oneshot.store.folder import now_ms
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.tasks.benchmarks import load_suites

MakeConfig = Callable[..., TrialConfig]
MATH_1B = "Qwen/Qwen2.5-Math-1.5B"
BASE = (PROJECT / "tests" / "cases" / "base.yaml").read_text()


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeConfig:
    """Of a known hub model without data: 10 groups of 10 completions for 100 steps, and no suite."""
    monkeypatch.setenv("ONESHOT_DATA", str(tmp_path))

    def make(**sections: dict[str, Any]) -> TrialConfig:
        data: dict[str, Any] = {
            "model": {"path": MATH_1B},
            "examples": ["arithmetic:47+38"],
            "rollout": {"num_groups": 10, "group_size": 10, "max_tokens": 1000},
            "train": {"num_steps": 100},
        }
        for name, section in sections.items():
            data[name] = {**data.get(name, {}), **section}
        return TrialConfig.model_validate(data)

    return make


def cost_of(config: TrialConfig, *, gpus: float = 1, measured_s: float | None = None, **stated: Any) -> Cost:
    return estimate(config, load_suites(config), CostConfig(**stated), gpus=gpus, measured_s=measured_s)


# which speed counts


def test_a_stated_speed_counts_before_a_measured_one_and_that_before_an_estimate(config: MakeConfig) -> None:
    assert cost_of(config(), step_s=36.0, measured_s=18.0).basis == "stated"
    assert cost_of(config(), measured_s=18.0).basis == "measured"
    assert cost_of(config()).basis == "estimated"
    assert cost_of(config(), step_s=36.0, measured_s=18.0).step_s == 36.0
    assert cost_of(config(), measured_s=18.0).step_s == 18.0


def test_gpu_hours_are_the_seconds_of_every_step_on_every_gpu(config: MakeConfig) -> None:
    # 100 steps of 36 s are an hour
    assert cost_of(config(), step_s=36.0).gpu_hours == pytest.approx(1.0)
    assert cost_of(config(), step_s=36.0, gpus=4).gpu_hours == pytest.approx(4.0)
    assert cost_of(config(), measured_s=18.0, gpus=0.5).gpu_hours == pytest.approx(0.25)


def test_an_estimate_by_hand(config: MakeConfig) -> None:
    # 10 x 10 completions of 100 tokens are 10,000 tokens a step; 1.54357e9 parameters; rollout 2, update 6, and 2 for
    # the reference: 10 passes, 1.54357e14 operations, at 989e12 x 0.2 a second
    cost = cost_of(config(), mean_tokens=100)
    assert cost.train_tokens == 100 * 10_000
    assert (PEAK_FLOPS, EFFICIENCY) == (989e12, 0.2)
    assert cost.step_s == pytest.approx(1.54357e14 / 1.978e14, rel=1e-5)
    # 100 steps of 0.7804 s
    assert cost.gpu_hours == pytest.approx(0.021677, rel=1e-4)


def test_evaluations_are_added_by_hand(config: MakeConfig) -> None:
    # 50 problems, 2 samples, 100 tokens, before step 1 and after steps 50 and 100: 30,000 tokens of 2 x 1.54357e9
    # operations, in 9.2614e13 / 1.978e14 = 0.4682 s
    suites = {"math500": {"num_problems": 50, "samples": 2, "temperature": 0.6}}
    with_suite = cost_of(config(eval={"every_steps": 50, "suites": suites}), mean_tokens=100)
    without = cost_of(config(), mean_tokens=100)
    assert (without.eval_tokens, with_suite.eval_tokens) == (0, 30_000)
    assert with_suite.gpu_hours is not None and without.gpu_hours is not None
    assert (with_suite.gpu_hours - without.gpu_hours) * 3600 == pytest.approx(0.4682, rel=1e-3)


def test_an_evaluation_of_a_whole_set_is_of_as_many_problems_as_it_has_known_without_data(config: MakeConfig) -> None:
    # 272 problems of minerva, at start and end; 200 of val; the 3 categories of arithmetic, 5 of each
    suites = {"minerva": {}, "val": {}, "arithmetic": {"num_problems": 5}}
    for name, problems in (("minerva", 272), ("val", 200), ("arithmetic", 15)):
        one = config(eval={"every_steps": 100, "suites": {name: suites[name]}})
        assert cost_of(one, mean_tokens=10).eval_tokens == problems * 2 * 10


def test_no_completion_is_longer_than_it_may_be(config: MakeConfig) -> None:
    assert cost_of(config()).train_tokens == 100 * 100 * 900
    assert cost_of(config(rollout={"max_tokens": 300})).train_tokens == 100 * 100 * 300
    short = {"math500": {"num_problems": 1, "max_tokens": 7}}
    assert cost_of(config(eval={"every_steps": 100, "suites": short})).eval_tokens == 2 * 7


@pytest.mark.parametrize(
    ("loss", "train", "passes"),
    [
        ({"kl_coef": 0.001}, {}, 10),
        ({"kl_coef": 0.0}, {}, 8),
        ({"kl_coef": 0.0}, {"updates_per_rollout": 2}, 10),
        ({"kl_coef": 0.001}, {"updates_per_rollout": 2}, 12),
        # ratios of whole completions need the policy's log-probabilities first, if there are ratios
        ({"kl_coef": 0.0, "ratio": "sequence"}, {"updates_per_rollout": 2}, 12),
        ({"kl_coef": 0.0, "ratio": "sequence"}, {}, 8),
    ],
)
def test_only_log_probabilities_that_are_computed_are_counted(
    config: MakeConfig, loss: dict[str, Any], train: dict[str, Any], passes: int
) -> None:
    cost = cost_of(config(loss=loss, train={"num_steps": 1, **train}), mean_tokens=100)
    assert cost.step_s == pytest.approx(passes * 1.54357e9 * 10_000 / 1.978e14, rel=1e-5)


def test_resampling_costs_as_many_rollouts_as_it_may_make(config: MakeConfig) -> None:
    # 8 passes a token, two of them the rollout, which two further draws may make three times
    plain, thrice = (cost_of(config(loss={"kl_coef": 0.0}, rollout={"resample": times})) for times in (0, 2))
    assert thrice.train_tokens == 3 * plain.train_tokens
    assert thrice.step_s == pytest.approx(plain.step_s * 12 / 8)


@given(gpus=st.floats(0.1, 64))
def test_an_estimate_in_gpu_hours_does_not_depend_on_how_many_share_the_work(gpus: float) -> None:
    config = TrialConfig.model_validate({"model": {"path": MATH_1B}, "examples": ["arithmetic:1+1"]})
    alone, shared_out = (estimate(config, (), CostConfig(), gpus=n, measured_s=None) for n in (1, gpus))
    assert shared_out.gpu_hours == pytest.approx(alone.gpu_hours)
    assert shared_out.step_s is not None and alone.step_s is not None
    assert shared_out.step_s * gpus == pytest.approx(alone.step_s)


def test_a_trial_without_gpu_costs_no_gpu_hours(config: MakeConfig) -> None:
    for cost in (cost_of(config(), gpus=0), cost_of(config(), gpus=0, step_s=5.0)):
        assert cost.gpu_hours == 0.0


def test_of_an_unknown_hub_model_nothing_is_said(config: MakeConfig) -> None:
    cost = cost_of(config(model={"path": "someone/unknown"}))
    assert (cost.step_s, cost.gpu_hours, cost.basis) == (None, None, "unknown")
    assert cost.train_tokens == 100 * 100 * 900


def test_of_an_unknown_hub_model_a_stated_speed_is_enough(config: MakeConfig) -> None:
    assert cost_of(config(model={"path": "someone/unknown"}), step_s=36.0).gpu_hours == pytest.approx(1.0)


def test_a_larger_known_model_needs_more_time(config: MakeConfig) -> None:
    paths = sorted(KNOWN_SHAPES, key=lambda path: KNOWN_SHAPES[path].num_params)
    costs = [cost_of(config(model={"path": path}, rollout={"kv_gib": 1.0})) for path in paths]
    for one, next_ in pairwise(costs):
        assert (one.step_s or 0) <= (next_.step_s or 0)


# what was measured


def finished(
    store: Store, key: str, config: TrialConfig, seconds: list[float], *, gpus: float = 1, before_ms: int = 0
) -> None:
    folder = store.trial(key)
    folder.write_json("trial.json", {"key": key, "seed": 0, "config": config.model_dump(mode="json"), "gpus": gpus})
    attempt = begin_attempt(folder, {"started_ms": now_ms() - before_ms})
    rows = [Row(step=0, time_ms=now_ms(), metrics={"eval/a/pass_at_1": 0.0})]
    rows += [Row(step=n + 1, time_ms=now_ms(), metrics={"perf/step_s": s}) for n, s in enumerate(seconds)]
    folder.write_segment(attempt, rows)
    folder.end_attempt(attempt, "finished")


def test_what_was_measured_is_the_median_over_finished_trainings_of_one_shape(
    config: MakeConfig, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "runs"))
    # another seed and another length of the same shape: 1, 2, 4, 5, 60 together
    finished(store, "a" * 16, config(), [60.0, 2.0, 4.0])
    finished(store, "b" * 16, config(train={"num_steps": 7}, optim={"lr": 1e-5}), [5.0, 1.0])
    finished(store, "c" * 16, config(rollout={"max_tokens": 10}), [0.5])
    measured = measured_steps(store)
    assert measured[training_shape(config(), gpus=1)] == 4.0
    assert measured[training_shape(config(rollout={"max_tokens": 10}), gpus=1)] == 0.5


def test_on_cpus_the_whole_training_counts_with_its_evaluations(config: MakeConfig, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs"))
    # 2 steps of 9 s in a training of 30 s
    finished(store, "a" * 16, config(), [9.0, 9.0], gpus=0, before_ms=30_000)
    assert measured_steps(store)[training_shape(config(), gpus=0)] == pytest.approx(15.0, abs=1.0)


def test_only_finished_trainings_of_this_version_are_measured(config: MakeConfig, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs"))
    finished(store, "a" * 16, config(), [9.0])
    old = store.trial("a" * 16).read_json("trial.json")
    assert old is not None
    store.trial("a" * 16).write_json("trial.json", {**old, "config": {**old["config"], "an_old_setting": 1}})
    begun = store.trial("b" * 16)
    begun.write_json("trial.json", {"config": config().model_dump(mode="json"), "gpus": 1})
    begun.write_segment(
        begin_attempt(begun, {"started_ms": now_ms()}), [Row(step=1, time_ms=0, metrics={"perf/step_s": 1})]
    )
    assert measured_steps(store) == {}


SHAPES: Mapping[str, dict[str, Any]] = {
    "model": {"model": {"path": "Qwen/Qwen2.5-Math-7B"}},
    "precision": {"model": {"path": MATH_1B, "mixed_precision": "bf16"}},
    "resampling": {"rollout": {"resample": 1}},
    "groups": {"rollout": {"num_groups": 20}},
    "length": {"rollout": {"max_tokens": 999}},
    "updates": {"train": {"num_steps": 100, "updates_per_rollout": 2}},
    "reference": {"loss": {"kl_coef": 0.0}},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_training_of_another_shape_says_nothing_of_this_one(config: MakeConfig, name: str) -> None:
    assert training_shape(config(**SHAPES[name]), gpus=1) != training_shape(config(), gpus=1)
    assert training_shape(config(), gpus=2) != training_shape(config(), gpus=1)


# in a plan


def plan_of(text: str, **options: Any) -> Plan:
    return make_plan(read(text, name="s.yaml"), **options)


def test_a_plan_on_cpus_costs_no_gpu_hours() -> None:
    made = plan_of(BASE)
    assert made.gpu_hours == 0.0
    assert made.to_json()["gpu_hours_basis"] == []


def test_a_plan_adds_up_what_its_cells_state() -> None:
    # 2 steps of 900 s on one GPU are half an hour; of the 8 trials the 4 of `format` hold a GPU
    cell = "format: {resources: {gpus: 1}, cost: {step_s: 900}, set: {reward.kind: format, eval.suites: {}}}"
    made = plan_of(BASE.replace("format: {set: {reward.kind: format}}", cell))
    stated = [trial.cost for trial in made.trials if trial.cell["arm"] == "format"]
    assert {cost.basis for cost in stated} == {"stated"}
    assert made.gpu_hours == pytest.approx(2.0, rel=1e-6)
    assert made.to_json()["gpu_hours_basis"] == ["stated"]


def test_a_plan_takes_what_was_measured_of_the_same_shape() -> None:
    text = BASE.replace("seeds: [0, 1]", "seeds: [0]\nresources: {gpus: 1}")
    shape = training_shape(plan_of(text).trials[0].config, gpus=1)
    made = plan_of(text, measured={shape: 1800.0})
    assert {trial.cost.basis for trial in made.trials} == {"measured"}
    # 4 trials of 2 steps of half an hour
    assert made.gpu_hours == pytest.approx(4.0, rel=1e-3)


def test_trials_that_share_a_training_pay_for_the_longest_alone() -> None:
    one = BASE[: BASE.index("axes:")].replace("  train.num_steps: 2\n", '  examples: ["arithmetic:47+38"]\n')
    steps = f"{one}axes:\n  train.num_steps: [2, 6]\nseeds: [0]\n"
    made = plan_of(steps).to_json()
    assert (made["num_trials"], made["num_trainings"]) == (2, 1)
    # 6 steps of 4 x 4 completions of 56 tokens
    assert made["max_tokens"] == 6 * 16 * 56


def test_of_a_plan_with_an_unknown_model_on_a_gpu_the_gpu_hours_are_not_known() -> None:
    made = plan_of(BASE.replace("model.path: tiny:qwen2", "model.path: someone/unknown") + "resources: {gpus: 1}\n")
    assert made.gpu_hours is None
    assert made.to_json()["gpu_hours_basis"] == ["unknown"]


def test_evaluating_a_model_of_which_nothing_is_known_has_unknown_hours(tiny_config: MakeConfig) -> None:
    made = tiny_config(model={"path": "someone/unknown"}, train={"num_steps": 0})
    assert estimate(made, load_suites(made), CostConfig(), gpus=1, measured_s=None).gpu_hours is None
