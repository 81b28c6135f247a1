"""`oneshot report` and `oneshot compare`, as they are called."""

import io
import json
import re
from pathlib import Path

import pytest
from builders import located, sweep_run
from mlflow import MlflowClient
from rich.console import Console
from synthetic import SMALL, make_store
from verbs import oneshot

from oneshot.cli.verdict_tables import verdict_table
from oneshot.plan.frozen import Planned, freeze
from oneshot.plan.loader import begun_sweep
from oneshot.report.page import make_report
from oneshot.report.runs import gather
from oneshot.store.store import Store
from oneshot.sweep.tracking.tracker import Tracker

pytest_plugins = ["labs"]

CLAIM = """\
claims:
  - name: one-shot beats base
    metric: eval/arithmetic/pass_at_1
    a: {arm: outcome, at: last}
    b: {at: start}
    for_each: [model]
    expect: {greater_by: 0.0}
"""
KEYS = {"name", "verdict", "effect", "low", "high", "p_value", "num_seeds", "num_problems", "test"}
MORE = """\
  - name: added later
    metric: eval/arithmetic/pass_at_1
    a: {arm: outcome}
    b: {arm: format}
    expect: {greater_by: 0.0}
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the sweep `small` has run."""
    folder = tmp_path_factory.mktemp("begun")
    sweep, plan, store = make_store(folder, SMALL + CLAIM)
    freeze(store.sweep(plan.name), Planned.of(sweep.config, plan))
    return folder


def test_a_report_ends_with_the_verdict_and_where_the_page_is(begun: Path) -> None:
    said = oneshot("report", "small", "--no-publish", cwd=begun)
    assert said.code == 0, said.err
    assert re.search(r"one-shot beats base \(model tiny-qwen2\) +supported +\+\d\d\.\d +\[\+", said.out)
    page = Path(said.out.splitlines()[-1].removeprefix("report: "))
    assert page.name == "report.html" and "one-shot beats base" in page.read_text()
    there = {file.name for file in page.parent.iterdir()}
    assert {"report.json", "claims.svg", "curves.svg", "gains.svg", "training.svg"} <= there
    facts = json.loads((page.parent / "report.json").read_text())
    assert [one["verdict"] for one in facts["verdicts"]] == ["supported", "supported"]
    assert {"saturation", "strictness", "accuracy"} <= {table["name"] for table in facts["tables"]}


def test_a_narrow_terminal_shows_claim_and_verdict_whole(begun: Path) -> None:
    out = io.StringIO()
    made = make_report(gather(begun_sweep(Store(str(begun / "runs")), "small")))
    Console(file=out, width=60).print(verdict_table(made.judged))
    assert "…" not in out.getvalue()
    lines = out.getvalue().splitlines()
    assert "supported" in lines[1] and lines[1].startswith("one-shot")
    assert lines[-1].strip() == "a wider terminal also shows: p, problems"


def test_piped_a_table_is_neither_wrapped_nor_cut(begun: Path) -> None:
    said = oneshot("report", "small", "--no-publish", cwd=begun)
    header = re.split("  +", said.out.splitlines()[0])
    assert header == ["claim", "verdict", "effect", "95% interval", "p", "p, Holm", "seeds", "problems"]
    long = "a" * 300
    (begun / "s.yaml").write_text((SMALL + CLAIM).replace("tiny-qwen2", long))
    assert long in oneshot("plan", "s.yaml", cwd=begun).out


def test_the_status_of_a_finished_sweep_shows_its_result(tmp_path: Path) -> None:
    make_store(tmp_path, SMALL + CLAIM)
    said = oneshot("status", "small", cwd=tmp_path)
    assert re.search(r"tiny-qwen2 +outcome +arithmetic +3/3 +0\.\d+ +0\.\d+ +\+0\.\d+", said.out), said.out
    assert said.out.endswith("to judge its claims, use `oneshot report small`\n")
    assert "attempts" not in said.out  # the table of trials that have not finished
    judged = oneshot("report", "small", "--no-publish", cwd=tmp_path).out.splitlines()
    lines = oneshot("status", "small", cwd=tmp_path).out.splitlines()
    assert lines[1:4] == judged[:3]
    assert lines[-1] == judged[-1]


def test_the_status_of_a_sweep_that_runs_shows_no_result(tmp_path: Path) -> None:
    make_store(tmp_path, SMALL + CLAIM, missing=["tiny-qwen2/format seed 0"])
    oneshot("report", "small", "--no-publish", cwd=tmp_path)
    assert "supported" not in oneshot("status", "small", cwd=tmp_path).out


def test_as_json_it_is_a_list_of_verdicts_and_nothing_else(begun: Path) -> None:
    said = oneshot("report", "small", "--json", "--no-publish", cwd=begun)
    found = json.loads(said.out)
    assert [one["cells"] for one in found] == [{"model": "tiny-qwen2"}, {"model": "tiny-llama"}]
    assert all(one.keys() >= KEYS for one in found)
    assert "report.html" in said.err


