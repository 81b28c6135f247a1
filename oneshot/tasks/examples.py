"""`examples` of a trial -> the digest of each example, and the `Problem`s that the trial trains on.

A set and a row name an example (`dsr_sub:124`), never a rank. A row may get another label. A set may be used whole or
sampled, and a share of its labels may be made wrong (One-Shot-RLVR, Table 17).
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache

from oneshot.config.examples import Example, RowExample, SetExamples, Solution, SolutionColumn, WrittenExample
from oneshot.config.trial import PromptConfig, TrialConfig
from oneshot.errors import DataError
from oneshot.tasks import arithmetic, sets
from oneshot.tasks.grading import Grader
from oneshot.tasks.problems import Content, Problem, content_digest, text_digest

_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"-?(?:\\d?frac\{(?P<numerator>\d+)\}\{(?P<denominator>\d+)\})")
MAX_SHIFT = 10  # largest change of a number in a wrong label (One-Shot-RLVR, Table 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRow:
    """One example: a row of a set, or a generated or written problem."""

    source: str
    row: int = 0
    problem: Problem | None = None  # A generated or written problem, which needs no file
    answer: str | None = None  # the label that replaces the row's own
    wrong_seed: str | None = None  # seed of a wrong label
    solution: Solution | None = None

    @property
    def id(self) -> str:
        """Return its name, with the label if that is not its own."""
        name = self.problem.id if self.problem is not None else f"{self.source}:{self.row}"
        return name if self.answer is None else f"{name}={self.answer}"

    @property
    def original(self) -> Problem:
        """Return the problem with its original label."""
        return self.problem if self.problem is not None else sets.load(self.source)[self.row]

    @property
    def label(self) -> str:
        """Return the label that the trial trains with."""
        if self.wrong_seed is not None:
            return mislabel(self.original.answer, random.Random(self.wrong_seed))
        return self.original.answer if self.answer is None else self.answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Names and digests of examples."""

    ids: tuple[str, ...]
    digests: tuple[str, ...]
    prompts: tuple[str, ...]  # sha256 (hex) of each prompt
    provisional: tuple[str, ...]
    """Sets whose contents are unknown until they are fetched; their digests are of names, not of contents."""


def identify(examples: Sequence[Example]) -> Identity:
    """Return the names and digests of examples, from the shipped digests or from the data.

    Raises DataError: there is no such set, file or row; the message lists what exists.
    """
    rows = example_rows(examples)
    contents_of = cache(sets.contents)  # within this call: files may change between two
    contents = [row_content(row, contents_of) for row in rows]
    return Identity(
        ids=tuple(row.id for row in rows),
        digests=tuple(_digest(row, content) for row, content in zip(rows, contents, strict=True)),
        prompts=tuple(prompt for prompt, _ in contents),
        provisional=_unknown(rows),
    )


def _unknown(rows: Sequence[ExampleRow]) -> tuple[str, ...]:
    """Return the sets of these rows whose contents are unknown."""
    sources = {row.source for row in rows if row.problem is None}
    return tuple(sorted(source for source in sources if sets.contents(source) is None))


def sources(examples: Sequence[Example]) -> set[str]:
    """Return the sets, paths and URLs that have rows among the examples."""
    return {row.source for row in example_rows(examples) if row.problem is None}


def load_examples(examples: Sequence[Example]) -> tuple[Problem, ...]:
    """Return the problems that a trial trains on, with the labels that it trains with.

    Raises DataError: a set, file or row does not exist.
    """
    return tuple(train_problem(row) for row in example_rows(examples))


def train_problem(row: ExampleRow) -> Problem:
    """Return the problem of a row with the label that a trial trains with."""
    if row.answer is None and row.wrong_seed is None:
        return row.original
    return replace(row.original, id=row.id, answer=row.label)


def present_examples(examples: Sequence[Example]) -> tuple[Problem, ...]:
    """Return those problems of a trial that are on this machine and have their own labels."""
    rows = (row for row in example_rows(examples) if row.answer is None and row.wrong_seed is None)
    is_here = cache(sets.is_here)  # within this call: files may come and go between two
    return tuple(row.original for row in rows if row.problem is not None or is_here(row.source))


