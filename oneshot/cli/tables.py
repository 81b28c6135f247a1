"""Stores and clusters -> their tables on a terminal: sweeps, trials, disk space, submissions, checks, rankings.

Also what all tables of the command line share.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.plan.rank_rules import Ranked
    from oneshot.store.gc import Holding
    from oneshot.sweep.cluster.jobs import Submission
    from oneshot.sweep.findings import Finding
    from oneshot.sweep.status import SweepStatus


LARGE = 100_000  # columns; nothing is cut to it
MOST_LINES = 60  # most lines of a table on a terminal; at 10,000 trials nobody would find the totals below it


def plain_table(texts: Sequence[str | Column], numbers: Sequence[str] = (), *last: str) -> Table:
    """Return an empty table without borders: text columns first, then right-aligned numbers, then text again.

    On a narrow terminal texts get more lines, and numbers stay whole.
    """
    columns = [Column(each, overflow="fold") if isinstance(each, str) else each for each in (*texts, *last)]
    right = [Column(name, justify="right", no_wrap=True) for name in numbers]
    columns[len(texts) : len(texts)] = right
    return Table(*columns, box=None, pad_edge=False, header_style="dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A table that leaves out columns on a terminal that is too narrow for it: empty ones first, then `optional`.

    It says which columns with numbers it left out. On a terminal, a long table ends with the number of further lines.
    """

    table: Table
    optional: Sequence[str] = ()  # headers, the least important first
    all_in: str = ""  # where a long table's other lines are

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, as rich asks for it."""
        num_more = self.table.row_count - MOST_LINES if self.all_in and options.is_terminal else 0
        table = self.table if num_more <= 0 else _of(self.table.columns, most=MOST_LINES)
        columns = list(table.columns)
        empty = [column for column in columns if not any(str(cell).strip("-") for cell in column.cells)]
        named = [column for name in self.optional for column in columns if column.header == name]
        for column in (*empty, *named):
            if Measurement.get(console, options.update(max_width=LARGE), table).maximum <= options.max_width:
                break
            columns = [kept for kept in columns if kept is not column]
            table = _of(columns)
        yield table
        if num_more > 0:
            yield Text(f"and {num_more:,} more; {self.all_in} has all", style="dim")
        if hidden := [str(column.header) for column in named if column not in (*columns, *empty)]:
            yield Text(f"a wider terminal also shows: {', '.join(hidden)}", style="dim")


def _of(columns: Sequence[Column], *, most: int | None = None) -> Table:
    """Return a table of another table's columns, and of its first lines."""
    table = Table(*(column.copy() for column in columns), box=None, pad_edge=False, header_style="dim")
    for row in islice(zip(*(column.cells for column in columns), strict=True), most):
        table.add_row(*row)
    return table


def size(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit that fits."""
    amount, unit = float(num_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, bigger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration in the unit in which people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def findings_table(findings: Sequence["Finding"]) -> Table:
    """Return what a preflight checked, and what is wrong."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark = "bad" if finding.is_bad else "warning" if finding.is_warning else "ok"
        table.add_row(mark, finding.check, printable(finding.text))
    return table


def submissions_table(submissions: Sequence["Submission"]) -> Table:
    """Return the sweeps that were submitted to a cluster."""
    table = plain_table(("sweep", "submission", "status", "since", "storage"))
    for job in submissions:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_ms / 1000))
        table.add_row(job.sweep, job.id, job.status, since, job.storage)
    return table


def sharing_table(members: Sequence[Mapping[str, Any]]) -> Fitted:
    """Return the sweeps that share a cluster, by priority, with what they hold, may hold and have used."""
    table = plain_table(
        ("sweep", "user", "project"), ("priority", "share", "holds", "may hold", "waiting", "used", "cost"), "driver"
    )
    for row in members:
        unit = f"{row['unit']}s"
        cost = "" if row["cost"] is None else f"{row['cost']:,.2f}"
        table.add_row(
            row["sweep"],
            row["user"],
            row["project"],
            str(row["priority"]),
            f"{row['share']:g}",
            f"{row['held']:g} {unit}",
            f"{row['granted']:g}",
            str(row["num_waiting"]),
            f"{row['used_s'] / 3600:,.2f} {row['unit']}-hours",
            cost,
            row["driver"],
        )
    return Fitted(table=table, optional=("driver", "may hold"))


def ranking_table(ranked: Sequence["Ranked"]) -> Table:
    """Return the ranked examples, best first."""
    table = plain_table((Column("rank", justify="right"), "example"), ("score", "variance", "std", "mean", "visits"))
    for place, row in enumerate(ranked):
        numbers = (row.score, row.variance, row.std, row.mean)
        table.add_row(str(place + 1), row.example, *(f"{value:.4f}" for value in numbers), str(row.num_visits))
    return table


def status_table(status: "SweepStatus") -> Fitted:
    """Return the trials of a sweep that have not finished, failed and running ones first."""
    order = ("failed", "running", "pending", "stopped")
    unfinished = [trial for trial in status.trials if trial.state != "finished"]
    unfinished.sort(key=lambda trial: order.index(trial.state))
    longest = max((len(trial.label) for trial in unfinished), default=0)
    label = Column("trial", overflow="fold", min_width=min(longest, 40))
    table = plain_table((label, Column("state", no_wrap=True)), ("step", "steps/s", "left", "attempts"), "")
    for trial in unfinished:
        rate = "" if trial.steps_per_s is None else f"{trial.steps_per_s:.3g}"
        left = "" if trial.eta_s is None else f"{trial.eta_s:.0f} s"
        steps = f"{trial.step} of {trial.num_steps}"
        note = printable(trial.reason or trial.where)
        table.add_row(trial.label, trial.state, steps, rate, left, str(trial.attempts), note)
    return Fitted(table=table, optional=("steps/s", "attempts"), all_in="`--json`")


def sweeps_table(sweeps: Sequence["SweepStatus"]) -> Table:
    """Return the sweeps of a store, one a line."""
    states = list(sweeps[0].counts) if sweeps else []
    table = plain_table(("sweep", "phase", *states, "driver"))
    for sweep in sweeps:
        table.add_row(sweep.name, sweep.phase, *(str(sweep.counts[state]) for state in states), sweep.driver or "")
    return table


def holdings_table(holdings: Sequence["Holding"]) -> Fitted:
    """Return the disk space of each sweep, by kind of data."""
    kinds = list(holdings[0].bytes_by_kind) if holdings else []
    table = plain_table(("sweep",), ("trainings", "bytes", *kinds))
    for row in holdings:
        table.add_row(row.sweep, str(row.num_trainings), *map(size, (row.num_bytes, *row.bytes_by_kind.values())))
    return Fitted(table=table, optional=tuple(reversed(kinds)))