@pytest.mark.slow
def test_a_report_is_the_same_each_time_but_for_its_hour(begun: Path) -> None:
    oneshot("report", "small", "--no-publish", "--out", "one", cwd=begun)
    oneshot("report", "sweep.yaml", "--no-publish", "--out", "two", cwd=begun)
    names = {file.name for file in (begun / "one").iterdir()}
    assert names == {file.name for file in (begun / "two").iterdir()}
    for name in names:
        one, two = (re.sub(r"Made [\d\-: ]+UTC", "", (begun / each / name).read_text()) for each in ("one", "two"))
        assert one == two, name


def test_a_claim_that_is_added_to_the_file_is_judged_and_marked(begun: Path) -> None:
    (begun / "edited.yaml").write_text(SMALL + CLAIM + MORE)
    said = oneshot("report", "edited.yaml", "--json", "--no-publish", cwd=begun)
    *old, added = json.loads(said.out)
    assert [one["is_amended"] for one in old] == [False, False]
    assert added["is_amended"] and added["notes"][0] == "amended: added after the sweep began"


def test_a_claim_that_is_added_wrongly_is_one_line_with_its_mend(begun: Path) -> None:
    (begun / "wrong.yaml").write_text(SMALL + CLAIM + MORE.replace("arm: format", "arm: formt"))
    said = oneshot("report", "wrong.yaml", "--no-publish", cwd=begun)
    assert (said.code, said.out) == (2, "")
    assert "'formt'" in said.err and "did you mean 'format'?" in said.err


def test_frozen_claims_that_name_an_unknown_cell_are_one_line(tmp_path: Path) -> None:
    sweep, plan, store = make_store(tmp_path, SMALL + CLAIM)
    freeze(store.sweep(plan.name), Planned.of(sweep.config, plan))
    record = tmp_path / "runs/sweeps/small/claims.json"
    record.write_text(record.read_text().replace('"outcome"', '"outcom"'))
    for arguments in (["report", "small", "--no-publish"], ["compare", "small", "small"]):
        said = oneshot(*arguments, cwd=tmp_path)
        assert (said.code, said.out) == (2, "")
        assert "claims.json: claims.0.a.arm" in said.err and "did you mean 'outcome'?" in said.err
        assert len(said.err.splitlines()) == 1


def test_two_seeds_are_inconclusive_which_is_a_verdict(tmp_path: Path) -> None:
    make_store(tmp_path, (SMALL + CLAIM).replace("[0, 1, 2]", "[0, 1]"))
    said = oneshot("report", "small", "--json", "--no-publish", cwd=tmp_path)
    assert said.code == 0
    for one in json.loads(said.out):
        assert (one["verdict"], one["low"], one["high"], one["num_seeds"]) == ("inconclusive", None, None, 2)
        assert one["effect"] > 0.2


def test_a_report_of_many_cells_is_summarised(tmp_path: Path) -> None:
    head, _, _ = SMALL.partition("axes:")
    examples = "".join(f'    e{n}: {{set: {{examples: ["arithmetic:{n + 10}+38"]}}}}\n' for n in range(105))
    arms = "  arm: {outcome: {}, format: {set: {reward.kind: format}}}\n"
    text = f"{head}axes:\n  example:\n{examples}{arms}seeds: [0]\n"
    make_store(tmp_path, text.replace("every_steps: 4", "every_steps: 12"))
    said = oneshot("report", "small", "--no-publish", cwd=tmp_path)
    assert said.code == 0, said.err
    folder = Path(said.out.splitlines()[-1].removeprefix("report: ")).parent
    page, data = (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())
    # 12 of 105 panels, each with both arms; 60 of 210 bars; 200 of 210 rows
    assert "186 more cells are in the table" in (folder / "curves.svg").read_text()
    assert "150 more cells are in the table" in (folder / "gains.svg").read_text()
    assert "10 more rows are in report.json" in page
    tables = {table["name"]: table for table in data["tables"]}
    assert len(tables["accuracy"]["rows"]) == 210
    by_arm = {row[1]: row for row in tables["axes"]["rows"] if row[0] == "arm"}
    assert by_arm["outcome"][2] == "105"
    assert by_arm["outcome"][4]["mean"] > by_arm["format"][4]["mean"] + 0.3  # as `lift` says
    assert len(tables["axes"]["rows"]) == 107
    assert len(list(folder.glob("transfer-*.svg"))) == 5  # 24 examples by both arms, four times, and 9


def test_while_a_sweep_runs_the_report_says_what_is_missing(tmp_path: Path) -> None:
    missing = [f"tiny-qwen2/outcome seed {seed}" for seed in (0, 1, 2)]
    make_store(tmp_path, SMALL + CLAIM, missing=missing, failed=["tiny-llama/format seed 1"])
    said = oneshot("report", "small", "--no-publish", cwd=tmp_path)
    assert said.code == 1
    assert "because no seed has all the runs that they need: one-shot beats base" in said.err
    assert "left out: seed 0: tiny-qwen2/outcome seed 0 is missing" in said.out
    page = (tmp_path / "runs/sweeps/small/report/report.html").read_text()
    assert "8 of 12 trials finished, 1 failed, 3 missing" in page
    assert all(f"<td>{label}</td>" in page for label in [*missing, "tiny-llama/format seed 1"])