def load_row(name: str) -> Problem:
    """Return the problem named `"dsr_sub:124"`, `"arithmetic:47+38"`, `"file.parquet:124"` or `"my_lab.sets:hard:3"`.

    Raises DataError: the name is not of a row, or the row does not exist.
    """
    return _row(name).original


def load_shots(config: PromptConfig) -> tuple[tuple[str, str], ...]:
    """Return the worked problems of a prompt as (problem, completion).

    Raises DataError: a shot names a row that does not exist.
    """
    return tuple((shot.problem or load_row(str(shot.row)).prompt, shot.completion) for shot in config.shots)


def identify_shots(config: PromptConfig) -> Identity:
    """Return the names and digests of worked problems; a digest is of the problem and its completion."""
    named = [_row(shot.row) for shot in config.shots if shot.row is not None]
    contents = iter(row_content(row)[0] for row in named)
    prompts = [next(contents) if shot.problem is None else text_digest(shot.problem) for shot in config.shots]
    return Identity(
        ids=tuple(shot.row or "written" for shot in config.shots),
        digests=tuple(text_digest(f"{p}\n{shot.completion}") for p, shot in zip(prompts, config.shots, strict=True)),
        prompts=tuple(prompts),
        provisional=_unknown(named),
    )


def check_fit(config: TrialConfig, num_examples: int) -> None:
    """Check that the examples can share a step's groups evenly.

    Raises DataError: there are fewer examples than groups, and they do not divide the groups.
    """
    num_groups = config.rollout.num_groups
    if 0 < num_examples <= num_groups and num_groups % num_examples:
        raise DataError(f"examples: {num_examples} examples cannot share rollout.num_groups {num_groups} evenly")


def check_labels(examples: Sequence[Example], grader: Grader) -> None:
    """Check that both graders call each replaced or wrong label wrong.

    Raises DataError: a grader accepts a label or cannot judge it; names the row, the label and the grader.
    """
    for row in example_rows(examples):
        if row.answer is None and row.wrong_seed is None:
            continue
        original, label = row.original, row.label
        hint = "leave `answer` out, or set another" if row.wrong_seed is None else "set another seed"
        grade = grader.grade(f"\\boxed{{{label}}}", original.answer)
        if grade.strict is not False or grade.lenient is not False:
            which, verdict = ("strict", grade.strict) if grade.strict is not False else ("lenient", grade.lenient)
            reason = f"finds it equal to {original.answer!r}" if verdict else f"cannot judge it ({grade.reason})"
            raise DataError(f"{original.id}: the label {label!r} is not wrong: the {which} grader {reason}; {hint}")


def mislabel(answer: str, rng: random.Random) -> str:
    """Return a wrong label of the same kind.

    A whole or decimal number, or the numerator or denominator of a fraction, changes by at most 10. Any other
    expression becomes a whole number of three digits.
    """
    if _DECIMAL.fullmatch(answer):
        shift = rng.choice([shift for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift])
        return str((int if answer.lstrip("-").isdecimal() else Decimal)(answer) + shift)
    fraction = _FRACTION.fullmatch(answer)
    if fraction is None:
        return str(rng.randint(101, 999))
    start, end = fraction.span(rng.choice(["numerator", "denominator"]))
    value = int(answer[start:end])
    # positive: a denominator may not be 0, and a minus sign would not fit into the text around the digits
    near = [value + shift for shift in range(-MAX_SHIFT, MAX_SHIFT + 1) if shift and value + shift > 0]
    return f"{answer[:start]}{rng.choice(near)}{answer[end:]}"


def example_rows(examples: Sequence[Example]) -> list[ExampleRow]:
    """Return the rows that examples name, in order. Raises DataError: one does not exist, or appears twice."""
    rows = [row for example in examples for row in _rows_of(example)]
    times = Counter(row.id for row in rows)
    if twice := next((name for name in times if times[name] > 1), None):
        raise DataError(f"examples: {twice} appears twice; list each example once")
    return rows


