"""Gathered runs -> the report: a self-contained HTML page, JSON, figures, and the verdict as Markdown."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from oneshot.report.cells import by_cell, cell_label, finished, gains, level
from oneshot.report.completions import MAX_CHARS, side_by_side
from oneshot.report.figures import Picture, pictures
from oneshot.report.graders import graders_table
from oneshot.report.phenomena import tables
from oneshot.report.plots import MAX_CELLS, inline
from oneshot.report.published import published_tables
from oneshot.report.runs import Gathered, Run, primary_suite
from oneshot.report.stats import Interval
from oneshot.report.table import Table, Value
from oneshot.report.verdicts import JudgedClaim, caveats, verdicts
from oneshot.store.folder import Folder
from oneshot.tasks.measures import is_share
from oneshot.trial.state import TrialState
from oneshot.version import __version__

PAGE, DATA = "report.html", "report.json"
MAX_ROWS = 200  # most rows of a table on the page
KEPT = "report"  # folder of the report in the sweep's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdicts of a sweep, and the texts of its report."""

    judged: tuple[JudgedClaim, ...]
    files: dict[str, str]  # name -> text: the page, the JSON, the figures
    description: str  # markdown, with the verdict first

    @property
    def cannot_judge(self) -> list[JudgedClaim]:
        """Return the claims for which no seed has all the runs that they need."""
        return [claim for claim in self.judged if claim.effect is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReport:
    """The verdicts of the report that is kept in a sweep's folder, and the path of its page."""

    judged: tuple[JudgedClaim, ...]
    path: str


def kept_report(folder: Folder) -> KeptReport | None:
    """Return the report that was last kept, or None if there is none that this version can read."""
    data = folder.read_json(f"{KEPT}/{DATA}")
    try:
        judged = tuple(JudgedClaim(**fields) for fields in data["verdicts"]) if data is not None else None
    except TypeError:  # another version wrote it, with other fields
        return None
    return None if judged is None else KeptReport(judged=judged, path=f"{folder.path}/{KEPT}/{PAGE}")


def make_report(gathered: Gathered) -> Report:
    """Judge the claims, fill the tables, and draw the figures."""
    judged = verdicts(gathered)
    drawn = pictures(gathered, judged)
    measured = [
        table
        for table in (
            _axes_table(gathered),
            _accuracy_table(gathered),
            graders_table(gathered),
            *published_tables(gathered),
            *tables(gathered),
        )
        if table
    ]
    files = {
        PAGE: _page(gathered, judged, drawn, measured),
        DATA: json.dumps(_data(gathered, judged, measured), indent=1, sort_keys=True),
        **{f"{picture.name}.svg": picture.svg for picture in drawn},
    }
    return Report(judged=tuple(judged), files=files, description=description(gathered, judged))


def _accuracy_table(gathered: Gathered) -> Table | None:
    """Return the accuracy of every cell on every suite."""
    rows: list[tuple[Value, ...]] = []
    for runs in by_cell(gathered.runs):
        ended = finished(runs)
        for suite in runs[0].suites if ended else ():
            start, last = (level(ended, suite.name, at) for at in ("start", "last"))
            if last is not None:
                seeds = f"{len(ended)} of {len(runs)}"
                rows.append((cell_label(runs[0]), suite.name, seeds, start, last, gains(ended, suite.name)))
    if not rows:
        return None
    return Table(
        name="accuracy",
        title="Accuracy before and after",
        about="Strict pass@1 of finished trials. Intervals are over seeds alone: they are for these problems, and too "
        "narrow for others, which verdicts take into account. With one seed, or if all seeds agree, the interval is "
        "Wilson's over problems; a gain then has none. A group's row (@) is the mean of its suites.",
        columns=("cell", "suite", "seeds", "start", "last", "gain"),
        rows=tuple(rows),
    )


def _axes_table(gathered: Gathered) -> Table | None:
    """Return the mean accuracy by each axis, of a sweep with so many cells that nobody reads a row for each."""
    runs, suite = finished(gathered.runs), primary_suite(gathered)
    if suite is None or len(by_cell(runs)) <= MAX_CELLS:
        return None
    rows: list[tuple[Value, ...]] = []
    for axis in runs[0].cell:
        for name in dict.fromkeys(run.cell[axis] for run in runs):
            some = [run for run in runs if run.cell[axis] == name]
            start, last = (level(some, suite, at) for at in ("start", "last"))
            rows.append((axis, name, str(len(by_cell(some))), start, last, gains(some, suite)))
    return Table(
        name="axes",
        title="Accuracy by axis",
        about=f"Strict pass@1 on {suite}, mean over the finished cells that have the value, which are averaged at each "
        "seed; intervals as below. Values that do not have the same other cells are not comparable.",
        columns=("axis", "value", "cells", "start", "last", "gain"),
        rows=tuple(rows),
    )


def standing(gathered: Gathered) -> str:
    """Return the counts of trials: `17 of 18 trials finished, 1 failed`, and those of the search."""
    text = _standing(gathered.runs)
    return f"{text}; search: {_standing(gathered.searched)}" if gathered.searched else text


def _standing(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    others = (TrialState.FAILED, TrialState.STOPPED, TrialState.MISSING)
    finished = f"{counts[TrialState.FINISHED]} of {len(runs)} trials finished"
    return ", ".join([finished, *(f"{counts[state]} {state}" for state in others if counts[state])])


# --- as data ---


def _data(gathered: Gathered, judged: Sequence[JudgedClaim], measured: Sequence[Table]) -> dict[str, Any]:
    """Return the content of report.json."""
    return {
        "name": gathered.name,
        "question": gathered.question,
        "standing": standing(gathered),
        "claims_digest": gathered.frozen.digest,
        "claims_frozen_ms": gathered.frozen.frozen_ms,
        "verdicts": [claim.to_json() for claim in judged],
        "tables": [table.to_json() for table in measured],
        "trials": [
            {
                "label": run.label,
                "cell": run.cell,
                "seed": run.seed,
                "phase": phase,
                "key": run.key,
                "state": run.state,
                "reason": run.reason,
                "gpu_hours": run.gpu_hours,
                "accuracy": {
                    suite: {str(step): numbers.get("pass_at_1") for step, numbers in by_step.items()}
                    for suite, by_step in run.measured.items()
                },
            }
            for phase, runs in (("grid", gathered.runs), ("search", gathered.searched))
            for run in runs
        ],
        "environments": [environment for environment, _ in _environments(gathered.runs)],
    }


def _environments(runs: Sequence[Run]) -> list[tuple[Mapping[str, Any], int]]:
    """Return every environment that an attempt ran in, with its number of runs."""
    counts = Counter(json.dumps(environment, sort_keys=True) for run in runs for environment in run.environments)
    return [(json.loads(text), number) for text, number in counts.items()]


# --- as text ---


def effect_text(judged: JudgedClaim, number: float | None) -> str:
    """Return a difference as text: in points if the metric is a share, else in the metric's unit."""
    if number is None:
        return ""
    return f"{100 * number:+.1f}" if is_share(judged.metric) else f"{number:+.3g}"


def interval_text(judged: JudgedClaim) -> str:
    """Return the interval as text, such as `[+3.1, +8.0]`, or an empty text if there is none."""
    if judged.low is None and judged.high is None:
        return ""
    low, high = (effect_text(judged, end) or "no end" for end in (judged.low, judged.high))
    return f"[{low}, {high}]"


def p_text(p_value: float | None) -> str:
    """Return a p-value as text."""
    if p_value is None:
        return ""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def what_text(judged: JudgedClaim) -> str:
    """Return one line that says what was compared."""
    at_a, at_b = judged.at
    steps = f"at {at_a}" if at_a == at_b else f"a at {at_a}, b at {at_b}"
    parts = [judged.metric, "gain since the start" if judged.of == "gain" else "", steps]
    parts.append("" if judged.categories == "all" else f"{judged.categories} categories")
    parts.append("primary" if judged.is_primary else "")
    return ", ".join(filter(None, [*parts, f"expected {judged.expect}"]))


def beside_texts(judged: JudgedClaim) -> list[str]:
    """Return what stands beside a verdict, each a sentence: share, look, other cells, failed seeds, settings, base."""
    texts = []
    if judged.share is not None:
        share = judged.share
        ends = [share["low"], share["high"]]
        interval = "" if None in ends else f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
        of_a, of_b = judged.sides
        texts.append(f"{of_a} has {100 * share['mean']:.0f}%{interval} of {of_b}'s gain")
    if judged.look is not None:
        look, p_value = judged.look, judged.p_value
        decides = "" if p_value is None else f": p {p_value:.2g} {'<' if p_value < look['p_bound'] else '>='} "
        bound = f"{look['p_bound']:.2g}" if decides else ""
        texts.append(f"look {look['number']} of {look['of']}, after {look['seeds']} seeds{decides}{bound}")
    if judged.between is not None:
        low, high = (effect_text(judged, judged.between[name]) for name in ("low", "high"))
        tau = effect_text(judged, judged.between["tau"]).lstrip("+")
        texts.append(f"SD between the {judged.between['num']} cells {tau}; another cell is expected in [{low}, {high}]")
    if judged.without_failed is not None:
        other = judged.without_failed
        texts.append(
            f"without the seeds that failed: {effect_text(judged, other['effect']) or 'nothing'}, {other['verdict']}"
        )
    if judged.over_settings and judged.verdict != "interim":
        num = sum(other["verdict"] == "supported" for other in judged.over_settings)
        texts.append(f"supported under {num} of {len(judged.over_settings)} settings" + _exceptions(judged))
    if judged.base:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in judged.base.items())
        texts.append(f"at the start {shares}")
    return texts


def _exceptions(judged: JudgedClaim) -> str:
    """Return the settings under which a claim is not supported, if some are and some are not."""
    others = [other for other in judged.over_settings if other["verdict"] != "supported"]
    if not others or len(others) == len(judged.over_settings):
        return ""
    named = [" ".join(str(other[name]) for name in ("grader", "at") if name in other) for other in others]
    return f" (not {', '.join(named)})"


def where_text(judged: JudgedClaim) -> str:
    """Return the cells that the verdict is for, such as `model tiny-qwen2`."""
    return ", ".join(f"{axis} {cell}" for axis, cell in judged.cells.items())


def frozen_text(gathered: Gathered) -> str:
    """Return when the claims were recorded, relative to the sweep's trials."""
    frozen = gathered.frozen
    if frozen.frozen_at is None:
        return "The claims are not frozen: the sweep has not begun, or an older version of oneshot started it."
    warning = "" if frozen.is_intact else " The recorded claims no longer have this digest: somebody edited them."
    starts_ms = [run.started_ms for run in gathered.runs if run.origin == gathered.name and run.started_ms is not None]
    began = [started_ms for started_ms in starts_ms if frozen.frozen_ms is not None and started_ms < frozen.frozen_ms]
    when = f"after {len(began)} trials of the sweep had begun" if began else "before any trial of the sweep began"
    return f"Claims frozen {frozen.frozen_at}, {when}; sha256 {frozen.digest[:16]}.{warning}"


def description(gathered: Gathered, judged: Sequence[JudgedClaim]) -> str:
    """Return Markdown for MLflow: the question, the verdict, and where the full report is."""
    lines = [f"**{summary(judged)}** {_cell(gathered.question)} {standing(gathered)}.", ""]
    if judged:
        lines += ["| claim | verdict | effect | 95% interval | p (Holm) | seeds |", "|---|---|---|---|---|---|"]
        for claim in judged:
            name = f"{claim.name} ({where_text(claim)})" if claim.cells else claim.name
            effect, p_holm = effect_text(claim, claim.effect), p_text(claim.p_holm)
            texts = (name, f"**{claim.verdict}**", effect, interval_text(claim), p_holm)
            lines.append("| " + " | ".join([*map(_cell, texts), str(claim.num_seeds)]) + " |")
        lines += ["", "Effects on accuracies are in points. " + frozen_text(gathered)]
    else:
        lines.append("The sweep has no claims, so nothing is judged.")
    return "\n".join([*lines, "", "Full report: artifact `report/report.html`. Numbers: `report/report.json`."])


def summary(judged: Sequence[JudgedClaim]) -> str:
    """Return the counts: `Verdict: 6 of 7 supported (2 with reservations), 1 inconclusive; 1 amended, apart.`

    Claims that were added after the sweep began are counted apart.
    """
    frozen = [claim for claim in judged if not claim.is_amended]
    amended = f"; {len(judged) - len(frozen)} amended, apart" if len(frozen) < len(judged) else ""
    if not frozen:
        return f"No {'frozen ' if amended else ''}claims, so no verdict{amended}."
    counts = Counter(claim.verdict for claim in frozen)
    noted = sum(claim.verdict == "supported" and bool(claim.notes) for claim in frozen)
    supported = f"{counts.pop('supported', 0)} of {len(frozen)} supported"
    supported += f" ({noted} with reservations)" if noted else ""
    return (
        f"Verdict: {', '.join([supported, *(f'{number} {word}' for word, number in sorted(counts.items()))])}{amended}."
    )


def _cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    for mark in "\\`*_[]<>|~#":
        text = text.replace(mark, f"\\{mark}") if not text.startswith("**") else text
    return text.replace("\n", " ")


def _table_page(table: Table) -> dict[str, Any]:
    rows = [
        [_value(value, column, table.form) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows[:MAX_ROWS]
    ]
    num_more = max(0, len(table.rows) - MAX_ROWS)
    texts = {"name": table.name, "title": table.title, "about": table.about}
    return {**texts, "columns": table.columns, "rows": rows, "num_more": num_more}


def _value(value: Value, column: str, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    is_change = form == "change" or "gain" in column or " - " in column

    def number_text(number: float) -> str:
        if form == "number" or column.startswith(("hours", "points")):
            return f"{number:.3g}"
        return f"{100 * number:{'+' if is_change else ''}.1f}"

    if not isinstance(value, Interval):
        return number_text(value)
    if value.low is None or value.high is None:
        return number_text(value.mean)
    return f"{number_text(value.mean)} [{number_text(value.low)}, {number_text(value.high)}]"


def _page(
    gathered: Gathered, judged: Sequence[JudgedClaim], drawn: Sequence[Picture], measured: Sequence[Table]
) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    suite = primary_suite(gathered)
    beside, num_not_shown = side_by_side(gathered, suite) if suite is not None else ([], 0)
    environments = [
        {
            "versions": ", ".join(f"{name} {number}" for name, number in sorted(environment["versions"].items())),
            "gpu": environment["gpu"] or "none",
            "platform": environment["platform"],
            "num_runs": num_runs,
        }
        for environment, num_runs in _environments(gathered.runs)
    ]
    every = (*gathered.runs, *gathered.searched)
    return templates.get_template("page.html.j2").render(
        sweep=gathered,
        standing=standing(gathered),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        frozen=frozen_text(gathered),
        is_tiny=any(run.config["model"]["path"].startswith("tiny:") for run in gathered.runs),
        num_trials=len(every),
        absent=[run for run in every if run.state != "finished"],
        claims=judged,
        caveats=list(caveats(judged)),
        pictures=drawn,
        tables=[_table_page(table) for table in measured],
        beside=beside,
        num_not_shown=num_not_shown,
        limit=MAX_CHARS,
        environments=environments,
        **{
            text.__name__: text
            for text in (beside_texts, effect_text, inline, interval_text, p_text, what_text, where_text)
        },
    )