def test_a_report_before_anything_has_finished_is_a_page_too(tmp_path: Path) -> None:
    labels = [
        f"{model}/{arm} seed {s}"
        for model in ("tiny-qwen2", "tiny-llama")
        for arm in ("outcome", "format")
        for s in (0, 1, 2)
    ]
    make_store(tmp_path, SMALL + CLAIM, missing=labels)
    said = oneshot("report", "small", "--no-publish", cwd=tmp_path)
    assert said.code == 1
    assert "0 of 12 trials finished, 12 missing" in (tmp_path / "runs/sweeps/small/report/report.html").read_text()


def test_a_sweep_without_claims_is_described_and_not_judged(tmp_path: Path) -> None:
    make_store(tmp_path, SMALL)
    said = oneshot("report", "small", "--no-publish", cwd=tmp_path)
    assert said.code == 0
    assert said.out.startswith("the sweep has no claims, so there are no verdicts")


def test_what_has_not_begun_or_is_not_there_is_one_line(begun: Path, tmp_path: Path) -> None:
    for name in ("nothing", "nothing.yaml", "nothing.oneshot.zip"):
        said = oneshot("report", name, "--no-publish", cwd=begun)
        assert said.code == 2 and said.err.startswith("oneshot: nothing"), said.err
        assert len(said.err.splitlines()) == 1
    (tmp_path / "text.zip").write_text("no zip")
    said = oneshot("report", "text.zip", "--no-publish", cwd=tmp_path)
    assert said.code == 2 and len(said.err.splitlines()) == 1


def test_a_bundle_is_judged_again_to_the_same_list(begun: Path, tmp_path: Path) -> None:
    made = oneshot("report", "small", "--bundle", "--out", str(tmp_path), cwd=begun)
    assert made.code == 0 and "small.oneshot.zip" in made.out
    ours = oneshot("report", "small", "--json", "--no-publish", cwd=begun)
    theirs = oneshot("report", "small.oneshot.zip", "--json", cwd=tmp_path)
    assert (theirs.code, theirs.out) == (0, ours.out)
    assert (tmp_path / "small-report" / "report.html").is_file()


def test_a_sweep_beside_itself_is_the_same(begun: Path) -> None:
    said = oneshot("compare", "small", "sweep.yaml", cwd=begun)
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "the same trainings by key"
    lines = json.loads(oneshot("compare", "small", "sweep.yaml", "--json", cwd=begun).out)["lines"]
    assert [line["difference"]["effect"] for line in lines] == [0.0] * 4


def test_the_verdict_is_shown_in_mlflow(begun: Path, database: Path) -> None:
    (begun / "runs" / "mlflow.db").write_bytes(database.read_bytes())
    said = oneshot("report", "small", cwd=begun)
    assert "but not in MLflow (the sweep has no run there)" in said.err
    from oneshot.config.file import load
    from oneshot.plan.plan import make_plan

    sweep, store = load(begun / "sweep.yaml"), Store(str(begun / "runs"))
    uri, artifacts = f"sqlite:///{begun}/runs/mlflow.db", (begun / "runs" / "mlartifacts").as_uri()
    plan = make_plan(sweep)
    tracker = Tracker(plan, store, located(uri, experiment="small", artifacts=artifacts))
    tracker.open(question=sweep.config.question, sweep_yaml=sweep.source.text)
    said = oneshot("report", "small", cwd=begun)
    assert said.err == ""
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.phase = 'sweep'")
    note = parent.data.tags["mlflow.note.content"]
    assert "| one-shot beats base (model tiny-qwen2) | **supported** |" in note
    (claim, _) = json.loads(oneshot("report", "small", "--json", "--no-publish", cwd=begun).out)
    shown = [parent.data.metrics[f"claims/{claim['name']} tiny-qwen2/{name}"] for name in ("effect", "low", "high")]
    assert shown == [claim["effect"], claim["low"], claim["high"]]
    names = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/report.html", "report/report.json", "report/claims.svg"} <= names


def test_a_claims_name_is_text_in_the_description(tmp_path: Path) -> None:
    hostile = CLAIM.replace("one-shot beats base", "a|b <img src=x> [x](javascript:1)")
    sweep, plan, store = make_store(tmp_path, SMALL + hostile)
    said = make_report(gather(sweep_run(sweep, plan, store))).description
    (line, _) = (line for line in said.splitlines() if "img" in line)
    assert r"a\|b \<img src=x\> \[x\](javascript:1)" in line


def test_plan_says_what_the_claims_could_show(begun: Path) -> None:
    said = oneshot("plan", "sweep.yaml", cwd=begun)
    assert re.search(r"3 seeds x 60 problems .*: detects \d+\.\d points with 80% power", said.out)
    claims = json.loads(oneshot("plan", "sweep.yaml", "--json", cwd=begun).out)["claims"]
    assert [one["num_problems"] for one in claims] == [60, 60]
    assert all(0 < one["detectable"] < 1 for one in claims)
