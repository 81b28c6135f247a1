"""A row of a data file -> the problem in it.

The columns are those of One-Shot-RLVR's `data/train`, of Qwen2.5-Math's `evaluation/data`, or of GSM8K, MATH, ARC,
GPQA and BIG-Bench Extra Hard as their authors publish them. Nothing that belongs to a problem is left out: a row that
cannot be asked as a whole is refused. docs/data.md lists the columns.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.records import Record
from oneshot.text import stray_character

QUESTION = ("problem", "question")
CONTEXT = ("body", "context", "passage")  # texts that go before the question
CHOICES = ("choices", "options")
ANSWER = ("answerKey", "final_answer", "answer")
GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
MESSAGES = "messages"
CATEGORY = ("category", "subfield", "subject", "type")  # `subfield` before `subject`, which OlympiadBench has as Math


class RowError(Exception):
    """What is wrong with a row, its column, and how to fix it."""


class Row(NamedTuple):
    """A problem without a name."""

    prompt: str
    answer: str
    category: str
    level: str
    family: str


def read_row(record: Record, *, needs_label: bool = True) -> Row:
    """Return a row's problem, by the columns that it has. Without `needs_label` its answer may be empty.

    Raises RowError: a column is missing or wrong, or part of the problem would be left out.
    """
    if "reward_model" in record:
        return _read_released(record)
    if not _is_missing(record.get(MESSAGES)) and not _present(record, QUESTION):
        return _read_messages(record)
    if GPQA[0] in record:
        return _read_gpqa(record)
    questions = {name: _text(record, name) for name in _present(record, QUESTION)}
    if not questions and "input" in record and "target" in record:
        return _read_big_bench(record)
    if not questions:
        raise RowError(
            f"it has no problem; its columns are {', '.join(record)}; it needs `problem` or `question`, and `answer`, "
            "`final_answer` or a boxed `solution`; or `prompt` and `reward_model.ground_truth` (docs/data.md)"
        )
    parts = [*(_text(record, name) for name in _present(record, CONTEXT)), _agreed(questions)]
    choices = _choices(record)
    return Row(
        prompt="\n".join([*parts, *_listed(choices)]),
        answer=_label(record, choices, needs_label=needs_label),
        category=_name(record, CATEGORY),
        level=_name(record, ("level",)),
        family=_name(record, ("family",)),
    )


def _listed(choices: Mapping[str, str]) -> list[str]:
    """Return the lines that list choices and ask for a letter; none without choices."""
    lines = [f"({label}) {text}" for label, text in choices.items()]
    return [*lines, "Answer with the letter of the choice."] if lines else []


def _read_gpqa(record: Record) -> Row:
    """Return a question of GPQA, whose right choice is always in the same column.

    The order of the choices is that of the sha256 of question and choice: fixed, and unrelated to which one is right.
    """
    question, right = _text(record, "Question").strip(), _text(record, GPQA[0]).strip()
    texts = [_text(record, name).strip() for name in GPQA]
    if texts.count(right) > 1:
        raise RowError(f"`{GPQA[0]}` is also an incorrect answer; correct it")
    texts.sort(key=lambda text: sha256(f"{question}\n{text}".encode()).digest())
    choices = dict(zip(string.ascii_uppercase, texts, strict=False))
    return Row(
        prompt="\n".join([question, *_listed(choices)]),
        answer=string.ascii_uppercase[texts.index(right)],
        category=_name(record, ("High-level domain",)),
        level="",
        family="",
    )


def _read_big_bench(record: Record) -> Row:
    """Return a problem of BIG-Bench Extra Hard. Its category is the form of its label: choice, number, list or words.

    The mini set does not name the tasks. What the grader makes of each form: docs/data.md.
    """
    answer = _text(record, "target").strip()
    kinds = {"choice": r"\([A-Z]\)", "number": r"-?\d+(\.\d+)?", "list": r"\[.*\]|.*,.*"}
    category = next((kind for kind, pattern in kinds.items() if re.fullmatch(pattern, answer)), "words")
    return Row(prompt=_text(record, "input"), answer=answer, category=category, level="", family="")


def _read_released(record: Record) -> Row:
    turns, reward = record.get("prompt"), record["reward_model"]
    turn = turns[0] if isinstance(turns, list) and len(turns) == 1 else None
    if not isinstance(turn, Mapping) or turn.get("role") != "user":
        raise RowError('`prompt` is not one user turn; write it as [{"role": "user", "content": "..."}]')
    if not isinstance(reward, Mapping):
        raise RowError('`reward_model` is not a mapping; write it as {"ground_truth": "..."}')
    extra = record.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    return Row(
        prompt=_text(turn, "content"),
        answer=read_answer(reward, "ground_truth"),
        category=_name(extra, CATEGORY),
        level=_name(extra, ("level",)),
        family=_name(extra, ("family",)),
    )


def _read_messages(record: Record) -> Row:
    """Return the problem of a chat: the label is that of other columns, else the last box of the answer, else empty."""
    problem, solution = read_turns(record[MESSAGES])
    named = _present(record, ANSWER)
    return Row(
        prompt=problem,
        answer=_label(record, {}) if named else extract_boxed(solution) or "",
        category=_name(record, CATEGORY),
        level=_name(record, ("level",)),
        family=_name(record, ("family",)),
    )


def read_turns(turns: object) -> tuple[str, str]:
    """Return the texts of a chat of one user turn and one assistant turn. Raises RowError: it has other turns."""
    roles = [turn.get("role") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    if roles != ["user", "assistant"] or not isinstance(turns, list):
        hint = "; a system turn is part of prompt.template" if "system" in roles else ""
        raise RowError(f"`{MESSAGES}` is not a user turn and an assistant turn; write it as two turns{hint}")
    return _text(turns[0], "content"), _text(turns[1], "content")


def read_solution(record: Record, column: str) -> str:
    """Return the text to learn in a column: a text, a list of texts, or the assistant's turn of `messages`.

    Raises RowError: the column is missing or empty; lists the columns.
    """
    if column not in record:
        raise RowError(f"it has no column `{column}`; its columns are {', '.join(record)}")
    value = record[column]
    if column == MESSAGES:
        return read_turns(value)[1]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"`{column}` is {value!r}, not a text to learn; choose another column, or remove the row")
    return value


def check_characters(name: str, text: str) -> None:
    """Check that a text from JSON is what its author meant.

    Raises RowError: it contains a control character that a single backslash made, or half of a character.
    """
    if stray := stray_character(text):
        raise RowError(f"{name} contains {stray}; in JSON, double each backslash")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise RowError(f"{name} contains {half}, which is half of a character; write the whole character") from error


def read_answer(record: Mapping[str, Any], name: str) -> str:
    """Return an answer as text; in AIME and AMC files it is a number, and 27.0 means 27.

    Raises RowError: it is missing, or neither text nor a number.
    """
    value = record.get(name)
    if _is_missing(value):
        raise RowError(f"`{name}` has no value ({'NaN' if value is not None else 'null'}); write it, or remove the row")
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise RowError(f"`{name}` is {value!r}, neither text nor a number; write the answer as text")
    if not math.isfinite(value):
        raise RowError(f"`{name}` is an infinite number; write it as text, such as \\\\infty")
    # not as 1e-07, which is no decimal number
    return str(int(value)) if float(value).is_integer() else f"{Decimal(repr(value)):f}"


def _label(record: Record, choices: Mapping[str, str], *, needs_label: bool = True) -> str:
    """Return the label, on which all columns with an answer must agree; empty if there is none and none is needed."""
    columns = _present(record, ANSWER) or [name for name in ANSWER if name in record]
    if choices and columns:
        return _agreed({name: _chosen(record, name, choices) for name in columns})
    if "answerKey" in columns:
        raise RowError("it has `answerKey` and no `choices`; add the choices, or write the answer as `answer`")
    if columns:
        return _agreed({name: _final(record, name) for name in columns})
    boxed = None if _is_missing(record.get("solution")) else extract_boxed(_text(record, "solution"))
    if boxed is None and not needs_label:
        return ""
    if boxed is None:
        raise RowError(
            "it has no `answer`, and no \\boxed{} in `solution`; add one of them (its columns are "
            f"{', '.join(record)})"
        )
    return boxed


def _final(record: Record, name: str) -> str:
    if name == "final_answer":  # OlympiadBench: a list of texts in dollar signs
        values = record[name] if isinstance(record[name], list) else [record[name]]
        if len(values) != 1:
            raise RowError(f"`{name}` has {len(values)} answers and a problem needs one; write one label for all")
        return read_answer({name: values[0]}, name).strip().strip("$")
    answer = read_answer(record, name)
    _, marks, final = answer.rpartition("#### ")  # GSM8K: the working, then "#### " and the number
    return final.strip().replace(",", "") if marks else answer


def _choices(record: Record) -> dict[str, str]:
    """Return the text of each choice by its label, empty if the row has no choices."""
    columns = _present(record, CHOICES)
    if not columns:
        return {}
    name, choices = columns[0], record[columns[0]]
    labels: Any
    if len(columns) > 1:
        raise RowError(f"it has `{columns[0]}` and `{columns[1]}`; keep one of them")
    if isinstance(choices, Mapping) and set(choices) == {"label", "text"}:  # ARC
        labels, texts = choices["label"], choices["text"]
    elif isinstance(choices, Mapping):
        labels = _present(choices, list(choices))  # a parquet file has null for a choice of other rows
        texts = [choices[label] for label in labels]
    else:
        labels, texts = list(string.ascii_uppercase), choices
        labels = labels[: len(texts)] if isinstance(texts, list) else labels
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts) or not texts:
        raise RowError(f"`{name}` is not a list of at most 26 texts, nor a mapping of labels to texts; write it as one")
    return {_text({name: label}, name): _text({name: text}, name) for label, text in zip(labels, texts, strict=True)}


def _chosen(record: Record, name: str, choices: Mapping[str, str]) -> str:
    """Return the label of the choice that an answer names: by label, by number from 0, or by text."""
    value, labels = record[name], list(choices)
    if isinstance(value, int) and not isinstance(value, bool) and name != "answerKey" and str(value) not in choices:
        matching = labels[value : value + 1] if value >= 0 else []
    else:
        answer = read_answer(record, name)
        by_text = [label for label, text in choices.items() if text.strip() == answer.strip()]
        matching = [answer] if answer in choices else by_text if name != "answerKey" else []
    if len(matching) != 1:
        raise RowError(f"`{name}` is {value!r}, which is not one of the choices {', '.join(labels)}; correct it")
    return matching[0]


def _agreed(texts: Mapping[str, str]) -> str:
    """Return the one text that these columns have."""
    distinct = list(dict.fromkeys(text.strip() for text in texts.values()))
    if len(distinct) > 1:
        columns = " and ".join(f"`{name}`" for name in texts)
        raise RowError(f"{columns} differ, and a problem has one; remove the columns that are not meant")
    return next(iter(texts.values()))


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"`{name}` is {value!r}, not a text; write it as text")
    return value


def _name(record: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return the first of these columns that has a value, as text."""
    present = _present(record, columns)
    return str(record[present[0]]) if present else ""


def _present(record: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return those columns that have a value and are not blank."""
    values = ((name, record.get(name)) for name in columns)
    return [
        name for name, value in values if not _is_missing(value) and not (isinstance(value, str) and not value.strip())
    ]


def _is_missing(value: object) -> bool:
    """Return whether a cell has no value: null, or NaN as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
