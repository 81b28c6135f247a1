"""`checkpoint.keep: {best: METRIC}`: the weights of the best step are kept beside the last ones, and used later."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from safetensors.torch import load_file
from synthetic import SMALL, make_store
from test_plan import trial
from test_steps import run
from verbs import oneshot

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.file import SweepFile, load, read
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import SweepFileError, UserError
from oneshot.export.kept import Selection, read_kept
from oneshot.plan.loader import pin_all
from oneshot.plan.plan import Plan, make_plan, with_seed
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trainings import Training, trainings
from oneshot.report.runs import read_runs
from oneshot.report.steps import find_step
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.sweep.agenda import Agenda
from oneshot.sweep.run import Summary
from oneshot.sweep.run import run as run_sweep
from oneshot.tasks.benchmarks import due_steps, load_suites
from oneshot.tasks.grading import Grader
from oneshot.trial import recorder
from oneshot.trial.best import BEST, best_of, best_step, can_resume, why_no_best
from oneshot.trial.recorder import record
from oneshot.trial.state import standing, with_suites

MakeConfig = Callable[..., TrialConfig]
METRIC = "eval/arithmetic/pass_at_1"
STEPS = 6


def made(tiny_config: MakeConfig, keep: Any, **sections: Any) -> Training:
    """Six steps with an evaluation after each second one, at a learning rate that moves the accuracy."""
    config = tiny_config(
        **{
            "train": {"num_steps": STEPS},
            "optim": {"lr": 1e-3},
            "eval": {"every_steps": 2, "suites": {"arithmetic": {"num_problems": 4, "temperature": 1.0}}},
            "checkpoint": {"every_steps": 3, "keep": keep},
            **sections,
        }
    )
    (training,) = trainings([with_seed(trial(config), 0)])
    return training


def folder_of(store: Path, training: Training) -> TrialFolder:
    return Store(str(store)).trial(training.key)


def score(monkeypatch: pytest.MonkeyPatch, scores: Mapping[int, float]) -> None:
    """Gives the metric that chooses these values, since a tiny model's may all be equal."""
    take = recorder._Recorder.take

    def taking(self: Any, step: Any, trainer: Any) -> None:
        for evaluation in step.evaluations:
            if evaluation.step in scores:
                step.metrics[METRIC] = evaluation.metrics[METRIC] = scores[evaluation.step]
        take(self, step, trainer)

    monkeypatch.setattr(recorder._Recorder, "take", taking)


def weights(folder: TrialFolder, name: str) -> dict[str, torch.Tensor]:
    place = folder.kept_place(name)
    assert place is not None
    assert folder.list(place) == ["model.safetensors", "state.json"]
    return load_file(Path(folder.path, place, "model.safetensors"))


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# what the best step is


@given(st.dictionaries(st.integers(0, 50), st.sampled_from([0.0, 0.25, 0.5]), min_size=1))
def test_the_step_that_is_kept_is_the_one_that_claims_mean_by_best(scores: dict[int, float]) -> None:
    one = run(num_steps=50, measured={"val": scores})
    assert best_of(scores) == find_step(one, "best", suite=None, metric="reward/mean", selects_on_test=False)


def test_it_changes_no_key(tiny_config: MakeConfig) -> None:
    assert made(tiny_config, {"best": METRIC}).key == made(tiny_config, "weights").key


# what is kept


def test_the_weights_of_the_best_step_and_of_the_last_are_kept(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.5, 6: 0.2})  # of equal steps, the earliest
    training = made(tiny_config, {"best": METRIC})
    folder = folder_of(tmp_path, training)
    list(record(training, folder, grader=grader, origin="test"))
    assert standing(training, folder) == "finished"
    assert (folder.kept_step(BEST), folder.kept_step("checkpoint")) == (2, STEPS)
    assert best_step(training.config, folder) == 2
    # they are those of a training that ends there
    short = made(tiny_config, "weights", train={"num_steps": 2})
    other = folder_of(tmp_path / "short", short)
    list(record(short, other, grader=grader, origin="test"))
    assert same(weights(folder, BEST), weights(other, "checkpoint"))
    assert not same(weights(folder, BEST), weights(folder, "checkpoint"))


