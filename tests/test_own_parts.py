"""Templates as texts, and sets, suites, graders and ranking rules by functions: what they do and how they fail."""

import json
import os
from pathlib import Path

import pytest
from verbs import oneshot as verb

import oneshot
from oneshot.config.evaluation import EvalConfig
from oneshot.config.file import load
from oneshot.errors import DataError
from oneshot.plan.rank_rules import rank
from oneshot.sweep.cluster.package import bundle
from oneshot.tasks import foreign, sets
from oneshot.tasks.examples import identify, load_examples
from oneshot.tasks.grading import Grader

MODULE = """
import os

TEXT = "Q: {problem}\\nA:"
NO_PLACE = "Q:"

def rows():
    return [{"problem": f"{n}+1=?", "answer": n + 1, "solution": f"It is {n + 1}."} for n in range(4)]

def unanswered():
    return [{"problem": "1+1=?", "answer": 2}, {"problem": "1+2=?"}]

def none():
    return []

def text():
    return "rows"

def fails():
    raise KeyError("no data")

def ends():
    os._exit(3)

def prints():
    print("not a row")
    return rows()

def recent(accuracies):
    return accuracies[-1]

def not_a_number(accuracies):
    return "high"

def exact(completion, answer):
    return completion.endswith(answer)

def unsure(completion, answer):
    return None

def number(completion, answer):
    return 1.0
"""
SWEEP = """\
version: 1
name: own
question: Does it plan?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  examples: ["arithmetic:47+38"]
  rollout: {num_groups: 4, group_size: 4, max_tokens: 56}
  train.num_steps: 1
seeds: [0]
"""


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of trusted code with one module."""
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "s.yaml").write_text(SWEEP)
    monkeypatch.setenv(foreign.FOLDER, str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    foreign.forget()
    return tmp_path


def keys(*settings: str) -> list[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    said = verb("plan", "s.yaml", "--json", "--trust-code", *options, cwd=Path.cwd())
    assert said.code == 0, said.err
    return [trial["key"] for trial in json.loads(said.out)["trials"]]


def error(*settings: str) -> str:
    options = [part for setting in settings for part in ("--set", setting)]
    said = verb("plan", "s.yaml", "--trust-code", *options, cwd=Path.cwd())
    assert said.code == 2, said.err
    assert len(said.err.splitlines()) == 1, said.err
    return said.err


# templates


def test_a_template_by_name_has_the_key_of_its_text() -> None:
    by_text = keys('prompt.template="Q: {problem}\\nA:"')
    assert keys("prompt.template=own_parts:TEXT") == by_text
    assert by_text != keys()


def test_a_suite_and_evaluations_may_have_their_own_texts() -> None:
    steps = list(
        oneshot.train(
            {
                "model": {"path": "tiny:qwen2"},
                "prompt": {"template": "own_parts:TEXT", "eval_template": "{problem} =", "train_suffix": ""},
                "examples": ["own_parts:rows:1"],
                "rollout": {"num_groups": 2, "group_size": 2, "max_tokens": 8},
                "train": {"num_steps": 1},
                "eval": {
                    "graders": ["strict", "own_parts:exact"],
                    "suites": {"rows": {"source": "own_parts:rows", "template": "own_parts:TEXT"}},
                },
            }
        )
    )
    (measured,) = steps[-1].evaluations
    assert measured.metrics["eval/rows/pass_at_1_exact"] >= 0
    assert [record.problem for record in measured.records] == ["0+1=?", "1+1=?", "2+1=?", "3+1=?"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("plian", "'plian' is no template; did you mean 'plain'?"),
        ('"Q: problem"', "'Q: problem' has no {problem}, where the problem goes, and names no template"),
        ('"plain "', "and names no template; did you mean 'plain'?"),
        ("own_parts:NO_PLACE", "own_parts:NO_PLACE: is 'Q:', not a text with {problem}"),
        ("own_parts:NOTHING", "AttributeError: module 'own_parts' has no attribute 'NOTHING'"),
    ],
)
def test_what_is_no_template_is_one_clear_error(template: str, message: str) -> None:
    assert message in error(f"prompt.template={template}")


def test_a_text_of_several_lines_names_no_cell() -> None:
    Path("s.yaml").write_text(SWEEP + 'axes: {prompt.template: ["{problem} =", "Q: {problem}\\nA:"]}\n')
    assert "axes.prompt.template.1: a text of several lines cannot name its cell; write named cells" in error()


# sets and suites


def test_a_sets_rows_are_what_its_function_returns() -> None:
    problems = load_examples(["own_parts:rows"])
    assert [(each.id, each.prompt, each.answer) for each in problems[:2]] == [
        ("own_parts:rows:0", "0+1=?", "1"),
        ("own_parts:rows:1", "1+1=?", "2"),
    ]
    assert load_examples(["own_parts:rows:1"]) == problems[1:2]
    assert load_examples(["own_parts:prints"])[3].answer == "4"


def test_keys_and_suites_follow_the_contents_and_not_the_source(code: Path) -> None:
    settings = ('examples=["own_parts:rows"]', "eval.suites.mine.source=own_parts:rows")
    before, prompts = keys(*settings), identify(["own_parts:rows:1"]).digests
    (code / "own_parts.py").write_text(MODULE.replace("for n in range(4)", "for n in (0, 1, 2, 3)"))
    foreign.forget()
    assert keys(*settings) == before
    (code / "own_parts.py").write_text(MODULE.replace('"answer": n + 1', '"answer": n + 2'))
    foreign.forget()
    assert keys(*settings) != before
    assert identify(["own_parts:rows:1"]).digests != prompts


def test_a_recorded_set_needs_no_code() -> None:
    recorded = sets.unshipped(["own_parts:rows"])
    try:
        sets.remember({"gone_parts:rows": recorded["own_parts:rows"]})
        assert identify(["gone_parts:rows:1"]).digests == identify(["own_parts:rows:1"]).digests
    finally:
        sets.remember({})


def test_sft_learns_a_column_of_a_set() -> None:
    assert len(keys('examples=["own_parts:rows"]', "train.method=sft", "train.batch_size=2")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_parts:unanswered", "own_parts:unanswered: row 1: it has no `answer`"),
        ("own_parts:none", "own_parts:none: returned no rows"),
        ("own_parts:text", "own_parts:text: returned str, not a list of rows"),
        ("own_parts:fails", "own_parts:fails: KeyError: 'no data'; correct the function"),
        ("own_parts:ends", "own_parts:ends: its process ended with status 3"),
        ("own_parts:missing", "AttributeError: module 'own_parts' has no attribute 'missing'"),
        ("no_parts:rows", "no_parts:rows: no module named 'no_parts'; install its package, or use --trust-code"),
        ("os:abort", "os:abort: 'os' is part of Python; name a function of a package or module of your own"),
        ("own_parts:rows:9", "own_parts:rows:9: no row 9; own_parts:rows has rows 0 to 3"),
    ],
)
def test_what_is_no_set_is_one_clear_error(name: str, message: str) -> None:
    said = error(f'examples=["{name}"]')
    assert message in said and "examples" in said
    if not name.endswith("9"):
        assert message in error(f"eval.suites.mine.source={name}")


def test_a_set_that_hangs_is_stopped(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "own_parts.py").write_text("import time\n\ndef rows():\n    time.sleep(60)\n")
    monkeypatch.setattr(foreign, "DEADLINE_S", 1.0)
    assert "own_parts:rows: it did not end within 1 s; make it faster" in error('examples=["own_parts:rows"]')


# graders


def test_a_grader_judges_in_its_process() -> None:
    with Grader(timeout_s=20) as grader:
        grade = grader.grade("It is 85", "85", graders=("strict", "own_parts:exact", "own_parts:unsure"))
        assert (grade.strict, dict(grade.others)) == (False, {"own_parts:exact": True, "own_parts:unsure": None})
        grade = grader.grade("It is 85", "85", graders=("strict", "own_parts:number"))
        assert grade.others == {"own_parts:number": None}
        assert grade.reason == "TypeError: own_parts:number returned 1.0, not True, False or None"


def test_the_graders_source_is_part_of_the_key(code: Path) -> None:
    before = keys("reward.grader=own_parts:exact")
    assert before != keys()
    (code / "own_parts.py").write_text(MODULE.replace("completion.endswith(answer)", "answer in completion"))
    foreign.forget()
    assert keys("reward.grader=own_parts:exact") != before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reward.grader=stirct", "'stirct' is no grader; did you mean 'strict'?"),
        ("reward.grader=no_parts:exact", "no_parts:exact: no module named 'no_parts'"),
        ("eval.graders=[strict, relesed]", "'relesed' is no grader; did you mean 'released'?"),
        ("eval.graders=[strict, 'a:lenient']", "a:lenient: pass_at_1_lenient is another measure, too"),
        ("eval.graders=[strict, 'a:same', 'b:same']", "b:same: pass_at_1_same is another measure, too"),
        ("eval.graders=['own_parts:exact']", "strict is missing"),
    ],
)
def test_what_is_no_grader_is_one_clear_error(setting: str, message: str) -> None:
    assert message in error(setting)


def test_the_order_of_graders_has_no_meaning() -> None:
    graders = ["own_parts:exact", "released", "strict"]
    assert EvalConfig(graders=graders).graders == ["strict", "released", "own_parts:exact"]


def test_claims_may_be_about_a_graders_accuracy() -> None:
    claim = (
        "claims: [{name: c, metric: eval/held/pass_at_1_exact, a: {at: last}, b: {at: start}, expect: {less_by: 0}}]\n"
    )
    Path("s.yaml").write_text(SWEEP.replace("seeds: [0]", "seeds: [0, 1, 2]") + claim)
    suite = "eval.suites.held={source: arithmetic, num_problems: 5}"
    assert "no trial has the metric eval/held/pass_at_1_exact" in error(suite)
    assert len(keys(suite, "eval.graders=[strict, 'own_parts:exact']")) == 3


# ranking rules


def test_a_rule_ranks_by_one_examples_history() -> None:
    history = {"dsr_sub:0": [1.0, 0.0], "dsr_sub:1": [0.0, 0.5], "dsr_sub:2": [0.5, 1.0]}
    assert [each.example for each in rank([history], by="own_parts:recent")] == ["dsr_sub:2", "dsr_sub:1", "dsr_sub:0"]
    with pytest.raises(DataError, match="own_parts:not_a_number: returned 'high' for dsr_sub:0, not a finite number"):
        rank([history], by="own_parts:not_a_number")


def test_the_verb_ranks_by_a_function(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "h.json").write_text('{"0": [1.0, 0.0], "1": [0.0, 0.5]}')
    monkeypatch.delenv(foreign.FOLDER)
    options = ("rank", "--history", "h.json", "--by", "own_parts:recent", "--trust-code", "--json")
    said = verb(*options, cwd=code)
    assert said.code == 0, said.err
    assert [row["example"] for row in json.loads(said.out)] == ["dsr_sub:1", "dsr_sub:0"]
    said = verb("rank", "--history", "h.json", "--by", "recnt", cwd=code)
    assert said.code == 2 and said.err.startswith("oneshot: --by recnt: 'recnt' is no ranking rule"), said.err


def test_cells_are_chosen_by_a_rule(code: Path) -> None:
    (code / "h.json").write_text('{"0": [1.0, 0.0], "1": [0.0, 0.5], "2": [0.5, 0.1]}')
    text = SWEEP.replace('  examples: ["arithmetic:47+38"]\n', "")
    wanted = "{history: h.json, set: 'own_parts:rows', by: 'own_parts:recent', top: 1}"
    Path("s.yaml").write_text(text + f"axes: {{example: {{ranked: {{from_rank: {wanted}}}}}}}\n")
    by_rank = keys()
    said = verb("plan", "s.yaml", "--trust-code", cwd=code)
    assert "own_parts:recent of" in said.err and "whose choice of examples is part of the keys" in said.err
    Path("s.yaml").write_text(SWEEP.replace("arithmetic:47+38", "own_parts:rows:1"))
    assert keys() == by_rank


# where code runs


def test_a_job_has_the_code_of_a_row(code: Path) -> None:
    Path("s.yaml").write_text(SWEEP.replace("arithmetic:47+38", "own_parts:rows:1"))
    assert bundle(Path("s.yaml"), load(Path("s.yaml"))).code == (code / "own_parts.py",)


def test_foreign_code_runs_in_other_processes(code: Path) -> None:
    (code / "own_parts.py").write_text(MODULE + "\nopen('where', 'w').write(str(os.getpid()))\n")
    foreign.forget()
    keys('examples=["own_parts:rows"]', "prompt.template=own_parts:TEXT", "reward.grader=own_parts:exact")
    assert Path("where").read_text() != str(os.getpid())
