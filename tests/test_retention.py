"""`keep` of a sweep file: which old weights and tables gc removes, and that verdicts stay what they are."""

import json
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import begin_attempt, located
from mlflow import MlflowClient
from synthetic import SMALL, make_store
from test_status import KINDS, start, training, work_off
from verbs import oneshot

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.file import load
from oneshot.config.sweep import KeepConfig
from oneshot.plan.loader import begun_sweep
from oneshot.plan.plan import make_plan
from oneshot.plan.starts import STARTS
from oneshot.report.retention import most_careful, needed_tables, retentions
from oneshot.report.runs import Gathered, Grades, Run, Shown, gather
from oneshot.report.verdicts import verdicts
from oneshot.store.gc import DAY_MS, Retention, Waste, find_waste, keys_of, remove_waste
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import table_name
from oneshot.sweep.tracking.tracker import Tracker
from oneshot.tasks.grading import Grader
from oneshot.trial.state import standing, with_suites

TEXT = """\
version: 1
name: aged
question: What stays?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 8
  eval:
    every_steps: 1
    suites:
      arithmetic: {num_problems: 4}
      greedy: {source: arithmetic, num_problems: 2, temperature: 0.0}
      arithmetic-val: {num_problems: 4}
axes:
  arm: {outcome: {}, format: {set: {reward.kind: format}}}
seeds: [0, 1, 2]
failed: worst
groups:
  both: {suites: [arithmetic, greedy]}
claims:
CLAIMS
keep: {checkpoint_days: 30, completion_days: 90}
"""
AT_LAST = (
    "  - {name: x, metric: eval/arithmetic/pass_at_1, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0}}"
)
AT_BEST = AT_LAST.replace("a: {arm: outcome}", "a: {arm: outcome, at: best}")
CLAIMS = {
    "last": AT_LAST,
    "best": AT_BEST,
    "saturation": AT_LAST.replace("a: {arm: outcome}", "a: {arm: outcome, at: saturation}"),
    "settings": AT_LAST.replace("expect", "over_settings: {grader: [strict, lenient], at: [best]}, expect"),
    "gain of a group": AT_BEST.replace("arithmetic/", "@both/").replace("name: x", "name: x, of: gain"),
    "two suites": AT_LAST.replace("b: {arm: format}", "b: {suite: greedy, at: start}"),
    "training": AT_LAST.replace("eval/arithmetic/pass_at_1", "reward/mean"),
}
pytest_plugins = ["stores"]

ON_TEST = "allow_selection_on_test: true\n"


def aged(folder: Path, *, claims: str = AT_LAST, days: float = 100, **given: Any) -> Store:
    """A store whose trainings ended some days ago, and kept their weights."""
    _, _, store = make_store(folder, TEXT.replace("CLAIMS", claims), **given)
    for key in store.trainings():
        store.trial(key).put_folder("checkpoint", weights_in(folder))
    make_older(store, days)
    return store


def weights_in(folder: Path) -> Path:
    """A folder like that of a checkpoint."""
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "state.json").write_text('{"step": 8}')
    return weights


def make_older(store: Store, days: float) -> None:
    for key in store.trainings():
        result = store.trial(key).result()
        assert result is not None
        store.trial(key).write_result(replace(result, ended_ms=result.ended_ms - int(days * DAY_MS)))


def waste_of(store: Store) -> list[Waste]:
    rules, unreadable = retentions(store)
    assert unreadable == []
    return find_waste(store, retentions=rules)[1]


class Reading:
    """A reader that notes the tables which it reads."""

    def __init__(self, gathered: Gathered) -> None:
        self.record, self.read = gathered.record, set[tuple[str, str]]()

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        own = run.suite(suite)
        if own is not None and run.key is not None and not suite.startswith("@"):
            self.read.add((run.key, table_name(own.digest, step)))
        return self.record.grades(run, suite, step)

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        return self.record.shown(run, suite, step)


