"""A training recorded in its folder: whole, interrupted, failed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from test_plan import trial

from oneshot.config.trial import TrialConfig
from oneshot.errors import TrialError
from oneshot.plan.plan import with_seed
from oneshot.plan.trainings import Training, trainings
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.grading import Grader
from oneshot.trial.recorder import record
from oneshot.trial.state import standing, view

MakeConfig = Callable[..., TrialConfig]


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return Store(str(tmp_path)).trial("k")


def training(config: TrialConfig) -> Training:
    (made,) = trainings([with_seed(trial(config), 0)])
    return made


def checkpoint_files(folder: TrialFolder) -> list[str]:
    return [name for kept in folder.list("checkpoint") for name in folder.list(f"checkpoint/{kept}")]


def test_a_finished_training_is_on_record(tiny_config: MakeConfig, grader: Grader, folder: TrialFolder) -> None:
    made = training(tiny_config(train={"num_steps": 3}, eval={"every_steps": 2}))
    yielded = list(record(made, folder, grader=grader, origin="test"))
    result = folder.result()
    assert result is not None
    assert standing(made, folder) == "finished"
    assert [row.step for row in folder.rows()] == [0, 1, 2, 3]
    assert [row.metrics for row in folder.rows()] == [step.metrics for step in yielded]
    assert sorted(step for _, step in folder.evaluations()) == [0, 2, 3]
    assert checkpoint_files(folder) == ["model.safetensors", "state.json"]
    assert folder.attempt(1)["sweep"] == "test"
    sampled = folder.completions("step-000001")
    assert sampled is not None
    assert len(sampled["data"]) == 16
    digest, step = next(iter(folder.evaluations()))
    table = folder.completions(f"eval-{digest}-{step}")
    assert table is not None
    assert table["columns"][:5] == ["problem", "answer", "completion", "strict", "lenient"]


def test_a_checkpoint_is_due_by_steps_and_by_time(tiny_config: MakeConfig, grader: Grader, tmp_path: Path) -> None:
    """After every step where a second is long ago, after none where a minute is not."""
    left = {}
    for every_s in (1e-6, 60.0, None):
        made = training(tiny_config(train={"num_steps": 3}, checkpoint={"every_steps": 100, "every_s": every_s}))
        folder = Store(str(tmp_path / str(every_s))).trial(made.key)
        steps = record(made, folder, grader=grader, origin="test")
        while next(steps).step < 2:
            pass
        left[every_s] = folder.read("checkpoint.json") is not None
        steps.close()
    assert left == {1e-6: True, 60.0: False, None: False}


def test_a_training_that_is_closed_early_goes_on_where_it_was(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    made = training(tiny_config(train={"num_steps": 4}))
    whole, cut = (Store(str(tmp_path)).trial(name) for name in ("whole", "cut"))
    expected = [step.metrics for step in record(made, whole, grader=grader, origin="test")]
    steps = record(made, cut, grader=grader, origin="test")
    for step in steps:
        if step.step == 2:
            steps.close()
    assert cut.result() is None
    assert [row.step for row in cut.rows()] == [0, 1, 2]
    again = [step.step for step in record(made, cut, grader=grader, origin="test")]
    assert again == [3, 4]
    assert standing(made, cut) == "finished"

    def exact(metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if not name.startswith(("perf/", "system/"))}

    assert [exact(row.metrics) for row in cut.rows()] == [exact(metrics) for metrics in expected]


def test_a_failure_keeps_its_traceback_and_log(tiny_config: MakeConfig, grader: Grader, folder: TrialFolder) -> None:
    made = training(tiny_config(rollout={"max_tokens": 300}))
    assert list(record(made, folder, grader=grader, origin="test")) == []
    result = folder.result()
    assert result is not None
    assert result.outcome == "failed"
    assert result.reason.startswith("DataError: examples: arithmetic:47+38: prompt of 8 tokens")
    assert "Traceback (most recent call last)" in result.traceback
    assert "Traceback (most recent call last)" in Path(result.log_path).read_text()


@pytest.mark.parametrize(
    ("keep", "files"), [("none", []), ("full", ["model.safetensors", "optimizer.safetensors", "state.json"])]
)
def test_what_is_kept_is_what_was_asked(
    tiny_config: MakeConfig, grader: Grader, folder: TrialFolder, keep: str, files: list[str]
) -> None:
    made = training(tiny_config(train={"num_steps": 2}, checkpoint={"every_steps": 1, "keep": keep}))
    list(record(made, folder, grader=grader, origin="test"))
    assert checkpoint_files(folder) == files


def test_a_full_checkpoint_lets_a_longer_request_continue(
    tiny_config: MakeConfig, grader: Grader, folder: TrialFolder
) -> None:
    short = training(tiny_config(train={"num_steps": 1}, checkpoint={"keep": "full"}))
    long = training(tiny_config(train={"num_steps": 2}, checkpoint={"keep": "full"}))
    assert short.key == long.key
    list(record(short, folder, grader=grader, origin="test"))
    assert standing(long, folder) == "missing"
    assert [step.step for step in record(long, folder, grader=grader, origin="test")] == [2]
    assert standing(long, folder) == "finished"


def asking_more(tiny_config: MakeConfig, *, every_steps: int) -> Training:
    """Two steps, also evaluated on a suite that `training(...)` of the same two steps does not ask for."""
    other = {"source": "tests/cases/two.jsonl", "every_steps": every_steps}
    suites = {"arithmetic": {"num_problems": 4, "temperature": 1.0}, "other": other}
    return training(tiny_config(train={"num_steps": 2}, eval={"suites": suites}))


def test_start_and_end_are_evaluated_later_with_the_kept_weights_and_alike(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    at_once, later = (Store(str(tmp_path)).trial(name) for name in ("at once", "later"))
    more = asking_more(tiny_config, every_steps=2)
    list(record(more, at_once, grader=grader, origin="test"))
    first = training(tiny_config(train={"num_steps": 2}))
    list(record(first, later, grader=grader, origin="test"))
    kept = later.read_json("checkpoint.json")
    assert more.key == first.key
    assert standing(more, later) == "missing"
    assert [step.step for step in record(more, later, grader=grader, origin="eval")] == [0, 2]
    assert later.read_json("checkpoint.json") == kept
    assert standing(more, later) == standing(first, later) == "finished"
    evaluations = [{pair: f.evaluation(*pair) for pair in f.evaluations()} for f in (at_once, later)]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 4
    # the steps keep what training said of them
    assert [set(row.metrics) for row in later.rows()] == [set(row.metrics) for row in at_once.rows()]
    assert [row.visits for row in later.rows()] == [row.visits for row in at_once.rows()]
    assert [row.answer_entropies for row in later.rows()] == [row.answer_entropies for row in at_once.rows()]
    assert at_once.rows()[1].answer_entropies


def test_an_evaluation_on_the_way_is_made_by_training_anew(
    tiny_config: MakeConfig, grader: Grader, folder: TrialFolder
) -> None:
    first = training(tiny_config(train={"num_steps": 2}, checkpoint={"keep": "full"}))
    list(record(first, folder, grader=grader, origin="test"))
    more = asking_more(tiny_config, every_steps=1)
    assert [step.step for step in record(more, folder, grader=grader, origin="test")] == [0, 1, 2]
    assert standing(more, folder) == standing(first, folder) == "finished"


def test_a_longer_request_that_fails_takes_nothing_back(
    tiny_config: MakeConfig, grader: Grader, folder: TrialFolder
) -> None:
    short = training(tiny_config(train={"num_steps": 1}))
    list(record(short, folder, grader=grader, origin="test"))
    long = training(tiny_config(train={"num_steps": 3}))
    steps = record(long, folder, grader=grader, origin="test")
    next(steps)
    assert standing(short, folder) == "finished"
    with pytest.raises(StopIteration):
        steps.throw(TrialError("the loss is not finite"))  # recorded, not raised
    assert standing(short, folder) == "finished"
    assert standing(long, folder) == "failed"


def test_a_trial_reads_an_evaluation_under_its_own_name(
    tiny_config: MakeConfig, grader: Grader, folder: TrialFolder
) -> None:
    rule = {"source": "tests/cases/two.jsonl"}
    made = training(tiny_config(train={"num_steps": 1}, eval={"suites": {"held-out": rule}}))
    list(record(made, folder, grader=grader, origin="test"))
    renamed = training(tiny_config(train={"num_steps": 1}, eval={"suites": {"mine": rule, "again": rule}}))
    assert standing(renamed, folder) == "finished"
    (only,) = renamed.trials
    last = view(only, folder)[-1].metrics
    assert last["eval/mine/pass_at_1"] == last["eval/again/pass_at_1"]
    assert not [name for name in last if name.startswith("eval/held-out")]
