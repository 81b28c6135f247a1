"""`examples` of a trial -> what each is by content, and the `Problem`s that the trial trains on.

An example is named by set and row (`dsr_sub:124`), never by a rank. A row may carry another label, a set may be taken
whole, drawn from, or given a share of wrong labels (as One-Shot-RLVR's Table 17).
"""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path

from oneshot.config.trial import Example, PromptConfig, RowExample, SetExamples, TrialConfig, WrittenExample
from oneshot.errors import DataError
from oneshot.tasks import arithmetic, sets
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Content, Problem, content_digest, text_digest

_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"-?(?:\\d?frac\{(?P<numerator>\d+)\}\{(?P<denominator>\d+)\})")
MAX_SHIFT = 10
"""Of a wrong label (One-Shot-RLVR, Table 17)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One example: a row of a set, or a problem that is its own."""

    source: str
    row: int = 0
    problem: Problem | None = None
    """Of generated and written problems, which need no file."""
    answer: str | None = None
    """Another label."""
    wrong_seed: str | None = None
    """Makes its label wrong."""

    @property
    def id(self) -> str:
        own = self.problem.id if self.problem is not None else f"{self.source}:{self.row}"
        return own if self.answer is None else f"{own}={self.answer}"

    @property
    def own(self) -> Problem:
        """The problem with its own label."""
        return self.problem if self.problem is not None else sets.load(self.source)[self.row]

    @property
    def label(self) -> str:
        """What the trial trains with."""
        if self.wrong_seed is not None:
            return mislabel(self.own.answer, random.Random(self.wrong_seed))
        return self.own.answer if self.answer is None else self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What examples are by content."""

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    prompts: tuple[str, ...]
    """sha256 (hex) of each prompt."""
    provisional: tuple[str, ...]
    """Sets of which nothing is known before they are fetched: the digests are of names then."""


def identify(examples: Sequence[Example]) -> Identity:
    """Names and digests of examples, from the data where they are at hand, else from what is shipped.

    Raises:
        DataError: no such set, file or row; says what is there.
    """
    rows = _rows(examples)
    contents = [_content(row) for row in rows]
    return Identity(
        ids=tuple(row.id for row in rows),
        digests=tuple(_digest(row, content) for row, content in zip(rows, contents, strict=True)),
        prompts=tuple(prompt for prompt, _ in contents),
        provisional=_unknown(rows),
    )


def _unknown(rows: Sequence[_Row]) -> tuple[str, ...]:
    """The sets of these rows of which only the name is known."""
    return tuple(sorted({row.source for row in rows if row.problem is None and sets.contents(row.source) is None}))


def load_examples(examples: Sequence[Example]) -> tuple[Problem, ...]:
    """The problems that a trial trains on, with the labels that it trains with.

    Raises:
        DataError: a set, file or row is not there.
    """
    return tuple(
        row.own if row.answer is None and row.wrong_seed is None else replace(row.own, id=row.id, answer=row.label)
        for row in _rows(examples)
    )


def load_row(name: str) -> Problem:
    """`"dsr_sub:124"`, `"arithmetic:47+38"` or `"path/to/file.parquet:124"` -> that problem.

    Raises:
        DataError: it names no row, or there is none of that name.
    """
    return _row(name).own


def load_shots(config: PromptConfig) -> tuple[tuple[str, str], ...]:
    """The worked problems of a prompt: what is asked, and the answer.

    Raises:
        DataError: one names a row that is not there.
    """
    return tuple((shot.problem or load_row(str(shot.row)).prompt, shot.completion) for shot in config.shots)


def identify_shots(config: PromptConfig) -> Identity:
    """Worked problems by content: a digest is of the problem and its answer."""
    named = [_row(shot.row) for shot in config.shots if shot.row is not None]
    contents = iter(_content(row)[0] for row in named)
    prompts = [next(contents) if shot.problem is None else text_digest(shot.problem) for shot in config.shots]
    return Identity(
        ids=tuple(shot.row or "written" for shot in config.shots),
        digests=tuple(text_digest(f"{p}\n{shot.completion}") for p, shot in zip(prompts, config.shots, strict=True)),
        prompts=tuple(prompts),
        provisional=_unknown(named),
    )


def check_fit(config: TrialConfig, num_examples: int) -> None:
    """Refuses examples that cannot share a step's groups.

    Raises:
        DataError: fewer examples than groups, which do not divide them.
    """
    num_groups = config.rollout.num_groups
    if 0 < num_examples <= num_groups and num_groups % num_examples:
        raise DataError(f"examples: {num_examples} examples do not share rollout.num_groups {num_groups} evenly")


def check_labels(examples: Sequence[Example], grader: Grader) -> None:
    """Refuses a label that is meant to be another one, and that a grader takes for the row's own.

    Raises:
        DataError: names the row, the label and the grader.
    """
    for row in _rows(examples):
        if row.answer is None and row.wrong_seed is None:
            continue
        own, given = row.own, row.label
        mend = "leave `answer` out, or give another" if row.wrong_seed is None else "set another seed"
        grade = grader.grade(f"\\boxed{{{given}}}", own.answer)
        if grade.strict is not False or grade.lenient is not False:
            which, verdict = ("strict", grade.strict) if grade.strict is not False else ("lenient", grade.lenient)
            told = f"takes it for the row's own {own.answer!r}" if verdict else f"cannot tell ({grade.reason})"
            raise DataError(f"{own.id}: the label {given!r} is not wrong: the {which} grader {told}; {mend}")


def mislabel(answer: str, rng: random.Random) -> str:
    """A wrong label of the same kind: a whole or decimal number, or the numerator or denominator of a fraction, moved
    by at most 10; in place of any other expression a whole number of three digits.
    """
    if _DECIMAL.fullmatch(answer):
        shift = rng.choice([shift for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift])
        return str((int if answer.lstrip("-").isdecimal() else Decimal)(answer) + shift)
    fraction = _FRACTION.fullmatch(answer)
    if fraction is None:
        return str(rng.randint(101, 999))
    start, end = fraction.span(rng.choice(["numerator", "denominator"]))
    value = int(answer[start:end])
    # neither itself nor 0, which would be no fraction; digits only, so that what stands around it still fits
    near = [value + shift for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift and value + shift > 0]
    return f"{answer[:start]}{rng.choice(near)}{answer[end:]}"


def _rows(examples: Sequence[Example]) -> list[_Row]:
    rows = [row for example in examples for row in _rows_of(example)]
    if len({row.id for row in rows}) < len(rows):
        twice = next(id_ for id_, times in Counter(row.id for row in rows).items() if times > 1)
        raise DataError(f"examples: {twice} stands twice; name each once")
    return rows


def _rows_of(example: Example) -> list[_Row]:
    if isinstance(example, WrittenExample):
        digest = text_digest(json.dumps([example.problem, example.answer]))
        problem = Problem(id=f"written:{digest[:8]}", prompt=example.problem, answer=example.answer)
        return [_Row(source="written", problem=problem)]
    if isinstance(example, RowExample):
        return [replace(_row(example.row), answer=example.answer)]
    if isinstance(example, SetExamples):
        return _drawn(example)
    return [_row(example)] if _names_a_row(example) else _drawn(SetExamples(set=example))


def _names_a_row(name: str) -> bool:
    source, _, row = name.rpartition(":")
    return bool(source) and (row.isdecimal() or not sets.is_url(name))


def _row(name: str) -> _Row:
    source, _, row = name.rpartition(":")
    if source == "arithmetic":
        return _Row(source=source, problem=arithmetic.problem(row))
    if not _names_a_row(name):
        raise DataError(f"{name}: names no row; write set:row, as dsr_sub:124{_rank_hint(name)}")
    if source in sets.PARTS:
        raise DataError(f"{name}: {source} is a choice of dsr_sub's rows; name the row as dsr_sub:{row}")
    sets.check_name(source)
    count = sets.num_rows(source)
    there = "" if count is None else f"; {source} has rows 0 to {count - 1}"
    if not row.isdecimal():
        raise DataError(f"{name}: row {row!r} is not a number{there}")
    if count is not None and int(row) >= count:
        raise DataError(f"{name}: no row {row}{there}")
    return _Row(source=source, row=int(row))


def _drawn(example: SetExamples) -> list[_Row]:
    if example.set == "arithmetic":
        rows = [_Row(source="arithmetic", problem=p) for p in arithmetic.draw(example.random, seed=example.seed)]
    else:
        if hint := _rank_hint(example.set):
            raise DataError(f"{example.set}: is no set{hint}")
        base, chosen = sets.parts_of(example.set)
        count = sets.num_rows(example.set)
        if count is None:
            raise DataError(f"{example.set}: how many rows it has is not known yet; `oneshot fetch {example.set}`")
        indices = tuple(range(count)) if chosen is None else chosen
        if example.random is not None:
            if example.random > count:
                raise DataError(f"{example.set}: {example.random} rows asked for, but it has {count}")
            indices = tuple(random.Random(f"{example.seed}").sample(indices, example.random))
        rows = [_Row(source=base, row=index) for index in indices]
    num_wrong = round(example.wrong * len(rows))
    wrong = set(random.Random(f"{example.seed} wrong").sample(range(len(rows)), num_wrong))
    return [
        replace(row, wrong_seed=f"{example.seed} {row.id}") if index in wrong else row for index, row in enumerate(rows)
    ]


def _content(row: _Row) -> Content:
    """sha256 (hex) of an example's prompt and label; of its name, where no more is known yet."""
    if row.problem is not None:
        prompt, answer = row.problem.content
    else:
        known = sets.contents(row.source)
        prompt, answer = (text_digest(f"{row.source}:{row.row}"), "") if known is None else known[row.row]
    return prompt, answer if row.answer is None else text_digest(row.answer)


def _digest(row: _Row, content: Content) -> str:
    digest = content_digest(content)
    return digest if row.wrong_seed is None else text_digest(f"{digest} wrong {row.wrong_seed}")


@cache
def aliases() -> dict[str, dict[str, str | int | float]]:
    """The paper's named examples: `pi_1` -> row, rank, label and what else is known of it."""
    found: dict[str, dict[str, str | int | float]] = json.loads(
        (Path(__file__).parent / "facts" / "aliases.json").read_text()
    )["examples"]
    return found


def _rank_hint(name: str) -> str:
    alias = aliases().get(name) or aliases().get(re.sub(r"^(pi)_?", r"\1_", name))
    return "" if alias is None else f"; the paper's {name} is {alias['row']}: name the row, since ranks are not unique"
