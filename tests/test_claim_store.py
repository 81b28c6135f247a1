"""Claims of every kind from the file to the page: a store, a bundle, `plan`, `report` and MLflow's numbers agree."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import sweep_run
from synthetic import make_store, put_on_record
from verbs import oneshot

from oneshot.config.claims import GroupConfig
from oneshot.config.file import load
from oneshot.plan.plan import make_plan
from oneshot.plan.trial import Trial
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.cells import cell_lines
from oneshot.report.published import published_tables
from oneshot.report.runs import Gathered, gather
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim, verdicts
from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.sweep.tracking.run_data import end_metrics, sweep_metrics, with_groups
from oneshot.tasks.benchmarks import load_suites

TEXT = """\
version: 1
name: kinds
question: Are all kinds of claims judged?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 4
  eval:
    every_steps: 2
    suites: {mine: {source: FOLDER/mine.jsonl}, arithmetic: {num_problems: 10}, arithmetic-val: {num_problems: 10}}
axes:
  model:
    one: {}
    two: {set: {model.path: "tiny:llama"}}
    three: {set: {optim.lr: 1.0e-4}}
  arm: {outcome: {}, format: {set: {reward.kind: format}}}
seeds: {planned: 6, stop: decided}
looks: [3, 6]
failed: worst
groups:
  both: {suites: [mine, arithmetic], weight: problem}
claims:
  - name: base
    metric: eval/@both/pass_at_1
    a: {arm: outcome}
    b: {at: start}
    expect: {greater_by: 0}
    primary: true
  - name: share
    metric: eval/@both/pass_at_1
    of: gain
    a: {arm: format}
    b: {arm: outcome}
    expect: {share_at_least: 0.1}
    over_settings: {grader: [strict, lenient], at: [last, best]}
  - {name: mean, metric: eval/mine/pass_at_1, a: {arm: outcome}, b: {arm: format}, over: model, expect: {greater_by: 0}}
  - {name: suites, metric: eval/mine/pass_at_1, a: {arm: outcome}, b: {suite: arithmetic}, expect: {within: 0.5}}
published:
  - {by: Somebody, how: one seed, columns: ["@both", mine], rows: [{cell: {arm: outcome}, values: [0.5, 0.25]}]}
