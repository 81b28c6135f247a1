"""A sweep's cells -> the parts that are not ours, each checked to exist; and a line for each that `plan` prints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oneshot.config.examples import RowExample, SetExamples, WrittenExample
from oneshot.config.file import SweepFile
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.plan.cells import PLACEHOLDER, Cell
from oneshot.plan.rank_rules import RULES, rule_call
from oneshot.tasks import foreign, sets
from oneshot.tasks.called_sets import code_of
from oneshot.tasks.functions import function_call, functions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part that is not ours, as a sweep file names it."""

    name: str
    call: str
    what: str  # what of it is identified, with its verb
    part_of: str  # what that is part of


def check_functions(cell: Cell, sweep: SweepFile) -> None:
    """Check that a cell's rewards and graders are on this machine.

    Raises SweepFileError: one is not; names the place that set it.
    """
    for path, name, kind in functions_of(cell.config):
        try:
            foreign.find(function_call(name, kind))
        except DataError as error:
            raise sweep.source.error(cell.place(path), str(error)) from error


def foreign_code(sweep: SweepFile, cells: Sequence[Cell]) -> list[str]:
    """Return a line for each part of a sweep that is foreign code: its name, its place and what identifies it."""
    parts = [part for cell in cells for part in _parts_of(cell)]
    for _, _, named in sweep.config.named_cells():
        if named.from_rank is not None and named.from_rank.by not in RULES:
            by = named.from_rank.by
            parts.append(_Part(name=by, call=rule_call(by), what="choice of examples is", part_of="the keys"))
    places: dict[tuple[str, str, str], list[str]] = {}
    for part in dict.fromkeys(parts):
        places.setdefault((part.name, part.call, part.what), []).append(part.part_of)
    lines = []
    for (name, call, what), part_of in places.items():
        source = foreign.find(call)
        shown = call if name == call else f"{name}, {call}"
        where = f"{source.path} (sha256 {source.digest[:16]})"
        lines.append(f"runs foreign code: {shown} of {where}, whose {what} part of {' and of '.join(part_of)}")
    return lines


def _parts_of(cell: Cell) -> Iterator[_Part]:
    config = cell.config
    for path, name, kind in functions_of(config):
        part_of = "the keys" if path.startswith("reward.") else "the suites' digests"
        yield _Part(name=name, call=function_call(name, kind), what="source is", part_of=part_of)
    for name, call in cell.templates.items():
        yield _Part(name=name, call=call, what="text is", part_of="the trials")
    for source, part_of in _sets_of(config):
        if sets.is_called(source) and not (cell.waits_for and source.startswith(PLACEHOLDER)):
            yield _Part(name=source, call=code_of(source).call, what="problems are", part_of=part_of)


def _sets_of(config: TrialConfig) -> Iterator[tuple[str, str]]:
    """Yield each set that a trial names, by itself or by a row, and what its problems are part of."""
    for example in config.examples:
        if not isinstance(example, WrittenExample):
            yield _without_row(_name_of(example)), "the keys"
    for shot in config.prompt.shots:
        if shot.row is not None:
            yield _without_row(shot.row), "the keys"
    for suite in config.eval.suites.values():
        if suite.source is not None:
            yield suite.source, "the suites' digests"


def _name_of(example: str | RowExample | SetExamples) -> str:
    if isinstance(example, str):
        return example
    return example.row if isinstance(example, RowExample) else example.set


def _without_row(name: str) -> str:
    source, _, row = name.rpartition(":")
    return source if row.isdecimal() else name