def test_if_the_start_is_best_the_base_model_is_not_stored(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, {0: 0.5, 2: 0.5, 4: 0.1, 6: 0.5})
    training = made(tiny_config, {"best": METRIC})
    folder = folder_of(tmp_path, training)
    list(record(training, folder, grader=grader, origin="test"))
    assert folder.kept_step(BEST) is None
    assert folder.list(BEST) == []
    assert (best_step(training.config, folder), why_no_best(training.config, folder)) == (0, "")


def test_an_adapters_best_weights_are_the_adapters_alone(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.2, 6: 0.2})
    training = made(tiny_config, {"best": METRIC}, model={"adapter": {"kind": "lora", "r": 4}})
    folder = folder_of(tmp_path, training)
    list(record(training, folder, grader=grader, origin="test"))
    assert folder.kept_step(BEST) == 2
    assert all("lora" in name for name in weights(folder, BEST))


def test_trials_that_share_a_training_keep_what_one_of_them_asks_for(tiny_config: MakeConfig) -> None:
    plain, best = made(tiny_config, "none"), made(tiny_config, {"best": METRIC})
    (both,) = trainings([*plain.trials, *best.trials])
    assert both.config.checkpoint.best_metric == METRIC
    renamed = {"every_steps": 2, "suites": {"arithmetic": {"num_problems": 3, "temperature": 1.0}}}
    other = made(tiny_config, {"best": METRIC}, eval=renamed)  # another suite of the same name
    (both,) = trainings([*plain.trials, *other.trials])
    assert both.config.checkpoint.best_metric == "eval/arithmetic 2/pass_at_1"
    assert both.config.eval.suites["arithmetic 2"].num_problems == 3


def test_a_suites_own_further_steps_are_due_for_it_alone_and_all_of_them_if_trials_share(
    tiny_config: MakeConfig,
) -> None:
    def suites(**own: Any) -> dict[str, Any]:
        rule = {"num_problems": 4, "temperature": 1.0}
        return {"every_steps": 6, "suites": {"arithmetic": {**rule, **own}, "arithmetic-val": rule}}

    one, other = (made(tiny_config, "none", eval=suites(also_at=[step])) for step in (3, 5))
    first, second = load_suites(one.config)
    assert (list(due_steps(first, one.config)), list(due_steps(second, one.config))) == ([0, 3, 6], [0, 6])
    (both,) = trainings([*one.trials, *other.trials])
    first, second = load_suites(both.config)
    assert (list(due_steps(first, both.config)), list(due_steps(second, both.config))) == ([0, 3, 5, 6], [0, 6])


@pytest.mark.slow
def test_shards_keep_whole_weights_and_evaluate_them_later(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.2, 6: 0.2})
    alone = made(tiny_config, {"best": METRIC})
    resources = ResourceConfig(cpus=2, num_processes=2, strategy="fsdp")
    shared = replace(alone, resources=resources)
    folder, other = (folder_of(tmp_path / name, alone) for name in ("shards", "whole"))
    list(record(shared, folder, grader=grader, origin="test"))
    list(record(alone, other, grader=grader, origin="test"))
    ours, theirs = weights(folder, BEST), weights(other, BEST)
    assert (folder.kept_step(BEST), other.kept_step(BEST)) == (2, 2)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert not same(ours, weights(folder, "checkpoint"))
    plan, _, _ = with_suites(planned(shared), TWO, Store(str(tmp_path / "shards")), at="best")
    (more,) = trainings(plan.trials)
    more = replace(more, resources=resources)
    assert [step.step for step in record(more, folder, grader=grader, origin="eval")] == [0, 2, 6]


# whatever ends it

SCORES = {0: 0.1, 2: 0.3, 4: 0.5, 6: 0.2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, grader: Grader) -> TrialFolder:
    """A trial left alone."""
    training = made(make_tiny, {"best": METRIC})
    folder = folder_of(tmp_path_factory.mktemp("whole"), training)
    with pytest.MonkeyPatch.context() as patch:
        score(patch, SCORES)
        list(record(training, folder, grader=grader, origin="test"))
    return folder


