"""Sets: what is known of them where they are not at hand, what is refused, what is fetched, and how rows are read."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from oneshot.errors import DataError
from oneshot.tasks import make_facts, sets
from oneshot.tasks.examples import aliases
from oneshot.tasks.fetch import fetch
from oneshot.tasks.problems import Problem, load_file


def put_in_memory(name: str, content: bytes) -> str:
    """The URL under which fsspec finds it."""
    fsspec.filesystem("memory").pipe_file(f"/{name}", content)
    return f"memory://{name}"


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


TWO_ROWS = jsonl({"problem": "p", "answer": "1"}, {"problem": "q", "answer": 2})


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", make_facts.WITH_DIGESTS)
def test_the_shipped_digests_are_those_of_the_published_file(real_data: Path, name: str) -> None:
    path = sets.local_path(name)
    assert path is not None
    assert sets.shipped_contents(name) == tuple(problem.content for problem in load_file(str(path)))
    assert len(sets.load(name)) == sets.KNOWN[name].num_rows


def test_a_problem_of_a_set_is_named_by_set_and_row(real_data: Path) -> None:
    assert [problem.id for problem in sets.load("math500")[:2]] == ["math500:0", "math500:1"]


def test_a_problem_of_a_part_keeps_the_name_of_its_row(real_data: Path) -> None:
    whole = sets.load("dsr_sub")
    assert sets.load("val") == tuple(whole[row] for row in sets.val_rows())
    assert sets.load("val")[0].id == f"dsr_sub:{sets.val_rows()[0]}"


def test_a_file_of_which_one_row_was_changed_is_refused_by_that_row(no_data: Path, shared: Path) -> None:
    lines = (shared / "data" / "benchmarks" / "aime24.jsonl").read_text().splitlines()
    record = json.loads(lines[7])
    lines[7] = json.dumps({**record, "answer": "1000"})
    (no_data / "aime24.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"not aime24 as published: row 7 differs \(by sha256\).*`oneshot fetch"):
        sets.load("aime24")
    # by its path it is whatever it is
    assert sets.load(str(no_data / "aime24.jsonl"))[7].answer == "1000"


def test_a_file_that_lacks_its_last_row_is_refused_by_its_length(no_data: Path, shared: Path) -> None:
    lines = (shared / "data" / "benchmarks" / "aime24.jsonl").read_text().splitlines()
    (no_data / "aime24.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="not aime24 as published: it has 29 rows, not 30"):
        sets.load("aime24")


@pytest.mark.parametrize(("name", "file"), [("math500", "math500"), ("val", "dsr_sub"), ("gsm8k", "gsm8k")])
def test_a_known_set_that_is_not_at_hand_says_how_to_get_it(no_data: Path, name: str, file: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: not in {no_data}; run `oneshot fetch {file}`"):
        sets.load(name)


@pytest.mark.parametrize(
    ("name", "count"), [("dsr_sub", 1209), ("val", 200), ("dsr_sub-val", 1009), ("math7500", 7500), ("minerva", 272)]
)
def test_the_number_of_rows_is_known_without_data(no_data: Path, name: str, count: int) -> None:
    assert sets.num_rows(name) == count


@pytest.mark.parametrize(("name", "count"), [("dsr_sub", 1209), ("val", 200), ("dsr_sub-val", 1009), ("math500", 500)])
def test_the_contents_of_much_used_sets_are_known_without_data(no_data: Path, name: str, count: int) -> None:
    contents = sets.contents(name)
    assert contents is not None
    assert len(contents) == count


@pytest.mark.parametrize(
    "name", ["math7500", "gsm8k", "memory://not/fetched.jsonl", "hf://datasets/a/b@c0ffee/d.parquet"]
)
def test_of_other_sets_nothing_is_known_before_they_are_fetched(no_data: Path, name: str) -> None:
    assert sets.contents(name) is None


def test_the_rows_of_a_url_are_counted_only_once_it_is_fetched(no_data: Path) -> None:
    url = put_in_memory("counted.jsonl", TWO_ROWS)
    assert sets.num_rows(url) is None
    fetch(url)
    assert sets.num_rows(url) == 2


def test_val_and_the_rest_are_disjoint_and_together_the_whole() -> None:
    (val_base, val), (rest_base, rest) = sets.parts_of("val"), sets.parts_of("dsr_sub-val")
    assert val is not None and rest is not None
    assert val_base == rest_base == "dsr_sub"
    assert (len(val), len(rest)) == (200, 1009)
    assert sorted(val + rest) == list(range(1209))


def test_val_has_none_of_the_papers_examples() -> None:
    assert len(aliases()) == 23
    assert not {str(alias["row"]) for alias in aliases().values()} & {f"dsr_sub:{row}" for row in sets.val_rows()}


def test_a_prompt_of_val_stands_once_in_the_whole_set() -> None:
    contents = sets.shipped_contents("dsr_sub")
    assert contents is not None
    times = Counter(prompt for prompt, _ in contents)
    assert {times[contents[row][0]] for row in sets.val_rows()} == {1}
    assert max(times.values()) > 1  # so that this says something


def test_no_row_of_val_is_near_a_problem_that_models_are_judged_by(real_data: Path) -> None:
    tested = [problem.prompt for name in make_facts.TEST_SUITES for problem in sets.load(name)]
    assert len(tested) == 600
    assert make_facts.near_duplicates([problem.prompt for problem in sets.load("val")], tested) == []
    assert not {*sets.val_rows()} & {*make_facts.KNOWN_NEAR}


def test_near_duplicates_are_found_by_what_they_share_whatever_the_spelling() -> None:
    text = "How many positive whole numbers below one thousand are divisible by both seven and eleven?"
    rows = [text.upper().replace(" ", "  "), "What is the sum of the first hundred odd numbers that are no prime?"]
    assert make_facts.near_duplicates(rows, ["Unrelated.", f"Hint. {text} Explain."]) == [0]


def test_val_is_what_its_script_draws(real_data: Path) -> None:
    assert make_facts.draw_val() == list(sets.val_rows())


def test_a_hub_file_without_revision_is_refused_with_the_form_that_has_one() -> None:
    with pytest.raises(DataError, match="has no revision; write hf://datasets/owner/name@COMMIT/path"):
        sets.check_name("hf://datasets/owner/name/train.parquet")
    sets.check_name("hf://datasets/owner/name@0123abc/train.parquet")


@pytest.mark.parametrize(
    "name", ["dsr-sub", "pi_1", "math", "problems.csv", "https://example.org/problems.zip", "valid"]
)
def test_a_name_of_no_set_is_told_what_there_is(name: str) -> None:
    with pytest.raises(DataError, match=r"no set .*; use one of arithmetic, dsr_sub, .*, val, dsr_sub-val, or"):
        sets.num_rows(name)


@pytest.mark.parametrize("place", ["benchmarks/aime24.jsonl", "aime24.jsonl"])
def test_a_known_file_may_lie_in_its_own_folder_or_beside_the_others(no_data: Path, place: str) -> None:
    assert sets.local_path("aime24") == no_data / "benchmarks" / "aime24.jsonl"
    (no_data / place).parent.mkdir(exist_ok=True)
    (no_data / place).write_text("")
    assert sets.local_path("aime24") == no_data / place


def test_two_urls_are_two_files(no_data: Path) -> None:
    paths = {sets.local_path(f"memory://{name}/test.jsonl") for name in ("one", "two")}
    assert len(paths) == 2
    assert {path.suffix for path in paths if path is not None} == {".jsonl"}


def test_a_url_is_read_once_it_is_fetched(no_data: Path) -> None:
    url = put_in_memory("mine.jsonl", TWO_ROWS)
    with pytest.raises(DataError, match=f"run `oneshot fetch {url}`"):
        sets.load(url)
    path, count = fetch(url)
    assert (path.parent, count) == (no_data / "urls", 2)
    assert [(problem.id, problem.answer) for problem in sets.load(url)] == [(f"{url}:0", "1"), (f"{url}:1", "2")]
    assert sets.contents(url) == tuple(problem.content for problem in sets.load(url))


def test_what_is_fetched_already_is_not_asked_for_again(no_data: Path) -> None:
    url = put_in_memory("once.jsonl", TWO_ROWS)
    first = fetch(url)
    fsspec.filesystem("memory").rm("/once.jsonl")
    assert fetch(url) == first


def test_a_download_that_fails_says_where_the_file_may_be_put_and_leaves_none(no_data: Path) -> None:
    url = "memory://nowhere/gone.jsonl"
    with pytest.raises(
        DataError, match=rf"cannot be fetched from {url}: FileNotFoundError.*; download the file by hand to {no_data}"
    ):
        fetch(url)
    assert files_in(no_data) == []


@pytest.mark.parametrize("content", [b"<html>404</html>", b"", b'{"text": "p"}\n'])
def test_a_download_that_is_no_set_leaves_no_file(no_data: Path, content: bytes) -> None:
    url = put_in_memory("no-set.jsonl", content)
    with pytest.raises(DataError):
        fetch(url)
    assert files_in(no_data) == []


def test_a_known_set_is_fetched_to_its_place(no_data: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = (shared / "data" / "benchmarks" / "aime24.jsonl").read_bytes()
    mirror = replace(sets.KNOWN["aime24"], url=put_in_memory("aime24.jsonl", published))
    monkeypatch.setitem(sets.KNOWN, "aime24", mirror)
    assert fetch("aime24") == (no_data / "benchmarks" / "aime24.jsonl", 30)
    assert files_in(no_data) == ["aime24.jsonl"]
    assert (no_data / "benchmarks" / "aime24.jsonl").read_bytes() == published


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aime24", "not aime24 as published: row 0 differs"),
        ("gsm8k", "has 2 rows, not 1319: this is not gsm8k as published"),
    ],
)
def test_a_download_that_is_another_set_is_refused_and_leaves_no_file(
    no_data: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(sets.KNOWN, name, replace(sets.KNOWN[name], url=put_in_memory("other.jsonl", TWO_ROWS)))
    with pytest.raises(DataError, match=message):
        fetch(name)
    assert files_in(no_data) == []


def test_a_part_is_fetched_with_the_whole(real_data: Path) -> None:
    assert fetch("val") == fetch("dsr_sub") == (real_data / "dsr_sub.parquet", 1209)


def test_there_is_nothing_to_fetch_of_a_path(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_bytes(TWO_ROWS)
    with pytest.raises(DataError, match="a path on this machine; there is nothing to fetch"):
        fetch(str(tmp_path / "set.jsonl"))


def read_row(folder: Path, record: dict[str, Any]) -> Problem:
    (folder / "set.jsonl").write_bytes(jsonl(record))
    (problem,) = load_file(str(folder / "set.jsonl"))
    return problem


def test_the_answer_of_a_gsm8k_row_is_the_number_after_four_marks(tmp_path: Path) -> None:
    problem = read_row(tmp_path, {"question": "q", "answer": "He pays 2*600=<<2*600=1200>>1200.\n#### 1,200"})
    assert (problem.prompt, problem.answer) == ("q", "1200")


def test_the_answer_of_a_minerva_row_is_the_last_box_of_its_solution(tmp_path: Path) -> None:
    solution = r"Not \boxed{1}: $x = \boxed{\frac{3}{4}}$ and no more."
    problem = read_row(tmp_path, {"problem": "p", "type": "Introduction to Astronomy", "solution": solution})
    assert (problem.answer, problem.category) == (r"\frac{3}{4}", "Introduction to Astronomy")


def test_a_row_with_a_solution_without_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 0: it has no `answer`, and no \\boxed\{\} in `solution`"):
        read_row(tmp_path, {"problem": "p", "solution": "It is 4."})


def test_the_answer_of_a_math_row_is_its_own_and_its_level_is_kept(tmp_path: Path) -> None:
    record = {"problem": "p", "solution": r"\boxed{5}", "answer": "4", "subject": "Algebra", "level": 3}
    problem = read_row(tmp_path, record)
    assert (problem.answer, problem.category, problem.level) == ("4", "Algebra", "3")


def test_the_answer_of_an_olympiadbench_row_is_its_first_without_dollar_signs(tmp_path: Path) -> None:
    record = {
        "question": "q", "final_answer": ["$\\frac{1}{n+2}$"], "subject": "Math", "subfield": "Combinatorics",
    }  # fmt: skip
    problem = read_row(tmp_path, record)
    assert (problem.prompt, problem.answer, problem.category) == ("q", r"\frac{1}{n+2}", "Combinatorics")


def test_an_arc_row_asks_for_the_letter_of_one_of_its_choices(tmp_path: Path) -> None:
    record = {"question": "q?", "choices": {"text": ["wood", "iron"], "label": ["A", "B"]}, "answerKey": "B"}
    asked = "q?\n(A) wood\n(B) iron\nAnswer with the letter of the choice."
    assert (read_row(tmp_path, record).prompt, read_row(tmp_path, record).answer) == (asked, "B")
    # as its authors publish it
    pyarrow.parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "arc.parquet")
    assert load_file(str(tmp_path / "arc.parquet"))[0].content == read_row(tmp_path, record).content


def test_the_name_category_and_level_of_a_problem_are_not_its_content() -> None:
    one = Problem(id="a:0", prompt="p", answer="1", category="Algebra", level="1")
    assert one.digest == replace(one, id="b:7", category="", level="5").digest
    assert one.digest != replace(one, answer="2").digest != replace(one, prompt="q").digest


def test_a_final_answer_may_be_a_list_or_text(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text('{"question": "p", "final_answer": ["$12$"]}\n{"question": "q", "final_answer": "12"}\n')
    assert [problem.answer for problem in load_file(str(path))] == ["12", "12"]


def test_generated_problems_have_no_file() -> None:
    with pytest.raises(DataError, match="arithmetic: this set is generated; it has no file"):
        fetch("arithmetic")
