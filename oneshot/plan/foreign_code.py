"""A sweep's cells -> the parts that are not ours, each checked to exist; and a line for each that `plan` prints."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oneshot.config.file import SweepFile
from oneshot.errors import DataError
from oneshot.plan.cells import Cell
from oneshot.plan.rank_rules import RULES, rule_call
from oneshot.tasks import foreign, sets
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.called_sets import code_of
from oneshot.tasks.examples import sources
from oneshot.tasks.functions import function_call, functions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part that is not ours, as a sweep file names it."""

    name: str
    call: str
    role: str  # what of it is identified


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
            parts.append(_Part(name=by, call=rule_call(by), role="whose choice of examples is part of the keys"))
    roles: dict[tuple[str, str], list[str]] = {}
    for part in dict.fromkeys(parts):
        roles.setdefault((part.name, part.call), []).append(part.role)
    lines = []
    for (name, call), of_part in roles.items():
        source = foreign.find(call)
        shown = call if name == call else f"{name}, {call}"
        lines.append(
            f"runs foreign code: {shown} of {source.path} (sha256 {source.digest[:16]}), {' and '.join(of_part)}"
        )
    return lines


def _parts_of(cell: Cell) -> Iterator[_Part]:
    config = cell.config
    for path, name, kind in functions_of(config):
        role = "which is part of the keys" if path.startswith("reward.") else "which is part of the suites' digests"
        yield _Part(name=name, call=function_call(name, kind), role=role)
    for name, call in cell.templates.items():
        yield _Part(name=name, call=call, role="whose text is in place of its name")
    trained = sources(config.examples) if cell.waits_for is None and config.script is None else set()
    for source in sorted(each for each in trained if sets.is_called(each)):
        yield _Part(name=source, call=code_of(source).call, role="whose problems are part of the keys")
    for source in sorted({suite.source for suite in load_suites(config) if sets.is_called(suite.source)}):
        yield _Part(name=source, call=code_of(source).call, role="whose problems are part of the suites' digests")
