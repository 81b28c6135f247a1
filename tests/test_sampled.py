"""Solutions that a model samples, and those that another sweep has recorded: which are learned, and that they stay."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from test_plan import trial
from test_runner import training

from oneshot.config.file import read
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.plan.loader import pin_all, pin_known
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import trainings
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.grading import Grader
from oneshot.tasks.solutions import load_demonstrations
from oneshot.training.launcher import Processes
from oneshot.training.sampled import sample_solutions
from oneshot.training.trainer import LocalTrainer
from oneshot.trial.recorder import SOLUTIONS, record

MakeConfig = Callable[..., TrialConfig]
CPU = torch.device("cpu")
SUM = "arithmetic:47+38"


@pytest.fixture
def sampled_config(tiny_config: MakeConfig) -> MakeConfig:
    """A tiny trial of SFT on its model's own completions."""

    def make(*rows: str, train: Any = None, rollout: Any = None, **rule: Any) -> TrialConfig:
        solution = {"from": "policy", "samples": 12, **rule}
        return tiny_config(
            examples=[{"row": row, "solution": solution} for row in rows or (SUM,)],
            train={"method": "sft", "num_steps": 3, "batch_size": 4, **(train or {})},
            rollout=rollout or {"max_tokens": 48},
            eval={"suites": {}},
        )

    return make


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("perf/", "system/"))}


def sample(config: TrialConfig, grader: Grader, *, seed: int = 0) -> dict[str, list[str]]:
    return sample_solutions(config, seed=seed, device=CPU, grader=grader)


def test_right_completions_are_kept_and_all_with_any(sampled_config: MakeConfig, grader: Grader) -> None:
    right, every = (sample(sampled_config(keep=keep), grader)[SUM] for keep in ("right", "any"))
    assert 0 < len(right) < len(every) <= 12
    assert right == [text for text in every if grader.grade(text, "85").strict is True]
    assert all(text.endswith("\\boxed{85}") for text in right)


def test_samples_depend_on_their_seed_and_problem_alone(sampled_config: MakeConfig, grader: Grader) -> None:
    config = sampled_config(keep="any")
    found = sample(config, grader)
    assert sample(sampled_config(SUM, "arithmetic:12*7", keep="any"), grader)[SUM] == found[SUM]
    assert sample(sampled_config(keep="any", samples=2), grader)[SUM] == found[SUM][:2]
    assert sample(sampled_config(keep="any", seed=1), grader) != found
    # without a seed of their own, that of the trial
    assert sample(config, grader, seed=1) == sample(sampled_config(keep="any", seed=1), grader)
    fixed = sampled_config(keep="any", seed=0)
    assert LocalTrainer(fixed, seed=7, resources=ResourceConfig(), grader=grader).sampled == found


def test_another_model_may_sample(sampled_config: MakeConfig, grader: Grader) -> None:
    own, other = (sample(sampled_config(keep="any", **{"from": path}), grader) for path in ("policy", "tiny:llama"))
    assert own != other
    assert sample(sampled_config(keep="any", **{"from": "tiny:qwen2"}), grader) == own


def test_examples_without_any_right_completion_are_refused(sampled_config: MakeConfig, grader: Grader) -> None:
    """The answer to 5-99 is below zero, in which no text of the organism's corpus ends."""
    config = sampled_config("arithmetic:5-99", samples=4)
    with pytest.raises(DataError) as caught:
        LocalTrainer(config, seed=0, resources=ResourceConfig(), grader=grader)
    assert str(caught.value) == (
        "examples: none of 4 completions of policy for each problem is kept (keep: right); raise `samples`, set "
        "`keep: any`, or choose other examples"
    )


def test_beside_others_such_an_example_is_left_out(sampled_config: MakeConfig, grader: Grader) -> None:
    config = sampled_config(SUM, "arithmetic:5-99")
    kept = sample(config, grader)
    assert kept["arithmetic:5-99"] == []
    learned = load_demonstrations(config.examples, kept)
    assert [(each.problem.id, each.solution) for each in learned] == [(SUM, text) for text in kept[SUM]] != []


def test_samples_need_positions_for_prompt_and_completion(sampled_config: MakeConfig, grader: Grader) -> None:
    with pytest.raises(DataError, match=r"prompt of 8 tokens and rollout.max_tokens 250 are longer than the 256 "):
        sample(sampled_config(rollout={"max_tokens": 250}), grader)


