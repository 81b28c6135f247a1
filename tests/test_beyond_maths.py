"""Suites beyond mathematics: their choices and labels, read from files of the published forms."""

import csv
import hashlib
import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from oneshot.errors import DataError
from oneshot.tasks import sets
from oneshot.tasks.fetch import fetch
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Problem, load_file


def put_in_memory(name: str, content: bytes) -> str:
    """The URL under which fsspec finds it."""
    fsspec.filesystem("memory").pipe_file(f"/{name}", content)
    return f"memory://{name}"


def read_row(folder: Path, record: dict[str, Any]) -> Problem:
    (folder / "set.jsonl").write_text(json.dumps(record))
    (problem,) = load_file(str(folder / "set.jsonl"))
    return problem


GPQA = {
    "Question": "Which metal floats on water?\n",
    "Correct Answer": "lithium\n",
    "Incorrect Answer 1": "iron",
    "Incorrect Answer 2": "gold",
    "Incorrect Answer 3": "lead, as a plate",
    "High-level domain": "Chemistry",
}


def test_a_gpqa_row_lists_its_choices_in_an_order_that_its_texts_decide(tmp_path: Path) -> None:
    problem = read_row(tmp_path, GPQA)
    texts = ["lithium", "iron", "gold", "lead, as a plate"]
    # by sha256 of question and choice
    texts.sort(key=lambda text: hashlib.sha256(f"Which metal floats on water?\n{text}".encode()).hexdigest())
    lines = [f"({letter}) {text}" for letter, text in zip("ABCD", texts, strict=True)]
    asked = ["Which metal floats on water?", *lines, "Answer with the letter of the choice."]
    assert problem.prompt == "\n".join(asked)
    assert problem.prompt.split("\n")[1 + "ABCD".index(problem.answer)].endswith("lithium")
    assert problem.category == "Chemistry"
    # another order of the incorrect answers changes nothing
    swapped = GPQA | {"Incorrect Answer 1": "gold", "Incorrect Answer 2": "iron"}
    assert read_row(tmp_path, swapped) == problem


def test_the_right_choice_of_gpqa_rows_has_every_letter(tmp_path: Path) -> None:
    letters = Counter(read_row(tmp_path, GPQA | {"Question": f"Question {n}?"}).answer for n in range(200))
    # 50 of each are expected; four standard deviations are 4 x sqrt(200 x 3/16) = 24.5
    assert set(letters) == set("ABCD")
    assert all(abs(count - 50) <= 25 for count in letters.values())


def test_a_gpqa_row_whose_right_answer_is_also_incorrect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0: `Correct Answer` is also an incorrect answer"):
        read_row(tmp_path, GPQA | {"Incorrect Answer 2": " lithium"})


def test_gpqa_is_read_as_published(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=[*GPQA])
    writer.writeheader()
    writer.writerows([GPQA, GPQA | {"Question": 'What is "2\nlines"?'}])
    url = put_in_memory("gpqa_diamond.csv", text.getvalue().encode("utf-8-sig"))
    monkeypatch.setitem(sets.KNOWN, "gpqa_diamond", replace(sets.KNOWN["gpqa_diamond"], url=url, num_rows=2))
    path, count = fetch("gpqa_diamond")
    assert (path.name, count) == ("gpqa_diamond.csv", 2)
    assert sets.load("gpqa_diamond")[1].prompt.startswith('What is "2\nlines"?\n(A) ')


def test_a_gated_set_says_how_to_get_it(no_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(sets.KNOWN["gpqa_diamond"], url="memory://nowhere/gpqa.csv")
    monkeypatch.setitem(sets.KNOWN, "gpqa_diamond", known)
    with pytest.raises(
        DataError, match=r"is gated: accept its terms there, run `hf auth login`.*by hand to .*gpqa_dia"
    ):
        fetch("gpqa_diamond")


def test_a_row_of_mmlu_names_its_choice_by_number(tmp_path: Path) -> None:
    record = {"question": "2+2?", "type": "elementary_mathematics", "choices": ["3", "4", "5", "6"], "answer": 1}
    problem = read_row(tmp_path, record)
    assert problem.prompt == "2+2?\n(A) 3\n(B) 4\n(C) 5\n(D) 6\nAnswer with the letter of the choice."
    assert (problem.answer, problem.category) == ("B", "elementary_mathematics")


@pytest.mark.parametrize(
    ("target", "category"),
    [
        ("(E)", "choice"),
        ("-147", "number"),
        ("3.5", "number"),
        ("150, 1", "list"),
        ("[hiking, studying]", "list"),
        ("proved", "words"),
        ("05-30-2006", "words"),
        ("D", "words"),
    ],
)
def test_big_bench_extra_hard_is_read_as_published(
    no_data: Path, monkeypatch: pytest.MonkeyPatch, target: str, category: str
) -> None:
    content = {"examples": [{"input": "How many?", "target": target}], "canary": "text"}
    url = put_in_memory("data.json", json.dumps(content).encode())
    monkeypatch.setitem(sets.KNOWN, "bbeh_mini", replace(sets.KNOWN["bbeh_mini"], url=url, num_rows=1))
    fetch("bbeh_mini")
    (problem,) = sets.load("bbeh_mini")
    assert (problem.id, problem.prompt, problem.answer) == ("bbeh_mini:0", "How many?", target)
    assert problem.category == category


@pytest.mark.parametrize("content", ["{", "[]", '{"examples": {}}', '{"examples": [1]}'])
def test_a_json_file_of_another_form_is_refused(no_data: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    url = put_in_memory("other.json", content.encode())
    monkeypatch.setitem(sets.KNOWN, "bbeh_mini", replace(sets.KNOWN["bbeh_mini"], url=url))
    with pytest.raises(DataError, match=r"other.json: not (JSON|an object with a list of rows under `examples`)"):
        fetch("bbeh_mini")


@pytest.mark.parametrize("label", ["B", "(B)"])
@pytest.mark.parametrize(
    ("box", "verdict"), [("B", True), ("(B)", True), (r"\text{B}", True), ("B. 4", True), ("A", False), ("b", False)]
)
def test_a_choice_is_graded_by_its_letter(grader: Grader, label: str, box: str, verdict: bool) -> None:
    assert grader.strict(rf"So \boxed{{{box}}}.", label) is verdict


@pytest.mark.parametrize(
    ("box", "label", "verdict"),
    [
        (r"\text{proved}", "proved", True),
        ("disproved", "proved", False),
        ("no, unknown", "unknown, no", False),  # words keep their order
        ("1,0,0", "0,1,0", True),  # numbers do not: docs/data.md says so
    ],
)
def test_other_labels_of_big_bench_are_graded_as_elsewhere(grader: Grader, box: str, label: str, verdict: bool) -> None:
    assert grader.strict(rf"So \boxed{{{box}}}.", label) is verdict