@pytest.mark.parametrize("last", [1, pytest.param(3, marks=pytest.mark.soak), pytest.param(4, marks=pytest.mark.soak)])
def test_a_trial_that_is_closed_anywhere_resumes_to_the_same_weights(
    whole: TrialFolder, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    score(monkeypatch, SCORES)
    training = made(make_tiny, {"best": METRIC})
    cut = folder_of(tmp_path, training)
    steps = record(training, cut, grader=grader, origin="test")
    while next(steps).step < last:
        pass
    steps.close()
    list(record(training, cut, grader=grader, origin="test"))
    assert cut.kept_step(BEST) == 4
    assert same(weights(cut, BEST), weights(whole, BEST))
    assert same(weights(cut, "checkpoint"), weights(whole, "checkpoint"))


class Killed(BaseException):
    """An end that nothing is written after."""


@pytest.mark.parametrize(
    ("moment", "nth"),
    [
        ("before the upload", 2),
        pytest.param("before it counts", 1, marks=pytest.mark.soak),
        ("before it counts", 2),
        ("before removing", 2),
        pytest.param("after", 2, marks=pytest.mark.soak),
    ],
)
def test_a_trial_that_dies_while_it_keeps_its_best_ends_in_the_same_weights(
    whole: TrialFolder, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, nth: int
) -> None:
    """The best are kept after steps 2 and 4. The only checkpoint is that of step 3."""
    score(monkeypatch, SCORES)
    training = made(make_tiny, {"best": METRIC})
    cut = folder_of(tmp_path, training)
    with monkeypatch.context() as patch:
        calls = iter(range(1, 9))
        function = {"before it counts": "write_json", "before removing": "remove_superseded"}.get(moment, "put_folder")
        original = getattr(TrialFolder, function)

        def dying(self: TrialFolder, name: str, *arguments: Any) -> Any:
            is_it = name in (BEST, f"{BEST}.json") and next(calls) == nth
            if is_it and moment != "after":
                raise Killed
            result = original(self, name, *arguments)
            if is_it:
                raise Killed
            return result

        patch.setattr(TrialFolder, function, dying)
        with pytest.raises(Killed):
            list(record(training, cut, grader=grader, origin="test"))
    assert cut.result() is None
    list(record(training, cut, grader=grader, origin="test"))
    assert standing(training, cut) == "finished"
    assert same(weights(cut, BEST), weights(whole, BEST))
    assert len(cut.list(BEST)) == 1
    assert [row.step for row in cut.rows()] == [row.step for row in whole.rows()]


def test_training_begins_again_if_the_best_weights_so_far_were_not_kept(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting was added after step 4, the best one."""
    score(monkeypatch, SCORES)
    before, after = made(tiny_config, "weights"), made(tiny_config, {"best": METRIC})
    folder = folder_of(tmp_path, before)
    steps = record(before, folder, grader=grader, origin="test")
    while next(steps).step < 5:
        pass
    steps.close()
    assert not can_resume(after.config, folder, at=5)
    again = [step.step for step in record(after, folder, grader=grader, origin="test")]
    assert again == list(range(STEPS + 1))
    assert folder.kept_step(BEST) == 4


# later evaluations


def planned(training: Training) -> Plan:
    return Plan(name="s", num_cells=1, trials=training.trials, warnings=())


def finished(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Any
) -> tuple[Training, Store]:
    score(monkeypatch, SCORES)
    training = made(tiny_config, keep)
    store = Store(str(tmp_path))
    list(record(training, store.trial(training.key), grader=grader, origin="s"))
    return training, store


TWO = {"two": SuiteConfig(source="tests/cases/two.jsonl")}


def test_the_best_weights_are_evaluated_later_at_their_own_step(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, store = finished(tiny_config, grader, tmp_path, monkeypatch, {"best": METRIC})
    folder = store.trial(training.key)
    plan, extended, left_out = with_suites(planned(training), TWO, store, at="best")
    assert (len(extended), left_out) == (1, [])
    (more,) = trainings(plan.trials)
    assert more.key == training.key
    assert [step.step for step in record(more, folder, grader=grader, origin="eval")] == [0, 4, 6]
    assert standing(more, folder) == "finished"
    assert [row.step for row in folder.rows()] == list(range(STEPS + 1))
    assert "reward/mean" in folder.rows()[4].metrics  # what training said stays
    # they equal those of a training that makes them on its way
    at_once = made(tiny_config, "weights", eval={"also_at": [4], "suites": {"two": TWO["two"].model_dump()}})
    other = folder_of(tmp_path / "other", at_once)
    list(record(at_once, other, grader=grader, origin="test"))
    (digest,) = {digest for digest, _ in other.evaluations()}
    assert {step for each, step in folder.evaluations() if each == digest} == {0, 4, 6}
    tables = [each.completions(f"eval-{digest}-{step}") for step in (0, 4, 6) for each in (folder, other)]
    assert tables[0::2] == tables[1::2]


def test_a_report_has_the_later_evaluation_at_the_best_step(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, store = finished(tiny_config, grader, tmp_path, monkeypatch, {"best": METRIC})
    plan, _, _ = with_suites(planned(training), TWO, store, at="best")
    (more,) = trainings(plan.trials)
    list(record(more, store.trial(training.key), grader=grader, origin="eval"))
    suites = {
        "arithmetic": {"num_problems": 4, "temperature": 1.0},
        "two": TWO["two"].model_dump() | {"every_steps": 6},
    }
    in_file = made(tiny_config, {"best": METRIC}, eval={"every_steps": 2, "suites": suites})
    (reported,) = read_runs(planned(in_file), store)
    assert list(reported.measured["two"]) == [0, 4, 6]


def test_trials_without_best_weights_are_left_out_with_the_reason(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, store = finished(tiny_config, grader, tmp_path, monkeypatch, "weights")
    _, extended, left_out = with_suites(planned(training), TWO, store, at="best")
    assert extended == []
    assert left_out == ["a seed 0: its best weights are not kept (checkpoint.keep: {best: METRIC}), so not evaluated"]
    now_asked = made(tiny_config, {"best": METRIC})
    _, _, left_out = with_suites(planned(now_asked), TWO, store, at="best")
    assert left_out[0].startswith(f"a seed 0: the weights of step 4, the best by {METRIC}, are not kept")


RUN = """\
version: 1
name: s
question: Which step is best?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  examples: ["arithmetic:47+38"]
  rollout: {num_groups: 2, group_size: 4, temperature: 1.0, max_tokens: 56}
  optim.lr: 1.0e-12          # nothing changes, so all steps are equal, and the first one is the best
  train.num_steps: 4
  checkpoint.keep: {best: eval/arithmetic-val/pass_at_1}
  eval: {at_start: false, every_steps: 2, suites: {arithmetic-val: {num_problems: 2, temperature: 1.0}}}
seeds: [0]
"""


@pytest.mark.slow
def test_mlflow_has_the_later_evaluation_at_the_best_step(grader: Grader, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(RUN)
    store = Store(str(tmp_path / "runs"))
    sweep_run = pin_all(load(tmp_path / "s.yaml"), store)

    def launch(agenda: Agenda, _tracking: Any) -> bool:
        while not isinstance(following := agenda.next(), str):
            key = following.training.key
            agenda.begun(key)
            list(record(following.training, store.trial(key), grader=grader, origin="s"))
            agenda.ended(key)
        return False

    def run_it(sweep_run: SweepRun, only: set[str] | None) -> Summary:
        return run_sweep(sweep_run, launch=launch, listen=lambda event: None, only=only)[0]

    assert run_it(sweep_run, None).finished == 1
    (key,) = store.trainings()
    assert store.trial(key).kept_step(BEST) == 2
    whole, _, left_out = with_suites(sweep_run.plan, TWO, store, at="best")
    assert left_out == []
    summary = run_it(replace(sweep_run, plan=whole), {key})
    assert (summary.finished, summary.tracking_error) == (1, "")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.get_experiment_by_name("s")
    assert found is not None
    runs = [run for run in client.search_runs([found.experiment_id]) if run.data.tags["phase"] == "grid"]
    (points,) = (client.get_metric_history(run.info.run_id, "eval/two/pass_at_1") for run in runs)
    assert sorted(point.step for point in points) == [0, 2, 4]


def test_the_verb_names_what_is_missing_in_one_error(tmp_path: Path) -> None:
    make_store(tmp_path, SMALL)
    done = oneshot("eval", "small", "--suite", "arithmetic-val", "--step", "best", cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines()[-1] == (
        "oneshot: small: --step best: no finished trial with kept best weights in runs; before a sweep runs, set "
        "checkpoint.keep: {best: METRIC}"
    )


def test_an_export_of_the_best_step_has_its_weights(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, store = finished(tiny_config, grader, tmp_path, monkeypatch, {"best": METRIC})
    selection = Selection(sweep=None, trial=training.trials[0])
    best, last = (read_kept(store, selection, at=at) for at in ("best", "last"))
    assert (best.step, last.step) == (4, STEPS)
    assert (best.weights[0].split("/")[0], last.weights[0].split("/")[0]) == (BEST, "checkpoint")
    assert {each.step for each in best.evaluations} == {0, 4}
    other = Selection(sweep=None, trial=made(tiny_config, "weights").trials[0])
    with pytest.raises(UserError, match="--step best: its best weights are not kept"):
        read_kept(store, other, at="best")


# the sweep file

FILE = """\
version: 1
name: s
question: Which step is best?
trial:
  model.path: tiny:qwen2
  rollout.max_tokens: 32
  examples: ["arithmetic:47+38"]
  train.num_steps: 4
  checkpoint.keep: {keep}
  eval.suites: {{arithmetic: {{}}, arithmetic-val: {{}}}}
seeds: [0, 1, 2]
claims:
  - {{name: lifts, metric: eval/arithmetic/pass_at_1, a: {{}}, b: {{at: start}}, expect: {{greater_by: 0}}}}
"""


def told(text: str) -> SweepFile:
    return read(text, name="s.yaml")


def test_a_suite_for_choosing_may_choose() -> None:
    plan = make_plan(told(FILE.format(keep="{best: eval/arithmetic-val/pass_at_1}")))
    assert {trial.config.checkpoint.best_metric for trial in plan.trials} == {"eval/arithmetic-val/pass_at_1"}


@pytest.mark.parametrize(
    ("keep", "error"),
    [
        (
            "{best: eval/arithmetic/pass_at_1}",
            "s.yaml:13: claims.0.metric: eval/arithmetic/pass_at_1 also chooses: checkpoint.keep.best; choose by `val`",
        ),
        (
            "{best: eval/arithmetic-vall/pass_at_1}",
            "s.yaml:9: trial.checkpoint.keep: the only cell has no metric eval/arithmetic-vall/pass_at_1; did you mean "
            "'eval/arithmetic-val/pass_at_1'?",
        ),
        (
            "{best: eval/arithmetic-val/length_mean}",
            "s.yaml:9: trial.checkpoint.keep: eval/arithmetic-val/length_mean: more of it is not better",
        ),
        ("{best: reward/mean}", "s.yaml:9: trial.checkpoint.keep: best: 'reward/mean' is no metric of a suite"),
        ("all", "s.yaml:9: trial.checkpoint.keep: 'all' is not one of none, weights, full and {best: METRIC}"),
        ("{worst: eval/arithmetic-val/pass_at_1}", "is not one of none, weights, full and {best: METRIC}"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(keep: str, error: str) -> None:
    with pytest.raises(SweepFileError) as refused:
        make_plan(told(FILE.format(keep=keep)))
    assert error in str(refused.value)


def test_a_metric_of_claims_may_choose_if_the_file_says_so() -> None:
    text = FILE.format(keep="{best: eval/arithmetic/pass_at_1}") + "allow_selection_on_test: true\n"
    assert make_plan(told(text)).trials