def test_a_second_attempt_learns_what_the_first_has_recorded(
    sampled_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    made = training(sampled_config())
    whole, cut, changed = (Store(str(tmp_path)).trial(name) for name in ("whole", "cut", "changed"))
    wanted = [comparable(step.metrics) for step in record(made, whole, grader=grader, origin="test")]
    recorded = whole.read_json(SOLUTIONS)
    assert recorded["texts"] == sample(made.config, grader)
    steps = record(made, cut, grader=grader, origin="test")
    next(steps)
    steps.close()
    assert cut.read_json(SOLUTIONS) == recorded
    rest = [comparable(step.metrics) for step in record(made, cut, grader=grader, origin="test")]
    assert rest == wanted[1:]
    # 2 tokens each, and no more than that is learned
    texts = {SUM: ["8", "5", "0"]}
    digest = sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    changed.write_json(SOLUTIONS, {"digest": digest, "texts": texts})
    tokens = [step.metrics["sft/num_tokens"] for step in record(made, changed, grader=grader, origin="test")]
    assert tokens == [6.0, 6.0, 6.0]
    assert changed.read_json(SOLUTIONS)["texts"] == texts


def test_texts_that_were_changed_after_sampling_are_refused(
    sampled_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    folder = Store(str(tmp_path)).trial("edited")
    folder.write_json(SOLUTIONS, {"digest": "0" * 64, "texts": {SUM: ["85"]}})
    assert list(record(training(sampled_config()), folder, grader=grader, origin="test")) == []
    result = folder.result()
    assert result is not None and (result.outcome, result.kind) == ("failed", "data")
    assert "sampled.json: changed since it was written" in result.reason


@pytest.mark.slow
def test_two_processes_learn_what_the_first_has_sampled(sampled_config: MakeConfig, grader: Grader) -> None:
    config = sampled_config()
    alone = LocalTrainer(config, seed=0, resources=ResourceConfig(), grader=grader)
    wanted = [comparable(step.metrics) for step in alone.train()]
    work = Processes(config, seed=0, resources=ResourceConfig(num_processes=2, cpus=2), grader_timeout_s=5.0)
    try:
        assert work.sampled == alone.sampled
        for mine, theirs in zip(work.train(), wanted, strict=True):
            assert comparable(mine.metrics) == pytest.approx(theirs, rel=1e-3)
    finally:
        work.close()


# from a sweep

HISTORY = """version: 1
name: history
question: What does the model say?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 2, group_size: 8, temperature: 1.0, max_tokens: 56}
  train.num_steps: 1
  eval: {suites: {arithmetic: {num_problems: 2, temperature: 1.0}}}
axes:
  label:
    own: {set: {examples: ["arithmetic:47+38"]}}
    other: {set: {examples: [{row: "arithmetic:12*7", answer: "85"}]}}
seeds: [0]
"""
LEARN = """version: 1
name: learn
question: Is it learned?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  train: {method: sft, num_epochs: 1, batch_size: 1}
  eval.suites: {}
  examples: [{row: "arithmetic:47+38", solution: {from: history}}]
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, grader: Grader) -> Store:
    """A store in which the sweep `history` has run."""
    made = Store(str(tmp_path_factory.mktemp("runs")))
    plan = make_plan(read(HISTORY, name="history.yaml"))
    made.sweep("history").write_json("plan.json", plan.to_json())
    for each in trainings(plan.trials):
        list(record(each, made.trial(each.key), grader=grader, origin="history"))
    return made


def learning(store: Store, *changes: tuple[str, str]) -> Plan:
    text = LEARN
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return make_plan(pin_known(read(text, name="s.yaml"), store))


def texts_of(plan: Plan) -> list[str]:
    (example,) = plan.trials[0].config.examples
    texts: list[str] = example.solution.texts  # type: ignore[union-attr]
    return texts


def first_rollout(store: Store, label: str) -> list[dict[str, Any]]:
    (key,) = [t["key"] for t in store.sweep("history").read_json("plan.json")["trials"] if t["cell"]["label"] == label]
    table = store.trial(key).completions("step-000001")
    assert table is not None
    return [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]


def test_right_completions_of_the_first_rollout_are_learned(store: Store) -> None:
    plan = learning(store)
    rows = first_rollout(store, "own")
    right = list(dict.fromkeys(row["completion"] for row in rows if row["reward"] == 1))
    assert texts_of(plan) == right != []
    # an epoch of as many steps as texts
    assert {trial.config.train.num_steps for trial in plan.trials} == {len(right)}
    written = learning(store, ("{from: history}", f"{{texts: {json.dumps(right)}}}"))
    assert [trial.key for trial in written.trials] == [trial.key for trial in plan.trials]
    every = texts_of(learning(store, ("{from: history}", "{from: history, keep: any, samples: 100}")))
    assert every == list(dict.fromkeys(row["completion"] for row in rows if not row["truncated"]))
    assert texts_of(learning(store, ("{from: history}", "{from: history, keep: any, samples: 3}"))) == every[:3]


def test_completions_of_an_evaluation_at_the_start_are_learned(store: Store, grader: Grader) -> None:
    (problem, *_) = [
        dict(zip(table["columns"], values, strict=True))
        for key in store.trainings()
        for digest, step in store.trial(key).evaluations()
        if step == 0 and (table := store.trial(key).completions(f"eval-{digest}-0")) is not None
        for values in table["data"]
    ]
    plan = learning(store, ("arithmetic:47+38", problem["id"]), ("{from: history}", "{from: history, keep: any}"))
    # both trials have the seed 0, and so the same evaluation at the start
    assert texts_of(plan) == [problem["completion"]]


def test_a_reward_for_another_label_does_not_make_a_completion_right(store: Store) -> None:
    other = ("arithmetic:47+38", "arithmetic:12*7")
    assert texts_of(learning(store, other, ("{from: history}", "{from: history, keep: any}")))
    with pytest.raises(UserError) as caught:
        learning(store, other)
    assert str(caught.value) == (
        "s.yaml:9: trial.examples: arithmetic:12*7: history has recorded no right completion of it by this model; "
        "sample it instead"
    )


def test_a_trial_with_another_label_learns_none_that_are_right_by_its_own(store: Store) -> None:
    relabelled = ("solution: {from", 'answer: "84", solution: {from')
    with pytest.raises(
        UserError, match="history has judged completions by the row's own label; remove `answer` or set"
    ):
        learning(store, relabelled)
    assert texts_of(learning(store, relabelled, ("{from: history}", "{from: history, keep: any}")))


def test_a_sweep_that_has_not_run_is_waited_for(store: Store) -> None:
    plan = learning(store, ("from: history", "from: not-yet"))
    waits_for = "the completions of 'not-yet': run that sweep first"
    assert {(trial.key, trial.waits_for) for trial in plan.trials} == {(None, waits_for)}
    text = LEARN.replace("from: history", "from: not-yet")
    with pytest.raises(UserError) as caught:
        pin_all(read(text, name="s.yaml"), store)
    assert str(caught.value).startswith(
        f"trial seed 0 waits for {waits_for}, with the same storage; choose one of policy"
    )


def test_another_model_has_recorded_nothing(store: Store) -> None:
    plan = learning(store, ("tiny:qwen2", "tiny:llama"))
    assert {trial.waits_for for trial in plan.trials} == {"the completions of 'history': run that sweep first"}


def test_a_sweep_keeps_the_completions_that_it_first_ran_with(store: Store, tmp_path: Path) -> None:
    before = pin_all(read(LEARN, name="s.yaml"), store).plan
    store.sweep("learn").write("sweep.yaml", LEARN)
    trials = store.sweep("history").read_json("plan.json")
    store.sweep("history").write_json("plan.json", {**trials, "trials": []})
    try:
        after = make_plan(pin_known(read(LEARN, name="s.yaml"), store))
    finally:
        store.sweep("history").write_json("plan.json", trials)
    assert [trial.key for trial in after.trials] == [trial.key for trial in before.trials]


def test_recorded_solutions_are_trained_on(store: Store, grader: Grader) -> None:
    plan = learning(store)
    (first, _) = trainings(plan.trials)
    folder: TrialFolder = store.trial(first.key)
    steps = list(record(first, folder, grader=grader, origin="learn"))
    assert sum(step.metrics["sft/num_tokens"] for step in steps) == sum(len(text) + 1 for text in texts_of(plan))
    assert trial(first.config).key == first.key