"""
FAILED = "one/format seed 5"


def problems(num: int, *, families: Sequence[str] = (), copies: int = 1) -> str:
    rows = [{"problem": f"{number} + 100 = ?", "answer": str(number + 100)} for number in range(num)] * copies
    if families:
        rows = [{**row, "family": family} for row, family in zip(rows, families, strict=True)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def text_in(folder: Path, rows: str, *, text: str = TEXT) -> str:
    """The text of a sweep whose suite `mine` is a file in this folder."""
    (folder / "mine.jsonl").write_text(rows)
    return text.replace("FOLDER", str(folder))


def from_store(folder: Path) -> Gathered:
    sweep = load(folder / "sweep.yaml")
    return gather(sweep_run(sweep, make_plan(sweep), Store(str(folder / "runs"))))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sweep, its store, and `kinds.oneshot.zip`."""
    folder = tmp_path_factory.mktemp("kinds")
    text = text_in(folder, problems(30, families=[str(number // 3) for number in range(30)]))
    put_on_record(folder, text)
    make_store(folder, text, failed=[FAILED])
    write_bundle(from_store(folder), folder / "kinds.oneshot.zip")
    return folder


def by_name(judged: Sequence[JudgedClaim]) -> dict[str, JudgedClaim]:
    return {one.name: one for one in judged}


def test_every_kind_is_judged(made: Path) -> None:
    found = by_name(verdicts(from_store(made)))
    assert {name: one.effect is None for name, one in found.items()} == dict.fromkeys(
        ("base", "share", "mean", "suites"), False
    )
    assert found["base"].is_primary and found["base"].base.keys() == {"boxed", "truncated"}
    assert found["share"].share is not None and len(found["share"].over_settings) == 4
    assert found["mean"].between is not None and found["mean"].between["num"] == 3
    assert all(one.look is not None and one.look["of"] == 2 for one in found.values())


def test_a_family_column_makes_ten_replicates_of_thirty_problems(made: Path) -> None:
    found = by_name(verdicts(from_store(made)))["suites"]
    # ten problems a category in the other suite, of three categories, each its own family
    assert found.num_problems == 60
    assert "40 families of 60 problems" in found.test


def test_copies_of_a_problem_are_one(tmp_path: Path) -> None:
    text = text_in(tmp_path, problems(5, copies=4))
    put_on_record(tmp_path, text)
    make_store(tmp_path, text)
    found = by_name(verdicts(from_store(tmp_path)))["suites"]
    assert found.num_problems == 50
    assert "35 families of 50 problems" in found.test
    assert any(note.startswith("leak: 15 problems repeat others of ") for note in found.notes), found.notes


def test_a_bundle_gives_the_same_verdicts_to_the_last_digit(made: Path) -> None:
    store, bundle = from_store(made), read_bundle(made / "kinds.oneshot.zip")
    assert verdicts(bundle) == verdicts(store)
    assert published_tables(bundle) == published_tables(store)


def test_report_prints_what_stands_beside_each_verdict(made: Path) -> None:
    said = oneshot("report", "kinds", "--no-publish", cwd=made)
    assert said.code == 0, said.err
    page = (made / "runs" / "sweeps" / "kinds" / "report" / "report.html").read_text()
    for text in (
        "share: format has ",
        "supported under ",
        "mean: look ",
        "SD between the 3 cells",
        "at the start 100% boxed",
    ):
        assert text in said.out, text
        assert text.rpartition(": ")[2] in page, text
    assert "Beside Somebody" in page


def test_a_published_number_of_a_group_stands_beside_ours(made: Path) -> None:
    gathered = from_store(made)
    (table,) = published_tables(gathered)
    assert [row[1] for row in table.rows] == ["@both", "mine"]
    runs = [run for run in gathered.runs if run.cell["arm"] == "outcome"]
    # weighed by problem: 30 of mine and 30 of arithmetic
    ours = sum((run.measured["mine"][4]["pass_at_1"] + run.measured["arithmetic"][4]["pass_at_1"]) / 2 for run in runs)
    assert isinstance(table.rows[0][4], Interval)
    assert table.rows[0][4].mean == pytest.approx(ours / len(runs))


def test_a_claim_on_a_new_group_can_be_added_to_the_file(made: Path, tmp_path: Path) -> None:
    text = (made / "sweep.yaml").read_text()
    text = text.replace("  both:", "  all: {suites: [mine, arithmetic, arithmetic-val]}\n  both:")
    added = "{name: added, metric: eval/@all/pass_at_1, a: {arm: outcome}, b: {arm: format}, expect: {greater_by: 0}}"
    (tmp_path / "sweep.yaml").write_text(text.replace("published:", f"  - {added}\npublished:"))
    arguments = ("sweep.yaml", "--storage", str(made / "runs"), "--no-publish", "--json")
    said = oneshot("report", *arguments, cwd=tmp_path)
    (found,) = (one for one in json.loads(said.out) if one["name"] == "added")
    assert found["is_amended"]
    assert found["effect"] is not None


# `plan`


def planned(folder: Path, text: str) -> str:
    (folder / "sweep.yaml").write_text(text)
    said = oneshot("plan", "sweep.yaml", cwd=folder)
    assert said.code == 0, said.err
    return " ".join(said.out.split())


WANTED = TEXT.replace("    b: {at: start}\n", "    b: {at: start}\n    power: {effect: 0.3}\n")


def test_plan_says_how_many_seeds_a_claim_needs(tmp_path: Path) -> None:
    found = planned(tmp_path, text_in(tmp_path, problems(30), text=WANTED))
    assert "power of the claims, by the rule that will judge" in found
    # the one primary claim is corrected alone, the three others among themselves
    assert "6 seeds x 60 problems (seed SD 2 points, discordance 30%): detects " in found
    assert "30 points at 80%: 3 seeds [base]" in found
    assert "power among 3 verdicts" in found


def test_plan_of_a_sweep_with_results_uses_their_spread(tmp_path: Path) -> None:
    text = text_in(tmp_path, problems(30), text=WANTED)
    put_on_record(tmp_path, text)
    make_store(tmp_path, text)
    found = planned(tmp_path, text)
    # of the two suites of the group no spread is measured; of the one suite it is
    assert "(seed SD 2 points, discordance 30%)" in found
    assert "(measured seed SD " in found


# MLflow


GROUPS = {
    "suite": GroupConfig(suites=["mine", "arithmetic-val"]),
    "problem": GroupConfig(suites=["mine", "arithmetic-val"], weight="problem"),
}


def trial(made: Path) -> Trial:
    return make_plan(load(made / "sweep.yaml")).grid[0]


def rows_of(step: int) -> list[Row]:
    metrics = {
        "eval/mine/pass_at_1": 0.2,
        "eval/arithmetic-val/pass_at_1": 0.6,
        "eval/mine/gain": 0.1,
        "loss/total": 1.0,
    }
    return [Row(step=step, time_ms=1, metrics=metrics), Row(step=step + 1, time_ms=2, metrics={"loss/total": 1.0})]


def test_mlflow_gets_the_mean_of_each_group(made: Path) -> None:
    first, second = with_groups(rows_of(4), trial(made), GROUPS)
    (num,) = (suite.count for suite in load_suites(trial(made).config) if suite.name == "arithmetic-val")
    assert num
    assert first.metrics["eval/suite/pass_at_1"] == pytest.approx(0.4)
    assert first.metrics["eval/problem/pass_at_1"] == pytest.approx((30 * 0.2 + num * 0.6) / (30 + num))
    assert "eval/suite/gain" not in first.metrics  # one suite has none
    assert second.metrics == {"loss/total": 1.0}
    assert with_groups(rows_of(4), trial(made), {}) == rows_of(4)


def test_mlflow_gets_the_last_numbers_of_each_group(made: Path) -> None:
    rows = with_groups(rows_of(4), trial(made), GROUPS)
    assert end_metrics(trial(made), rows, GROUPS)["last/suite"] == pytest.approx(0.4)
    assert not any(name.endswith("/suite") for name in end_metrics(trial(made), rows))
    assert end_metrics(trial(made), with_groups(rows_of(2), trial(made), GROUPS), GROUPS) == {}


def test_mlflow_gets_the_gain_of_each_group(made: Path) -> None:
    gathered = from_store(made)
    found = sweep_metrics([run.state for run in gathered.runs], cell_lines(gathered.runs), num_cells=6)
    assert len([name for name in found if name.startswith("gains/both/")]) == 6, list(found)


def test_mlflow_gets_no_gains_of_hundreds_of_cells(made: Path) -> None:
    lines = cell_lines(from_store(made).runs)
    assert any(name.startswith("gains/") for name in sweep_metrics([], lines, num_cells=200))
    assert not any(name.startswith("gains/") for name in sweep_metrics([], lines, num_cells=201))


def test_a_group_at_a_step_that_lacks_one_suite_has_no_value_there(made: Path) -> None:
    run = from_store(made).runs[0]
    assert set(run.measured["@both"]) == {0, 2, 4}