@pytest.mark.parametrize("on_test", ["", ON_TEST])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS.keys())
def test_what_verdicts_read_is_needed(tmp_path: Path, claims: str, on_test: str) -> None:
    failed = ("format seed 1",)
    text = TEXT.replace("CLAIMS", claims) + on_test
    if on_test:  # without a suite for choosing, the claim's own chooses
        text = text.replace("arithmetic-val: {num_problems: 4}", "")
    _, _, store = make_store(tmp_path, text, failed=failed)
    gathered = gather(begun_sweep(store, "aged"))
    reading, needed = Reading(gathered), needed_tables(gathered)
    before = [each.to_json() for each in verdicts(replace(gathered, record=reading))]
    assert len(needed) == 5, "the failed training has no rule"
    assert {(key, name) for key, name in reading.read if key in needed} <= {
        (key, name) for key, names in needed.items() for name in names
    }
    assert waste_of(store) == []
    make_older(store, 100)
    assert len(waste_of(store)) == 5
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    after = [each.to_json() for each in verdicts(gather(begun_sweep(store, "aged")))]
    assert after == before


def test_only_the_steps_that_a_claim_is_about_stay(tmp_path: Path) -> None:
    store = aged(tmp_path)
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    runs = gather(begun_sweep(store, "aged")).runs
    (digest,) = {suite.digest for run in runs for suite in run.suites if suite.name == "arithmetic"}
    for key in store.trainings():
        assert store.trial(key).list("rollouts") == [f"{table_name(digest, step)}.json.gz" for step in (0, 8)]


def test_gc_lists_the_reasons_and_the_report_stays_the_same(tmp_path: Path) -> None:
    store = aged(tmp_path)
    key = store.trainings()[0]
    said = oneshot("gc", cwd=tmp_path).out
    # three suites at nine steps, and samples of eight steps; two tables of the claimed suite stay
    assert f"trials/{key}/rollouts: 33 tables of completions of a training that ended 100 days ago" in said
    assert "(keep.completion_days: 90); 2 by which claims are judged stay" in said
    assert f"trials/{key}/checkpoint: weights of a training that ended 100 days ago (keep.checkpoint_days: 30)" in said
    facts = json.loads(oneshot("gc", "--json", cwd=tmp_path).out)
    assert len(facts["waste"]) == 12
    before = oneshot("report", "aged", "--json", cwd=tmp_path).out
    assert store.trial(key).kept_step("checkpoint") == 8
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    assert store.trial(key).kept_step("checkpoint") is None
    assert not [name for name in store.trial(key).list("") if name.startswith("checkpoint")]
    assert oneshot("report", "aged", "--json", cwd=tmp_path).out == before
    assert oneshot("gc", cwd=tmp_path).out.splitlines()[-1] == "0 B can be removed"


@pytest.mark.parametrize(("days", "num_weights", "num_tables"), [(29.9, 0, 0), (30.1, 6, 0), (90.1, 6, 6)])
def test_each_kind_goes_at_its_age(tmp_path: Path, days: float, num_weights: int, num_tables: int) -> None:
    names = [Path(waste.path).name for waste in waste_of(aged(tmp_path, days=days))]
    assert (names.count("checkpoint"), names.count("rollouts")) == (num_weights, num_tables)


def test_a_sweep_without_rules_keeps_everything(tmp_path: Path) -> None:
    _, _, store = make_store(tmp_path, TEXT.replace("CLAIMS", AT_LAST).replace("keep:", "# keep:"))
    make_older(store, 1000)
    assert retentions(store) == ({}, [])


def test_the_most_careful_rule_counts() -> None:
    short, long = KeepConfig(checkpoint_days=1, completion_days=50), KeepConfig(checkpoint_days=2)
    assert most_careful([short, long]) == KeepConfig(checkpoint_days=2, completion_days=None)
    assert most_careful([short]) == short


def share(store: Store, folder: Path, text: str) -> None:
    """Begins a second sweep that has the trainings of the first."""
    (folder / "other.yaml").write_text(text)
    sweep = load(folder / "other.yaml")
    begun = store.sweep("other")
    begun.write("sweep.yaml", text)
    begun.write_json("settings.json", {})
    begun.write_json("plan.json", make_plan(sweep).to_json())