def _rows_of(example: Example) -> list[ExampleRow]:
    if isinstance(example, WrittenExample):
        digest = text_digest(json.dumps([example.problem, example.answer]))
        problem = Problem(id=f"written:{digest[:8]}", prompt=example.problem, answer=example.answer)
        return [ExampleRow(source="written", problem=problem, solution=example.solution)]
    if isinstance(example, RowExample):
        return [replace(_row(example.row), answer=example.answer, solution=example.solution)]
    if isinstance(example, SetExamples):
        return _rows_of_set(example)
    return [_row(example)] if _names_a_row(example) else _rows_of_set(SetExamples(set=example))


def _names_a_row(name: str) -> bool:
    source, _, row = name.rpartition(":")
    return bool(source) and (row.isdecimal() or not (sets.is_url(name) or sets.is_called(name)))


def _row(name: str) -> ExampleRow:
    source, _, row = name.rpartition(":")
    if source == "arithmetic":
        return ExampleRow(source=source, problem=arithmetic.problem(row))
    if not _names_a_row(name):
        raise DataError(f"{name}: names no row; write set:row, such as dsr_sub:124{_rank_hint(name)}")
    if source in sets.PARTS:
        raise DataError(f"{name}: {source} is a subset of dsr_sub's rows; name the row as dsr_sub:{row}")
    sets.check_name(source)
    count = sets.num_rows(source)
    hint = "" if count is None else f"; {source} has rows 0 to {count - 1}"
    if not row.isdecimal():
        raise DataError(f"{name}: row {row!r} is not a number{hint}")
    if count is not None and int(row) >= count:
        raise DataError(f"{name}: no row {row}{hint}")
    return ExampleRow(source=source, row=int(row))


def _rows_of_set(example: SetExamples) -> list[ExampleRow]:
    if example.set == "arithmetic":
        rows = [ExampleRow(source="arithmetic", problem=p) for p in arithmetic.draw(example.random, seed=example.seed)]
    else:
        if hint := _rank_hint(example.set):
            raise DataError(f"{example.set}: is not a set{hint}")
        base, chosen = sets.parts_of(example.set)
        count = sets.num_rows(example.set)
        if count is None:
            raise DataError(f"{example.set}: its number of rows is unknown; run `oneshot fetch {example.set}`")
        indices = tuple(range(count)) if chosen is None else chosen
        if example.random is not None:
            if example.random > count:
                raise DataError(f"{example.set}: random: {example.random} rows, but the set has {count}")
            indices = tuple(random.Random(f"{example.seed}").sample(indices, example.random))
        rows = [ExampleRow(source=base, row=index) for index in indices]
    solution = SolutionColumn(column=example.solution) if isinstance(example.solution, str) else example.solution
    num_wrong = round(example.wrong * len(rows))
    wrong = set(random.Random(f"{example.seed} wrong").sample(range(len(rows)), num_wrong))
    return [
        replace(row, solution=solution, wrong_seed=f"{example.seed} {row.id}" if index in wrong else None)
        for index, row in enumerate(rows)
    ]


def row_content(row: ExampleRow, contents_of: Callable[[str], Sequence[Content] | None] = sets.contents) -> Content:
    """Return the sha256 (hex) of an example's prompt and label, or of its name while the contents are unknown."""
    if row.problem is not None:
        prompt, answer = row.problem.content
    else:
        contents = contents_of(row.source)
        prompt, answer = (text_digest(f"{row.source}:{row.row}"), "") if contents is None else contents[row.row]
    return prompt, answer if row.answer is None else text_digest(row.answer)


def _digest(row: ExampleRow, content: Content) -> str:
    digest = content_digest(content)
    return digest if row.wrong_seed is None else text_digest(f"{digest} wrong {row.wrong_seed}")


@cache
def aliases() -> dict[str, dict[str, str | int | float]]:
    """Return the paper's named examples: `pi_1` -> its row, rank, label and more."""
    return dict(json.loads((sets.FACTS / "aliases.json").read_text())["examples"])


def _rank_hint(name: str) -> str:
    alias = aliases().get(name) or aliases().get(re.sub(r"^(pi)_?", r"\1_", name))
    return "" if alias is None else f"; the paper's {name} is {alias['row']}: write the row, since ranks are not unique"
