"""Files of problems with the released columns: what is read, and what is said of files that are not so."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from oneshot.config.trial import TRAIN_SUFFIX, SuiteConfig, TrialConfig
from oneshot.errors import DataError
from oneshot.tasks.benchmarks import load_suite
from oneshot.tasks.examples import load_row
from oneshot.tasks.problems import load_file
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
    with pytest.raises(DataError, match="not readable UTF-8 text"):
        load_file(str(tmp_path / "set.jsonl"))


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
            "row 0: question; its columns are text, answer; it needs",
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
