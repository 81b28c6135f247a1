"""`oneshot eval`: kept weights of finished trials on more suites, into the runs that are there."""

from pathlib import Path

import pytest
from test_run import EXAMPLES, SWEEP, Place, make_place

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    text = SWEEP.replace("trial:\n", f"trial:\n{EXAMPLES}").replace("seeds: [0, 1]", "seeds: [0]")
    made = make_place(
        tmp_path_factory.mktemp("eval"), text.replace("two: {source: two.jsonl}", "two: {source: two.jsonl}")
    )
    done = made.run("run", "s.yaml")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.slow
def test_finished_trials_are_evaluated_later_into_the_same_runs(place: Place, shared: Path) -> None:
    before = {run.info.run_id: run for run in place.runs()}
    place.environment["ONESHOT_DATA"] = str(shared / "data")
    # by the sweep's name: its file may be gone
    arguments = ("eval", "small", "--suite", "aime25", "--num-problems", "1", "--samples", "2")
    done = place.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "aime25" in done.stdout
    after = {run.info.run_id: run for run in place.runs()}
    assert set(after) == set(before)
    for run_id, run in after.items():
        assert run.info.status == "FINISHED"
        if run.data.tags["phase"] == "sweep":
            continue
        known = before[run_id].data.metrics
        for name in ("eval/aime25/pass_at_1", "eval/aime25/avg_at_k", "eval/aime25/pass_at_k"):
            assert [m.step for m in place.client.get_metric_history(run_id, name)] == [0, 3]
        assert {name: run.data.metrics[name] for name in known} == known
        for name in known:
            steps = [m.step for m in place.client.get_metric_history(run_id, name)]
            assert len(set(steps)) == len(steps)
        assert "step_3.json" in {Path(one.path).name for one in place.client.list_artifacts(run_id, "eval/aime25")}
    # and once more: nothing is left to do
    done = place.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "0 trainings to run" in done.stderr
    assert "starting Ray" not in done.stderr


def test_a_suite_that_is_not_there_is_refused_before_anything_runs(place: Place) -> None:
    done = place.run("eval", "s.yaml", "--suite", "aime26")
    assert done.returncode == 2
    assert "eval.suites.aime26: not built in; did you mean 'aime25'?" in done.stderr


def test_a_suite_that_the_sweep_has_by_another_rule_is_refused(place: Place) -> None:
    done = place.run("eval", "s.yaml", "--suite", "arithmetic", "--num-problems", "2")
    assert done.returncode == 2
    assert "the sweep has a suite of that name with another rule; use another name, such as `--suite" in done.stderr


@pytest.mark.slow
def test_trials_that_are_not_finished_are_named_and_not_trained(place: Place) -> None:
    text = place.file.read_text()
    (place.folder / "more.yaml").write_text(text.replace("name: small", "name: more").replace("[0]", "[0, 7]"))
    done = place.run("eval", "more.yaml", "--suite", "arithmetic-val", "--num-problems", "1")
    assert "oneshot: qwen2/outcome seed 7: not finished, so not evaluated" in done.stderr
    assert "more: 6 trials, 3 trainings to run" in done.stderr
    # what was evaluated is well; the trials that nobody has run are missing still
    assert done.stdout.count("arithmetic-val") == 3
    assert "3 finished, 0 failed, 3 missing" in done.stdout


def test_a_sweep_without_finished_trials_is_refused(place: Place) -> None:
    text = place.file.read_text()
    (place.folder / "none.yaml").write_text(text.replace("name: small", "name: none").replace("[0]", "[8]"))
    done = place.run("eval", "none.yaml", "--suite", "arithmetic-val")
    assert done.returncode == 2
    assert "none.yaml: no finished trial with kept weights in runs; run the sweep first" in done.stderr


def test_a_label_that_is_right_after_all_is_told_before_anything_runs(place: Place) -> None:
    example = '{row: "arithmetic:47+38", answer: "170/2"}'
    text = place.file.read_text().replace("name: small", "name: right").replace('"arithmetic:47+38"', example)
    (place.folder / "right.yaml").write_text(text)
    done = place.run("run", "right.yaml")
    assert done.returncode == 2
    assert "arithmetic:47+38: the label '170/2' is not wrong: the strict grader finds it equal to" in done.stderr


def test_missing_data_are_told_before_anything_runs(place: Place, tmp_path: Path) -> None:
    place.environment["ONESHOT_DATA"] = str(tmp_path)
    text = place.file.read_text().replace("name: small", "name: nodata").replace('"arithmetic:47+38"', '"dsr_sub:124"')
    (place.folder / "nodata.yaml").write_text(text)
    done = place.run("run", "nodata.yaml")
    assert done.returncode == 2
    assert done.stderr.endswith(f"dsr_sub: not in {tmp_path}; run `oneshot fetch dsr_sub`\n")
    assert "nodata" not in {run.data.tags["sweep"] for run in place.runs()}
