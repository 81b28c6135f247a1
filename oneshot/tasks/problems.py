"""A file of problems -> `Problem`s with the answer that a grader can use.

Read are .parquet and .jsonl files with the released columns (One-Shot-RLVR `data/train`, Qwen2.5-Math
`evaluation/data`):

- parquet: `prompt` (one user turn: `[{role, content}]`), `reward_model.ground_truth`, `extra_info` (subject, level);
- jsonl: `problem`, `answer`, and where known `subject`.
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

FILE_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A prompt and its answer.

    `prompt` is what is asked, before any template; `id` names set and row; `category` may be empty.
    """

    id: str
    prompt: str
    answer: str
    category: str = ""

    @property
    def digest(self) -> str:
        """sha256 (hex) of what is asked and what counts as right; the name and category are not in it."""
        return sha256(json.dumps([self.prompt, self.answer], ensure_ascii=False).encode()).hexdigest()


def load_file(path: str) -> tuple[Problem, ...]:
    """Every problem of a .jsonl or .parquet file, in row order.

    Raises:
        DataError: no such file, or a row without the released columns; says which are there.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        there = (
            sorted(p.name for p in file.parent.glob("*") if p.suffix in FILE_SUFFIXES) if file.parent.is_dir() else []
        )
        found = f"; {file.parent} has {', '.join(there)}" if there else ""
        raise DataError(f"{path}: no such file (paths are taken from {Path.cwd()}){found}")
    return _load_file(path, file.stat().st_mtime_ns)


@cache
def _load_file(path: str, _mtime_ns: int) -> tuple[Problem, ...]:
    records = _read_parquet(path) if path.endswith(".parquet") else _read_jsonl(path)
    if not records:
        raise DataError(f"{path}: has no rows")
    problems = []
    for row, record in enumerate(records):
        try:
            problem = _from_parquet(record) if "reward_model" in record else _from_jsonl(record)
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{path}: row {row}: {error.args[0] if error.args else error}; its columns are {', '.join(record)}; "
                "wanted are `problem` and `answer`, or `prompt` and `reward_model.ground_truth`"
            ) from error
        problems.append(replace(problem, id=f"{Path(path).name}:{row}"))
    return tuple(problems)


def _read_parquet(path: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(Path(path).expanduser()).to_pylist()
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {error}") from error
    return rows


def _read_jsonl(path: str) -> list[dict[str, Any]]:
    records = []
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not UTF-8 text that can be read: {error}") from error
    # not splitlines: U+2028 and its like may stand in a problem
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


def _from_parquet(record: dict[str, Any]) -> Problem:
    turns = record["prompt"]
    if [turn["role"] for turn in turns] != ["user"]:
        raise TypeError("`prompt` is not one user turn")
    extra = record.get("extra_info") or {}
    answer = _answer(record["reward_model"]["ground_truth"])
    return Problem(id="", prompt=turns[0]["content"], answer=answer, category=str(extra.get("subject") or ""))


def _from_jsonl(record: dict[str, Any]) -> Problem:
    return Problem(
        id="", prompt=record["problem"], answer=_answer(record["answer"]), category=str(record.get("subject") or "")
    )


def _answer(value: object) -> str:
    """Answers come as text, and in AIME and AMC files as numbers: 27.0 means 27."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else repr(value)
    raise TypeError(f"the answer {value!r} is neither text nor a number")
