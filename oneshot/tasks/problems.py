"""A file of problems -> `Problem`s with answers that a grader can use.

The file is .parquet or .jsonl, with the columns of One-Shot-RLVR's `data/train`, of Qwen2.5-Math's `evaluation/data`,
or of GSM8K, MATH and ARC as their authors publish them.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.lib
import pyarrow.parquet

from oneshot.errors import DataError
from oneshot.tasks.answers import extract_boxed

FILE_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A prompt, before any template, and its answer. `id` names set and row; `category` and `level` may be empty."""

    id: str
    prompt: str
    answer: str
    category: str = ""
    level: str = ""

    @property
    def content(self) -> "Content":
        """Return the sha256 (hex) of the prompt and of the answer."""
        return text_digest(self.prompt), text_digest(self.answer)

    @property
    def digest(self) -> str:
        """Return the sha256 (hex) of both; the id, category and level are not part of it."""
        return content_digest(self.content)


Content = tuple[str, str]  # sha256 (hex) of a prompt and of its answer


def text_digest(text: str) -> str:
    """Return the sha256 (hex) of a text."""
    return sha256(text.encode()).hexdigest()


def content_digest(content: Content) -> str:
    """Return the sha256 (hex) that identifies a problem: another label makes another problem."""
    return text_digest("".join(content))


def load_file(path: str) -> tuple[Problem, ...]:
    """Return every problem of a .jsonl or .parquet file, in row order.

    Raises DataError: there is no such file, or a row lacks the expected columns; names the columns that it has.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        names = sorted(p.name for p in file.parent.glob("*") if p.suffix in FILE_SUFFIXES)
        hint = f"; {file.parent} has {', '.join(names)}" if names else ""
        raise DataError(f"{path}: no such file (paths are relative to {Path.cwd()}){hint}")
    return _load_file(path, file.stat().st_mtime_ns)


@cache
def _load_file(path: str, _mtime_ns: int) -> tuple[Problem, ...]:
    records = _read_parquet(path) if path.endswith(".parquet") else _read_jsonl(path)
    if not records:
        raise DataError(f"{path}: has no rows")
    problems = []
    for row, record in enumerate(records):
        try:
            problem = _read(record)
            _ = problem.content  # raises if a text cannot be encoded
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise DataError(
                f"{path}: row {row}: {error.args[0] if error.args else error}; its columns are {', '.join(record)}; "
                "it needs `problem` or `question`, and `answer`, `final_answer` or a boxed `solution`; or `prompt` "
                "and `reward_model.ground_truth`"
            ) from error
        problems.append(replace(problem, id=f"{Path(path).name}:{row}"))
    return tuple(problems)


def read_completions(path: Path) -> list[tuple[str, str]]:
    """Return (completion, answer) of each line of a .jsonl file.

    Raises DataError: there is no such file, it is empty, or a line lacks `completion` or `answer`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    records = _read_jsonl(str(path))
    if not records:
        raise DataError(f"{path}: has no rows")
    pairs = []
    for row, record in enumerate(records):
        if not isinstance(record.get("completion"), str) or "answer" not in record:
            raise DataError(
                f"{path}: row {row}: it needs `completion` (text) and `answer`; it has {', '.join(record) or 'neither'}"
            )
        try:
            pairs.append((record["completion"], _answer(record["answer"])))
        except TypeError as error:
            raise DataError(f"{path}: row {row}: {error}") from error
    return pairs


def _read_parquet(path: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(Path(path).expanduser()).to_pylist()
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    return rows


def _read_jsonl(path: str) -> list[dict[str, Any]]:
    records = []
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not readable UTF-8 text: {error}") from error
    # not splitlines, which also splits at U+2028: a problem may contain it
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: a row must be an object with `problem` and `answer`")
        records.append(record)
    return records


def _read(record: dict[str, Any]) -> Problem:
    """Read one row in the format that its columns show."""
    if "reward_model" in record:
        return _from_released(record)
    if "answerKey" in record:
        return _from_choices(record)
    prompt = record.get("problem") or record["question"]
    if not isinstance(prompt, str):
        raise TypeError(f"the problem {prompt!r} is not text")
    # subfield first: OlympiadBench's `subject` is always Math
    category = record.get("subfield") or record.get("subject") or record.get("type")
    return Problem(
        id="", prompt=prompt, answer=_label(record), category=str(category or ""), level=str(record.get("level") or "")
    )


def _label(record: dict[str, Any]) -> str:
    if "final_answer" in record:  # OlympiadBench: a list of texts in dollar signs
        final = record["final_answer"]
        return _answer(final[0] if isinstance(final, list) else final).strip().strip("$")
    if "answer" not in record:
        boxed = extract_boxed(record["solution"])
        if boxed is None:
            raise TypeError("it has no `answer`, and no \\boxed{} in `solution`")
        return boxed
    answer = _answer(record["answer"])
    _, marks, final = answer.rpartition("#### ")  # GSM8K: the working, then "#### " and the number
    return final.strip().replace(",", "") if marks else answer


def _from_released(record: dict[str, Any]) -> Problem:
    turns = record["prompt"]
    if [turn["role"] for turn in turns] != ["user"]:
        raise TypeError("`prompt` is not one user turn")
    extra = record.get("extra_info") or {}
    answer = _answer(record["reward_model"]["ground_truth"])
    if not isinstance(turns[0]["content"], str):
        raise TypeError("`prompt` has no text")
    return Problem(
        id="",
        prompt=turns[0]["content"],
        answer=answer,
        category=str(extra.get("subject") or ""),
        level=str(extra.get("level") or ""),
    )


def _from_choices(record: dict[str, Any]) -> Problem:
    """Read a row of ARC: the question with one choice per line; the answer is a choice's label."""
    labels, texts = record["choices"]["label"], record["choices"]["text"]
    choices = "\n".join(f"({label}) {text}" for label, text in zip(labels, texts, strict=True))
    return Problem(
        id="",
        prompt=f"{record['question']}\n{choices}\nAnswer with the letter of the choice.",
        answer=record["answerKey"],
    )


def _answer(value: object) -> str:
    """Return an answer as text; in AIME and AMC files it is a number, and 27.0 means 27."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else repr(value)
    raise TypeError(f"the answer {value!r} is neither text nor a number")
