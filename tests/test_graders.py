"""Two graders that disagree: what is recorded, rewarded, printed and shown of them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from told import gathered, run
from verbs import oneshot

from oneshot.children import command
from oneshot.config.claims import PublishedConfig
from oneshot.config.evaluation import EvalConfig
from oneshot.config.reward import RewardConfig
from oneshot.config.trial import TrialConfig
from oneshot.report.graders import graders_table
from oneshot.report.published import published_tables
from oneshot.report.stats import Interval
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.grading import Grader
from oneshot.tasks.rewards import judge, rewards
from oneshot.training.evaluate import summary
from oneshot.training.metrics import EvaluatedCompletion

MakeConfig = Callable[..., TrialConfig]

LINES = [
    {"completion": r"\boxed{\frac{1}{3}}", "answer": r"\frac13"},  # both: right
    {"completion": r"\boxed{0.33334}", "answer": r"\frac13"},  # only within 1e-4
    {"completion": r"\boxed{0.4}", "answer": r"\frac13"},  # both: wrong
]


def test_both_graders_are_printed_with_the_lines_on_which_they_differ(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    lines = oneshot("grade", "c.jsonl", "--both", cwd=tmp_path).out.splitlines()
    assert lines == [
        "strict   0.3333  (1 of 3)",
        "lenient  0.3333  (1 of 3)",
        "released 0.6667  (2 of 3)",
        "disagree 0.3333  (1 of 3)",
        r"line 2: '0.33334', label '\\frac13': strict False, released True",
    ]
    rows = [json.loads(line) for line in oneshot("grade", "c.jsonl", "--both", "--json", cwd=tmp_path).out.splitlines()]
    assert [(row["strict"], row["released"]) for row in rows] == [(True, True), (False, True), (False, False)]


def test_the_grader_that_rewards_is_a_setting(grader: Grader) -> None:
    def paid(name: str) -> list[bool | None]:
        config = RewardConfig.model_validate({"grader": name})
        graded = [judge(line["completion"], line["answer"], config, grader) for line in LINES]
        return rewards(graded, config, grader, keys=[(0, 0, row) for row in range(3)]).values

    assert paid("strict") == [True, False, False]
    assert paid("released") == [True, True, False]


def evaluated(strict: bool, released: bool) -> EvaluatedCompletion:
    fields: dict[str, Any] = dict.fromkeys(("problem_id", "category", "level", "problem", "answer", "reason"), "")
    return EvaluatedCompletion(
        **fields, completion="", strict=strict, lenient=strict, released=released, num_tokens=1, truncated=False
    )


def test_an_evaluation_records_the_released_accuracy_and_the_disagreement() -> None:
    records = [evaluated(True, True), evaluated(False, True), evaluated(False, False), evaluated(True, False)]
    metrics = summary(records, samples=1, graders=("strict", "released"))
    assert (metrics["pass_at_1"], metrics["pass_at_1_released"], metrics["graders_disagree"]) == (0.5, 0.5, 0.5)
    assert "graders_disagree" not in summary(records, samples=1, graders=("strict",))


def test_only_graders_other_than_the_default_change_a_suites_digest(tiny_config: MakeConfig) -> None:
    def digest(**settings: Any) -> str:
        return load_suites(tiny_config(**settings))[0].digest

    assert digest() == digest(eval={"graders": ["released", "strict"]})
    assert digest() != digest(eval={"graders": ["strict"]})
    with pytest.raises(ValueError, match="strict is missing"):
        EvalConfig(graders=["released"])


def test_a_report_shows_how_often_the_graders_disagree() -> None:
    last = {"pass_at_1": 0.5, "pass_at_1_released": 0.55, "graders_disagree": 0.05}
    measured = {"arithmetic": {0: {"pass_at_1": 0.2}, 8: last}}
    runs = [run({"arm": "outcome"}, seed, measured=measured) for seed in (0, 1)]
    table = graders_table(gathered(runs))
    assert table is not None
    ((cell, suite, *values),) = table.rows
    assert (cell, suite) == ("outcome", "arithmetic")
    assert [value.mean for value in values if isinstance(value, Interval)] == pytest.approx([0.5, 0.55, 0.05])
    assert graders_table(gathered([run({"arm": "outcome"})])) is None


def test_a_published_number_is_compared_by_the_grader_that_made_it() -> None:
    last = {"pass_at_1": 0.5, "pass_at_1_released": 0.55}
    runs = [run({"arm": "outcome"}, measured={"arithmetic": {8: last}})]
    row = {"cell": {"arm": "outcome"}, "values": [0.6]}
    fields = {"by": "Someone", "how": "one seed", "columns": ["arithmetic"], "rows": [row]}
    for grader, ours in (("released", 0.55), ("strict", 0.5)):
        published = PublishedConfig.model_validate({**fields, "grader": grader})
        (table,) = published_tables(gathered(runs, published=(published,)))
        assert isinstance(table.rows[0][4], Interval)
        assert (table.rows[0][4].mean, table.rows[0][6]) == (pytest.approx(ours), grader)


def test_plan_and_fetch_name_labels_that_nothing_satisfies(tmp_path: Path) -> None:
    rows = [{"problem": "What is 2+3?", "answer": "5"}, {"problem": "What is left out?", "answer": ""}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "s.yaml").write_text(
        "version: 1\nname: own\nquestion: is it named?\n"
        "trial:\n  model.path: tiny:qwen2\n  examples: ['own.jsonl']\n"
        "  rollout: {num_groups: 2, group_size: 2, max_tokens: 24}\n"
        "  eval.suites: {own: {source: own.jsonl}}\nseeds: [0]\n"
    )
    planned = oneshot("plan", "s.yaml", cwd=tmp_path)
    assert planned.code == 0, planned.err
    said = " ".join((planned.out + planned.err).split())
    assert "own.jsonl:1: the label '' is empty: no answer is right for it" in said


@pytest.mark.parametrize("module", ["oneshot.training.worker", "oneshot.tasks.grading_worker"])
def test_children_never_import_files_of_the_working_directory(tmp_path: Path, module: str) -> None:
    for name in ("random", "token", "json", "select"):
        (tmp_path / f"{name}.py").write_text(f"open('marker', 'a').write({name!r})\n")
    # without arguments the module fails after its imports, which are what is tested
    done = subprocess.run(command(module), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "IndexError" in done.stderr or "ValueError" in done.stderr, done.stderr
    assert not (tmp_path / "marker").exists()
