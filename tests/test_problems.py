"""Files of problems with the released columns: what is read, and what is said of files that are not so."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot.config.evaluation import SuiteConfig
from oneshot.config.trial import TRAIN_SUFFIX, TrialConfig
from oneshot.errors import DataError
from oneshot.tasks.benchmarks import load_suite
from oneshot.tasks.columns import ANSWER, CATEGORY, CHOICES, CONTEXT, QUESTION, RowError, read_row
from oneshot.tasks.examples import load_row
from oneshot.tasks.labels import row_warnings
from oneshot.tasks.problems import Problem, load_file, read_completions
from oneshot.tasks.prompts import with_suffix


def test_a_jsonl_file_with_text_and_number_answers(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [
        {"problem": "p", "answer": "a", "subject": "Algebra"},
        {"problem": "q", "answer": 27.0},
        {"problem": "r", "answer": 0.5},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    problems = load_file(str(path))
    assert [problem.answer for problem in problems] == ["a", "27", "0.5"]
    assert [problem.category for problem in problems] == ["Algebra", "", ""]
    assert problems[1].id == "set.jsonl:1"


def test_a_line_separator_inside_a_problem_is_not_the_end_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps({"problem": "a\u2028b", "answer": "1"}, ensure_ascii=False) + "\n")
    assert [problem.prompt for problem in load_file(str(path))] == ["a\u2028b"]


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"set\.jsonl:1: not UTF-8 text; save the file as UTF-8"):
        load_file(str(tmp_path / "set.jsonl"))


def write(folder: Path, *rows: str) -> str:
    """The path of a .jsonl file with these rows, which is another file each time."""
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(f"{row}\n" for row in rows))
    return str(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"problem": "p", "answer": "1"}', encoding="utf-8-sig")
    assert [problem.prompt for problem in load_file(str(tmp_path / "set.jsonl"))] == ["p"]
    (tmp_path / "graded.jsonl").write_text('{"completion": "c", "answer": "1"}', encoding="utf-8-sig")
    assert read_completions(tmp_path / "graded.jsonl") == [("c", "1")]


@pytest.mark.parametrize(
    ("number", "label"),
    [
        ("0.0000001", "0.0000001"),
        ("1e-7", "0.0000001"),
        ("-2.5e-6", "-0.0000025"),
        ("1e22", "1" + "0" * 22),
        ("0", "0"),
    ],
)
def test_a_number_becomes_a_decimal_number(tmp_path: Path, number: str, label: str) -> None:
    (problem,) = load_file(write(tmp_path, f'{{"problem": "p", "answer": {number}}}'))
    assert problem.answer == label


@pytest.mark.parametrize("column", ["body", "context", "passage"])
def test_the_text_before_a_question_is_asked_too(tmp_path: Path, column: str) -> None:
    row = {column: "Two pears and a plum.", "question": "How many fruits?", "answer": "3"}
    (problem,) = load_file(write(tmp_path, json.dumps(row)))
    assert problem.prompt == "Two pears and a plum.\nHow many fruits?"
    (problem,) = load_file(write(tmp_path, json.dumps({**row, column: None})))
    assert problem.prompt == "How many fruits?"


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (["2", "9", "4"], {"answer": 1}),  # a number counts from 0
        (["2", "9", "4"], {"answer": "B"}),
        (["2", "9", "4"], {"answer": "9"}),
        (["2", "9", "4"], {"answerKey": "B"}),
        ({"A": "2", "B": "9", "C": "4", "D": None}, {"answer": "B"}),
        ({"label": ["A", "B", "C"], "text": ["2", "9", "4"]}, {"answerKey": "B", "answer": 1}),
    ],
)
@pytest.mark.parametrize("column", ["choices", "options"])
def test_a_question_with_choices_is_asked_with_them(
    tmp_path: Path, column: str, choices: Any, answer: dict[str, Any]
) -> None:
    (problem,) = load_file(write(tmp_path, json.dumps({"question": "Largest?", column: choices, **answer})))
    assert problem.prompt == "Largest?\n(A) 2\n(B) 9\n(C) 4\nAnswer with the letter of the choice."
    assert problem.answer == "B"


@pytest.mark.parametrize("column", ["category", "subfield", "subject", "type"])
def test_a_category_has_several_names(tmp_path: Path, column: str) -> None:
    (problem,) = load_file(write(tmp_path, json.dumps({"problem": "p", "answer": "1", column: "Algebra"})))
    assert problem.category == "Algebra"


def test_a_cell_that_pandas_left_empty_is_no_category(tmp_path: Path) -> None:
    (problem,) = load_file(write(tmp_path, '{"problem": "p", "answer": "1", "category": NaN, "level": NaN}'))
    assert (problem.category, problem.level) == ("", "")


WHOLE = '{"problem": "p", "answer": "1"}'
NOT_WHOLE = {
    '{"problem": "p", "answer": NaN}': "`answer` has no value (NaN); write it, or remove the row",
    '{"problem": "p", "answer": null}': "`answer` has no value (null)",
    '{"problem": "p", "answer": Infinity}': "`answer` is an infinite number; write it as text",
    '{"problem": "p", "answer": true}': "`answer` is True, neither text nor a number",
    '{"problem": "p"}': "it has no `answer`",
    '{"problem": ["p"], "answer": "1"}': "`problem` is ['p'], not a text",
    '{"problem": "", "answer": "1"}': "it has no problem; its columns are problem, answer",
    '{"problem": "p", "question": "q", "answer": "1"}': "`problem` and `question` differ",
    '{"problem": "p", "answer": "1", "final_answer": "2"}': "`final_answer` and `answer` differ",
    '{"problem": "p", "final_answer": []}': "`final_answer` has 0 answers",
    '{"problem": "p", "final_answer": ["1", "2"]}': "`final_answer` has 2 answers",
    '{"problem": "p", "solution": 4}': "`solution` is 4, not a text",
    '{"question": "q", "answerKey": "A"}': "it has `answerKey` and no `choices`",
    '{"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "E"}':
        "`answerKey` is 'E', which is not one of the choices A, B",
    '{"question": "q", "choices": ["x", "y"], "answer": 2}': "`answer` is 2, which is not one of the choices A, B",
    '{"question": "q", "choices": ["x", "y"], "answer": -1}': "`answer` is -1, which is not one of the choices",
    '{"question": "q", "choices": ["x", "x"], "answer": "x"}': "`answer` is 'x', which is not one of the choices",
    '{"question": "q", "choices": ["x", "y"], "answer": "A", "answerKey": "B"}': "`answerKey` and `answer` differ",
    '{"question": "q", "choices": "A) x B) y", "answer": "A"}': "`choices` is not a list of at most 26 texts",
    '{"question": "q", "choices": {"text": ["x"], "label": ["A", "B"]}, "answerKey": "A"}': "`choices` is not a list",
    '{"prompt": "p", "reward_model": {"ground_truth": "1"}}': "`prompt` is not one user turn; write it as [{",
    '{"prompt": [{"role": "user", "content": "p"}], "reward_model": "1"}': "`reward_model` is not a mapping",
    '{"prompt": [{"role": "user", "content": "p"}], "reward_model": {}}': "`ground_truth` has no value (null)",
    '{"problem": "a \\ud83d b", "answer": "1"}': "the problem contains \\ud83d, which is half of a character",
    '{"problem": "p", "answer": "\\frac{1}{2}"}': "the answer contains a form feed in place of \\frac; in JSON, ",
    '{"problem": "3 \\times 4", "answer": "12"}': "the problem contains a tab in place of \\times; in JSON",
}  # fmt: skip


@pytest.mark.parametrize("row", NOT_WHOLE)
def test_a_row_that_cannot_be_asked_or_graded_as_a_whole_is_refused_by_its_number(tmp_path: Path, row: str) -> None:
    path = write(tmp_path, WHOLE, row)
    with pytest.raises(DataError) as caught:
        load_file(path)
    assert str(caught.value).startswith(f"{path}: row 1: {NOT_WHOLE[row]}")
    assert len(str(caught.value).splitlines()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.sampled_from(["", "A", "a", "user"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["label", "text", "A", "role", "content", "ground_truth"]), inner, max_size=3)
    ),
    max_leaves=5,
)
COLUMNS = [
    *QUESTION,
    *CONTEXT,
    *CHOICES,
    *ANSWER,
    *CATEGORY,
    "level",
    "solution",
    "prompt",
    "reward_model",
    "extra_info",
]


@given(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=5))
def test_every_row_is_read_or_refused_in_our_own_words(record: dict[str, Any]) -> None:
    with contextlib.suppress(RowError):
        row = read_row(record)
        assert all(isinstance(text, str) for text in row)
        assert row.prompt.strip()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "p", "answer": "1", "answer": "2"}', ":2: answer appears twice; keep one"),
        ('{"problem": "p", "answer": ' + "1" * 5000 + "}", ":2: cannot be read: a number has too many digits"),
        ('{"problem": "p", "answer": ' + "[" * 100_000, ":2: cannot be read: .* nested too deep"),
        ('{"problem": "p", "answer": "\\d"}', r":2: not JSON: Invalid \\escape at character 29"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_file(write(tmp_path, WHOLE, line))


def test_a_box_that_json_turned_into_a_backspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 0: the completion contains a backspace in place of \\boxed; in JSON, double"
    ):
        read_completions(Path(write(tmp_path, r'{"completion": "\boxed{4}", "answer": "4"}')))
    assert read_completions(Path(write(tmp_path, r'{"completion": "a\fb", "answer": "4"}'))) == [("a\fb", "4")]


def test_repeated_problems_and_control_characters_are_warnings() -> None:
    rows = [("p", "1"), ("q", "1"), ("p", "1"), ("p", "2"), ("r \f", "1")]
    problems = [Problem(id=f"s:{row}", prompt=prompt, answer=answer) for row, (prompt, answer) in enumerate(rows)]
    assert row_warnings("s", problems) == [
        "s:2: repeats the problem of s:0; keep one",
        "s:3: repeats the problem of s:0, with the label '1' there; keep one",
        "s:4: contains a form feed in place of \\f; correct its text",
    ]
    many = [replace(problem, id=f"{problem.id}{time}") for time in range(3) for problem in problems]
    assert row_warnings("s", many)[5] == "s: 7 more repeated problems"  # 15 rows with 3 texts; 5 of 12 are shown
    assert not row_warnings("dsr_sub", [replace(problem, id=f"dsr_sub:{problem.id[2:]}") for problem in problems])


def test_a_parquet_file_with_the_released_columns(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    rows = [
        {
            "prompt": [{"role": "user", "content": f"p{row}"}],
            "reward_model": {"style": "rule", "ground_truth": str(row)},
            "extra_info": {"index": row, "split": "train"},
        }
        for row in range(3)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    assert load_row(f"{path}:2").prompt == "p2"
    assert load_row(f"{path}:2").answer == "2"


def test_the_digest_is_of_the_contents_only(tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(json.dumps({"problem": "p", "answer": "a", "subject": name}))
    one, two = (load_row(f"{tmp_path / name}:0") for name in ("one.jsonl", "two.jsonl"))
    assert one.digest == two.digest
    assert one.id != two.id


@pytest.mark.parametrize(
    ("name", "text", "example", "message"),
    [
        ("a.jsonl", '{"problem": "p", "answer": "a"}', "missing.jsonl:0", "no such file .* has a.jsonl"),
        ("a.jsonl", '{"problem": "p", "answer": "a"}', "a.jsonl:1", "no row 1; .* has rows 0 to 0"),
        ("a.jsonl", '{"problem": "p", "answer": "a"}', "a.jsonl:x", "row 'x' is not a number"),
        (
            "a.jsonl",
            '{"text": "p", "answer": "a"}',
            "a.jsonl:0",
            "row 0: it has no problem; its columns are text, answer; it needs",
        ),
        ("a.jsonl", '{"problem": "p", "answer": [1]}', "a.jsonl:0", "neither text nor a number"),
        ("a.jsonl", "{", "a.jsonl:0", "a.jsonl:1: not JSON"),
        ("a.jsonl", "", "a.jsonl:0", "has no rows"),
        ("a.parquet", "version https://git-lfs", "a.parquet:0", "not a readable parquet file"),
        (
            "a.txt",
            "",
            "a.txt:0",
            "no set .* use one of arithmetic, dsr_sub, .* or the path or URL of a .jsonl or .parquet file",
        ),
    ],
)
def test_bad_data_gets_one_clear_error(tmp_path: Path, name: str, text: str, example: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_row(f"{tmp_path}/{example}")


def test_a_suite_that_is_neither_built_in_nor_a_file_says_what_is(tiny_config: Callable[..., TrialConfig]) -> None:
    with pytest.raises(DataError, match=r"not built in; did you mean 'math500'.; or set its file"):
        load_suite("math501", SuiteConfig(), tiny_config())


def test_a_suite_takes_the_first_rows_of_its_file(tmp_path: Path, tiny_config: Callable[..., TrialConfig]) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(json.dumps({"problem": f"p{row}", "answer": "1"}) for row in range(5)))
    suite = load_suite("mine", SuiteConfig(source=str(path), num_problems=2), tiny_config())
    assert [problem.prompt for problem in suite.problems] == ["p0", "p1"]
    with pytest.raises(DataError, match=r"6, but .* has 5 rows"):
        load_suite("mine", SuiteConfig(source=str(path), num_problems=6), tiny_config())


def test_the_papers_first_example_is_row_124(shared: Path) -> None:
    problem = load_row(f"{shared / 'data' / 'dsr_sub.parquet'}:124")
    assert problem.answer == "12.8"
    assert problem.prompt.startswith("The pressure")
    # a released prompt ends with the training suffix already: it is not added again
    assert with_suffix(problem.prompt, TRAIN_SUFFIX) == problem.prompt


def test_released_benchmarks_load(shared: Path) -> None:
    sizes = {path.stem: len(load_file(str(path))) for path in (shared / "data" / "benchmarks").glob("*.jsonl")}
    assert sizes == {"math500": 500, "aime24": 30, "aime25": 30, "amc23": 40} or sizes["aime24"] == 240
    assert all(problem.category for problem in load_file(str(shared / "data" / "benchmarks" / "math500.jsonl")))


def test_a_suffix_is_added_once() -> None:
    assert with_suffix("p", "s.") == "p s."
    assert with_suffix("p s.", "s.") == "p s."
    assert with_suffix("p", "") == "p"
