"""`examples` of an SFT trial -> demonstrations: each problem with a text to learn, and the digest of each.

A row has at most one source of solutions: what the sweep file gives, else the column that its set is known for, else
`messages`, else `solution`. Generated problems have a worked text. Completions that a model samples (`from`) are drawn
when the trial begins; until then only what decides them has a digest.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from oneshot.config.examples import POLICY, Example, SampledSolutions, SolutionColumn, SolutionTexts
from oneshot.errors import DataError
from oneshot.tasks import arithmetic, sets
from oneshot.tasks.columns import MESSAGES, RowError, read_solution
from oneshot.tasks.examples import ExampleRow, example_rows, row_content, train_problem
from oneshot.tasks.problems import Problem, content_digest, text_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A problem with a text to learn: a solution, and the thinking before it, which may be empty."""

    problem: Problem
    solution: str
    thinking: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrated:
    """What is known of an SFT trial's examples before it runs."""

    digests: tuple[str, ...]  # of each demonstration, or of what decides sampled ones
    provisional: tuple[str, ...]  # sets that are not fetched, so that only names have digests


Sampled = Mapping[str, Sequence[str]]
"""Id of an example -> the completions that were sampled and kept as its solutions."""


def identify_solutions(examples: Sequence[Example], models: Mapping[str, str]) -> Demonstrated:
    """Return the digests of an SFT trial's demonstrations; `models` has the digest of each sampling model.

    Raises DataError: a row has no solution, or an empty one; says which columns it has.
    """
    digests: list[str] = []
    provisional: set[str] = set()
    contents_of, digests_of = cache(sets.contents), cache(column_digests)  # within this call: files may change
    for row in example_rows(examples):
        content, source = content_digest(row_content(row, contents_of)), _source(row)
        if isinstance(source, SampledSolutions):
            rule = [source.from_, source.keep, source.samples, source.seed, models.get(source.from_, "")]
            digests.append(text_digest(json.dumps([content, rule])))
        elif row.problem is None and isinstance(source, SolutionColumn):
            of_column = digests_of(row.source, source)
            if of_column is None:
                provisional.add(row.source)
            digests.append(text_digest(json.dumps([content, of_column[row.row] if of_column else str(source)])))
        else:
            digests += [text_digest(json.dumps([content, *texts])) for texts in _texts(row, source)]
    return Demonstrated(digests=tuple(digests), provisional=tuple(sorted(provisional)))


def num_demonstrations(examples: Sequence[Example]) -> int | None:
    """Return the number of demonstrations; None if a model samples some of them.

    Raises DataError: an example or its solution does not exist.
    """
    sources = [_source(row) for row in example_rows(examples)]
    if any(isinstance(source, SampledSolutions) for source in sources):
        return None
    return sum(len(source.texts) if isinstance(source, SolutionTexts) else 1 for source in sources)


def size_of_solutions(examples: Sequence[Example]) -> tuple[int | None, list[int]]:
    """Return the number of demonstrations (None: unknown), and the characters of each text that is here."""
    try:
        number = num_demonstrations(examples)
        texts = load_demonstrations([each for each in examples if not is_sampled([each])], None)
    except DataError:  # a ranking is not known yet, or data are not here
        return None, []
    return number, [len(each.thinking) + len(each.solution) for each in texts]


def sampling_rules(examples: Sequence[Example]) -> list[SampledSolutions]:
    """Return the rule of each example whose solutions are sampled. Needs neither data nor a ranking."""
    given = (example.solution for example in examples if not isinstance(example, str))
    return [solution for solution in given if isinstance(solution, SampledSolutions)]


def is_sampled(examples: Sequence[Example]) -> bool:
    """Return whether a model samples solutions of these examples."""
    return bool(sampling_rules(examples))


def sampling_models(examples: Sequence[Example]) -> set[str]:
    """Return `from` of every example whose solutions a model samples, without the trial's own model."""
    return {rule.from_ for rule in sampling_rules(examples)} - {POLICY}


def to_sample(examples: Sequence[Example]) -> list[tuple[Problem, SampledSolutions]]:
    """Return each problem whose solutions a model samples, with the label that the trial trains with."""
    rows = example_rows(examples)
    return [(train_problem(row), row.solution) for row in rows if isinstance(row.solution, SampledSolutions)]


def load_demonstrations(examples: Sequence[Example], sampled: Sampled | None) -> tuple[Demonstration, ...]:
    """Return the demonstrations of an SFT trial, in the order of its examples.

    An example of which no sampled completion was kept has none. None for `sampled`: nothing is sampled yet.

    Raises DataError: a row or its solution does not exist, or nothing is left to learn.
    """
    demonstrations: list[Demonstration] = []
    rules: list[SampledSolutions] = []
    for row in example_rows(examples):
        problem, source = train_problem(row), _source(row)
        if isinstance(source, SampledSolutions):
            rules.append(source)
            texts = [("", text) for text in (sampled or {}).get(problem.id, ())]
        else:
            texts = _texts(row, source)
        demonstrations += [Demonstration(problem=problem, solution=text, thinking=thinking) for thinking, text in texts]
    if rules and sampled is not None and not demonstrations:
        raise DataError(
            f"examples: none of {rules[0].samples} completions of {rules[0].from_} for each problem is kept "
            f"(keep: {rules[0].keep}); raise `samples`, set `keep: any`, or choose other examples"
        )
    return tuple(demonstrations)


