"""Results and verdicts of a sweep -> their tables on a terminal."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Column
from rich.text import Text

from oneshot.cli.tables import Fitted, plain_table
from oneshot.logs import printable
from oneshot.report.cells import CellLine
from oneshot.report.compare import Line, SweepComparison
from oneshot.report.evidence import Difference
from oneshot.report.page import beside_texts, effect_text, interval_text, p_text, where_text
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim

STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow", "interim": "cyan"}


def cells_table(lines: Sequence[CellLine]) -> Fitted:
    """Return each cell's accuracy before and after training, and its gain with an interval."""
    axes = list(map(printable, lines[0].cell)) if lines else []
    table = plain_table([*axes, "suite"], ("seeds", "start", "last", "gain", "95% interval"))
    for line in lines:
        table.add_row(
            *map(printable, line.cell.values()),
            printable(line.suite),
            f"{line.last.num}/{line.num_planned}",
            f"{line.start.mean:.3f}" if line.start else "-",
            f"{line.last.mean:.3f}",
            f"{line.gain.mean:+.3f}" if line.gain else "-",
            _interval(line.gain),
        )
    return Fitted(table=table, optional=(*_only_suite(lines), "start"), all_in="the report")


def _interval(interval: Interval | Difference | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "-"
    return f"{interval.low:+.3f} to {interval.high:+.3f}"


def verdict_table(judged: Sequence[JudgedClaim]) -> Fitted:
    """Return each claim's verdict, effect and interval; accuracies in points."""
    numbers = ("effect", "95% interval", "p", "p, Holm", "seeds", "problems")
    table = plain_table(("claim", Column("verdict", no_wrap=True)), numbers)
    for claim in judged:
        table.add_row(
            printable(_full_name(claim)),
            Text(claim.verdict, style=STYLES[claim.verdict]),
            effect_text(claim, claim.effect) or "-",
            interval_text(claim) or "-",
            p_text(claim.p_value) or "-",
            p_text(claim.p_holm) or "-",
            str(claim.num_seeds),
            "-" if claim.num_problems is None else str(claim.num_problems),
        )
    return Fitted(table=table, optional=("p", "problems"))


def _full_name(claim: JudgedClaim) -> str:
    return f"{claim.name} ({where_text(claim)})" if claim.cells else claim.name


def note_lines(judged: Sequence[JudgedClaim]) -> list[str]:
    """Return what stands beside the verdicts and the notes on them, each once with the claims it belongs to."""
    beside = [
        printable(f"{_full_name(claim)}: {'; '.join(texts)}") for claim in judged if (texts := beside_texts(claim))
    ]
    claims: dict[str, list[str]] = {}
    for claim in judged:
        for note in claim.notes:
            claims.setdefault(note, []).append(_full_name(claim))
    return beside + [
        printable(f"note: {note}" if len(names) == len(judged) else f"note: {', '.join(names)}: {note}")
        for note, names in claims.items()
    ]


def comparison_table(comparison: SweepComparison, *, a: str, b: str) -> Group:
    """Return the common cells of two sweeps after the last step, with the difference b - a, and what is true of all."""
    sides = [Column(printable(name), justify="right", overflow="fold", min_width=6) for name in (a, b)]
    table = plain_table(("cell", "suite", *sides), ("b - a", "95% interval", "p, Holm", "seeds"), "note")
    notes = {line.note for line in comparison.lines}
    common = notes.pop() if len(notes) == 1 else ""
    for line in comparison.lines:
        difference = line.difference
        table.add_row(
            printable(line.cell),
            printable(line.suite),
            f"{line.a.mean:.3f}",
            f"{line.b.mean:.3f}",
            "-" if difference is None else f"{difference.effect:+.3f}",
            _interval(difference),
            p_text(line.p_holm) or "-",
            "-" if difference is None else str(difference.num_seeds),
            "" if common else printable(line.note),
        )
    fitted = Fitted(table=table, optional=(*_only_suite(comparison.lines), "p, Holm"))
    return Group(fitted, Text(printable(common))) if common else Group(fitted)


def comparison_lines(comparison: SweepComparison, *, a: str, b: str) -> list[str]:
    """Return what the table leaves out, and why."""
    sides = ((a, comparison.only_a), (b, comparison.only_b))
    only = [f"only in {side}: {', '.join(cells)}" for side, cells in sides if cells]
    return [printable(line) for line in (*comparison.notes, *only)]


def _only_suite(lines: Sequence[CellLine] | Sequence[Line]) -> list[str]:
    """Return the column that a narrow terminal needs least: that of the suite, if there is only one."""
    return ["suite"] if len({line.suite for line in lines}) == 1 else []
