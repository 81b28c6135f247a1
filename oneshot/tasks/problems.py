"""A file of problems -> `Problem`s; a file of completions -> the completions with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from oneshot.errors import DataError
from oneshot.tasks.columns import RowError, check_characters, read_answer, read_row
from oneshot.tasks.records import FILE_SUFFIXES, Record, read_records


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A prompt, before any template, and its answer. `id` names set and row; the others may be empty.

    Problems of one `family`, such as forms of one question, are counted as one replicate by verdicts.
    """

    id: str
    prompt: str
    answer: str
    category: str = ""
    level: str = ""
    family: str = ""

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


def read_problems(
    records: Sequence[Record], source: str, *, needs_labels: bool = True, is_checked: bool = True
) -> tuple[Problem, ...]:
    """Return the problem of each row of a file or function. With `is_checked`, control characters are refused.

    Raises DataError: a row cannot be asked or graded; names the source, the row and the column.
    """
    problems = []
    for number, record in enumerate(records):
        try:
            row = read_row(record, needs_label=needs_labels)
            if is_checked:
                check_characters("the problem", row.prompt)
                check_characters("the answer", row.answer)
        except RowError as error:
            raise DataError(f"{source}: row {number}: {error}") from error
        problems.append(Problem(id=f"{Path(source).name}:{number}", **row._asdict()))
    return tuple(problems)


def load_file(path: str, *, needs_labels: bool = True) -> tuple[Problem, ...]:
    """Return every problem of a .jsonl or .parquet file, in row order. Without `needs_labels` answers may be empty.

    Raises DataError: there is no such file, or a row cannot be asked or graded; names the row and the column.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        names = sorted(p.name for p in file.parent.glob("*") if p.suffix in FILE_SUFFIXES)
        hint = f"; {file.parent} has {', '.join(names)}" if names else ""
        raise DataError(f"{path}: no such file (paths are relative to {Path.cwd()}){hint}")
    return _load_file(file, file.stat().st_mtime_ns, needs_labels)


@cache
def _load_file(path: Path, _mtime_ns: int, needs_labels: bool) -> tuple[Problem, ...]:
    is_checked = path.suffix == ".jsonl"  # published parquet files have such characters, which nobody can edit
    return read_problems(read_records(path), str(path), needs_labels=needs_labels, is_checked=is_checked)


def read_completions(path: Path) -> list[tuple[str, str]]:
    """Return (completion, answer) of each line of a .jsonl file.

    Raises DataError: there is no such file, it is empty, or a line lacks `completion` or `answer`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    pairs = []
    for number, record in enumerate(read_records(path)):
        completion = record.get("completion")
        try:
            if not isinstance(completion, str) or "answer" not in record:
                columns = ", ".join(record) or "neither"
                raise RowError(f"it needs `completion` (text) and `answer`; it has {columns}")
            answer = read_answer(record, "answer")
            check_characters("the answer", answer)
            if "\x08oxed" in completion:  # other control characters may be a model's own
                check_characters("the completion", completion)
        except RowError as error:
            raise DataError(f"{path}: row {number}: {error}") from error
        pairs.append((completion, answer))
    return pairs