def test_a_shared_training_follows_the_most_careful_sweep(tmp_path: Path) -> None:
    store, text = aged(tmp_path), TEXT.replace("name: aged", "name: other").replace("seeds: [0, 1, 2]", "seeds: [0, 1]")
    greedy = AT_LAST.replace("arithmetic/", "greedy/")
    share(store, tmp_path, text.replace("CLAIMS", greedy).replace("checkpoint_days: 30, ", ""))
    shared = keys_of(store, "other")
    rules, _ = retentions(store)
    assert len(shared) == 4
    for key in store.trainings():
        assert rules[key].checkpoint_days == (None if key in shared else 30)
        # both suites that a claim of some sweep is about, at two steps
        assert len(rules[key].needed_tables) == (4 if key in shared else 2)
    share(store, tmp_path, text.replace("CLAIMS", AT_LAST).replace("keep:", "# keep:"))
    assert shared.isdisjoint(retentions(store)[0])
    # a sweep that is not finished keeps whatever its rule says
    share(store, tmp_path, text.replace("CLAIMS", AT_LAST).replace("num_steps: 8", "num_steps: 16"))
    assert keys_of(store, "other") == shared
    assert shared.isdisjoint(retentions(store)[0])
    assert len(retentions(store)[0]) == 2


def test_a_sweep_that_cannot_be_read_keeps_its_trainings(tmp_path: Path) -> None:
    store = aged(tmp_path)
    share(store, tmp_path, TEXT.replace("name: aged", "name: other").replace("CLAIMS", AT_LAST))
    store.sweep("other").write("sweep.yaml", "version: 1\nname: other\nlater: true\n")
    said = oneshot("gc", cwd=tmp_path)
    assert said.out.splitlines()[-1] == "0 B can be removed"
    assert said.err.startswith("oneshot: other: cannot be read, so nothing of its trainings is removed by age: ")


def test_a_failed_training_keeps_everything(tmp_path: Path) -> None:
    store = aged(tmp_path, failed=("format seed 1",))
    assert len(store.trainings()) == 6
    assert len(retentions(store)[0]) == 5


def test_the_start_of_another_sweep_stays(tmp_path: Path) -> None:
    store = aged(tmp_path)
    key = store.trainings()[0]
    store.sweep("second").write_json(STARTS, [{"init": "name", "starts": {"0": f"{key}@8"}}])
    weights = [waste.path for waste in waste_of(store) if waste.path.endswith("/checkpoint")]
    assert len(weights) == 5
    assert store.trial(key).path + "/checkpoint" not in weights


def test_the_first_stage_of_a_sweep_that_waits_for_it_stays(tmp_path: Path) -> None:
    store = aged(tmp_path)
    assert waste_of(store)
    (first,) = store.sweeps()
    waiting = SMALL.replace("name: small", "name: second").replace(
        "trial:\n", f"trial:\n  model.init: {{sweep: {first}, cell: {{arm: outcome}}}}\n", 1
    )
    assert "model.init" in waiting
    store.sweep("second").write("sweep.yaml", waiting)
    store.sweep("second").write_json("plan.json", {"trials": [{"key": None}]})
    assert waste_of(store) == []


def test_a_sweep_with_a_damaged_record_is_named_and_keeps_everything(tmp_path: Path) -> None:
    store = aged(tmp_path)
    folder = store.trial(store.trainings()[0])
    (name, *_) = folder.list("metrics")
    lines = (folder.read(f"metrics/{name}") or "").splitlines()
    folder.write(f"metrics/{name}", "\n".join(["{", *lines]))
    rules, unreadable = retentions(store)
    assert len(unreadable) == 1 and "cannot be read" in unreadable[0]
    assert find_waste(store, retentions=rules)[1] == []


def test_a_training_that_begins_again_between_the_list_and_the_removal_keeps_its_weights(tmp_path: Path) -> None:
    store = aged(tmp_path)
    waste = waste_of(store)
    again, other = (store.trial(key) for key in store.trainings()[:2])
    begin_attempt(again, {"started_ms": 1})
    for item in waste:
        remove_waste(store, item)
    assert again.read("checkpoint.json") is not None
    assert other.read("checkpoint.json") is None


