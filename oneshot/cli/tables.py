"""What a sweep has found -> tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from oneshot.logs import printable
from oneshot.report.cells import CellLine
from oneshot.report.compare import SweepComparison
from oneshot.report.page import effect_text, interval_text, p_text, where_text
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim

STYLES = {"supported": "green", "contradicted": "red", "inconclusive": "yellow"}


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def cells_table(lines: Sequence[CellLine]) -> Table:
    """The cells of a sweep: accuracy before and after, and gain with its interval."""
    axes = list(map(printable, lines[0].cell)) if lines else []
    table = _table([*axes, "suite"], ("seeds", "start", "last", "gain", "95% interval"))
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
    return table


def _interval(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return "-"
    return f"{interval.low:+.3f} to {interval.high:+.3f}"


def verdict_table(judged: Sequence[JudgedClaim]) -> Table:
    """Every claim's verdict, effect and interval; accuracies in points."""
    table = _table(("claim", "", "verdict"), ("effect", "95% interval", "p", "p, Holm", "seeds", "problems"))
    for one in judged:
        table.add_row(
            printable(one.name),
            printable(where_text(one)),
            Text(one.verdict, style=STYLES[one.verdict]),
            effect_text(one, one.effect) or "-",
            interval_text(one) or "-",
            p_text(one.p_value) or "-",
            p_text(one.p_holm) or "-",
            str(one.num_seeds),
            "-" if one.num_problems is None else str(one.num_problems),
        )
    return table


def note_lines(judged: Sequence[JudgedClaim]) -> list[str]:
    """What must be known beside the verdicts: each note once, with the claims that it is of."""
    found: dict[str, list[str]] = {}
    for one in judged:
        name = f"{one.name} ({where_text(one)})" if one.cells else one.name
        for note in one.notes:
            found.setdefault(note, []).append(name)
    return [
        printable(f"note: {note}" if len(names) == len(judged) else f"note: {', '.join(names)}: {note}")
        for note, names in found.items()
    ]


def comparison_table(found: SweepComparison, *, a: str, b: str) -> Table:
    """Common cells of two sweeps after the last step, with the difference b - a."""
    numbers = (printable(a), printable(b), "b - a", "95% interval", "p, Holm", "seeds")
    table = _table(("cell", "suite"), numbers)
    table.add_column("note")
    for line in found.lines:
        apart = line.difference
        ends = "-" if apart is None or apart.low is None else f"{apart.low:+.3f} to {apart.high:+.3f}"
        table.add_row(
            printable(line.cell),
            printable(line.suite),
            f"{line.a.mean:.3f}",
            f"{line.b.mean:.3f}",
            "-" if apart is None else f"{apart.effect:+.3f}",
            ends,
            p_text(line.p_holm) or "-",
            "-" if apart is None else str(apart.num_seeds),
            printable(line.note),
        )
    return table


def comparison_lines(found: SweepComparison, *, a: str, b: str) -> list[str]:
    """What is not in the table, and why."""
    only = [f"only in {side}: {', '.join(cells)}" for side, cells in ((a, found.only_a), (b, found.only_b)) if cells]
    return [printable(line) for line in (*found.notes, *only)]