def column_digests(source: str, column: SolutionColumn) -> tuple[str, ...] | None:
    """Return the digest of each row's text in a set's columns; None if the set is not here and none are recorded."""
    recorded = sets.recorded(recorded_name(source, column))
    if recorded is not None:
        return tuple(digest for (digest,) in recorded)
    base, _ = sets.parts_of(source)
    if sets.is_missing(base):
        return None
    return tuple(text_digest(json.dumps(texts)) for texts in _columns(source, column))


def recorded_name(source: str, column: SolutionColumn) -> str:
    """Return the name under which a sweep records the digests of a set's solutions."""
    return f"{source}#{column.column}#{column.thinking or ''}"


def solution_columns(examples: Sequence[Example]) -> set[tuple[str, SolutionColumn]]:
    """Return each set whose columns an SFT trial learns, with the columns."""
    pairs = ((row.source, _source(row)) for row in example_rows(examples) if row.problem is None)
    return {(source, column) for source, column in pairs if isinstance(column, SolutionColumn)}


def _texts(row: ExampleRow, source: SolutionTexts | SolutionColumn) -> list[tuple[str, str]]:
    """Return (thinking, solution) of each text of a row."""
    if isinstance(source, SolutionTexts):
        return [("", text) for text in source.texts]
    if row.problem is None:
        return [_columns(row.source, source)[row.row]]
    expression = row.problem.id.partition(":")[2]
    thinking = "" if source.thinking is None else arithmetic.COLUMNS[source.thinking](expression)
    return [(thinking, arithmetic.COLUMNS[source.column](expression))]


def _source(row: ExampleRow) -> SolutionTexts | SolutionColumn | SampledSolutions:
    """Return where a row's solution comes from. Raises DataError: it has none."""
    given = row.solution
    if isinstance(given, str):
        return SolutionTexts(texts=[given])
    if isinstance(given, SolutionTexts | SampledSolutions):
        return given
    if row.answer is not None or row.wrong_seed is not None:
        raise DataError(f"{row.id}: a row with another label needs a `solution` of its own; write its text")
    if row.source == "arithmetic" and row.problem is not None:
        column = given or SolutionColumn(column="worked")
        if unknown := {column.column, column.thinking or column.column} - arithmetic.COLUMNS.keys():
            has = ", ".join(arithmetic.COLUMNS)
            raise DataError(f"{row.id}: generated problems have no column {min(unknown)!r}; they have {has}")
        return column
    if row.problem is not None and given is not None:
        raise DataError(f"{row.id}: a written problem has no columns; write the text as its `solution`")
    if row.problem is not None:
        raise DataError(
            f"{row.id}: it has no solution, which train.method: sft learns; write its text, or sample it "
            "by solution: {from: policy}"
        )
    return given or _default_column(row)


def _default_column(row: ExampleRow) -> SolutionColumn:
    base, _ = sets.parts_of(row.source)
    known = sets.KNOWN.get(base)
    if known is not None and known.solution:
        return SolutionColumn(column=known.solution, thinking=known.thinking or None)
    usual = [SolutionColumn(column=name) for name in (MESSAGES, "solution")]
    for column in usual:
        if sets.recorded(recorded_name(row.source, column)) is not None:
            return column
    if known is None and sets.is_missing(base):
        return usual[-1]
    columns = list(sets.records(base)[row.row]) if known is None else []
    for column in usual:
        if column.column in columns:
            return column
    has = f"; its columns are {', '.join(columns)}" if columns else ""
    raise DataError(
        f"{row.id}: it has no solution, which train.method: sft learns{has}; name a column by {{set: {row.source}, "
        f"solution: COLUMN}}, write {{row: {row.id}, solution: TEXT}}, or sample it by solution: {{from: policy}}"
    )


def _columns(source: str, column: SolutionColumn) -> tuple[tuple[str, str], ...]:
    """Return (thinking, solution) of each row of a set. Raises DataError: names the set, the row and the column."""
    base, _ = sets.parts_of(source)
    if sets.is_missing(base):
        raise DataError(f"{source}: not in {sets.data_folder().absolute()}; run `oneshot fetch {base}`")
    return _read_columns(base, *sets.read_version(base), column)


@lru_cache(maxsize=16)
def _read_columns(base: str, _path: Path, _mtime_ns: int | str, column: SolutionColumn) -> tuple[tuple[str, str], ...]:
    texts = []
    for number, record in enumerate(sets.records(base)):
        try:
            thinking = "" if column.thinking is None else read_solution(record, column.thinking)
            texts.append((thinking, read_solution(record, column.column)))
        except RowError as error:
            raise DataError(f"{base}:{number}: {error}") from error
    return tuple(texts)