def test_a_suite_that_is_added_later_says_why_it_cannot_be_evaluated(tmp_path: Path) -> None:
    store = aged(tmp_path)
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    added = {"later": SuiteConfig(source="arithmetic", num_problems=2)}
    _, extended, left_out = with_suites(begun_sweep(store, "aged").plan, added, store)
    assert extended == []
    assert left_out[0] == "format seed 0: its weights were not kept (checkpoint.keep), or gc removed them (keep)"


def chain_of(row: Row) -> float:
    return row.metrics["script/chain"]


def test_a_longer_training_starts_from_scratch(tmp_path: Path, grader: Grader) -> None:
    store = Store(str(tmp_path / "runs"))
    text = KINDS.replace("checkpoint.every_steps: 1", "checkpoint: {every_steps: 1, keep: full}")
    text += "keep: {checkpoint_days: 1}\n"
    work_off(store, start(store, text), "good seed 0", grader=grader)
    make_older(store, 2)
    assert [waste.path.rpartition("/")[2] for waste in waste_of(store)] == ["checkpoint"]
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    longer = start(store, text.replace("num_steps: 4", "num_steps: 6"))
    folder = store.trial(training(longer, "good seed 0").key)
    before = {row.step: chain_of(row) for row in folder.rows()}
    work_off(store, longer, "good seed 0", grader=grader)
    result = folder.result()
    assert result is not None
    assert (result.outcome, result.steps_done, result.attempt) == ("finished", 6, 2)
    # the second attempt made every step again, and they are the same
    assert next(name for name in folder.list("metrics") if name.startswith("0002-")) == "0002-00000001.jsonl"
    assert {row.step: chain_of(row) for row in folder.rows() if row.step <= 4} == before


def test_mlflow_shows_a_trial_whose_tables_are_gone(tmp_path: Path) -> None:
    store = aged(tmp_path)
    assert oneshot("gc", "--remove", cwd=tmp_path).code == 0
    plan = make_plan(load(tmp_path / "sweep.yaml"))
    uri, artifacts = f"sqlite:///{tmp_path}/m.db", (tmp_path / "artifacts").as_uri()
    tracker = Tracker(plan, store, located(uri, experiment="e", artifacts=artifacts))
    tracker.open(question="?", sweep_yaml="")
    tracker.sync(plan.trials[0])
    ((run_id, status),) = {(child.run_id, child.status) for child in tracker._children.values()}
    assert status == "FINISHED"
    tables = [file.path for file in MlflowClient(uri).list_artifacts(run_id, "eval/arithmetic")]
    assert tables == ["eval/arithmetic/step_0.json", "eval/arithmetic/step_8.json"]
    assert MlflowClient(uri).list_artifacts(run_id, "eval/greedy") == []


def test_every_kind_of_store_removes_what_is_old(store: Store, tmp_path: Path, grader: Grader) -> None:
    made = training(start(store), "good seed 0")
    work_off(store, start(store), "good seed 0", grader=grader)
    folder = store.trial(made.key)
    folder.put_folder("best", weights_in(tmp_path))
    for name in ("eval-a-0", "eval-a-4", "step-000001"):
        folder.write_completions(name, ["completion"], [["text"]])
    make_older(store, 2)
    kept = {made.key: Retention(checkpoint_days=1, completion_days=1, needed_tables=frozenset({"eval-a-4"}))}
    waste = find_waste(store, retentions=kept)[1]
    assert {posixpath.basename(each.path): each.names for each in waste} == {
        "checkpoint": (), "best": (), "rollouts": ("eval-a-0.json.gz", "step-000001.json.gz"),
    }  # fmt: skip
    assert all(each.num_bytes > 0 for each in waste)
    for each in waste:
        remove_waste(store, each)
    assert folder.list("rollouts") == ["eval-a-4.json.gz"]
    assert [folder.read(f"{name}.json") for name in ("checkpoint", "best")] == [None, None]
    assert folder.list("checkpoint") == folder.list("best") == []
    assert find_waste(store, retentions=kept)[1] == []
    assert standing(made, folder) == "finished"
