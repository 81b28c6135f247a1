"""Gathered runs -> the report: one HTML page that needs nothing else, JSON, figures, and the verdict as Markdown."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from oneshot.report.cells import by_cell, cell_label, finished, gains, level
from oneshot.report.completions import MAX_CHARS, side_by_side
from oneshot.report.figures import Picture, pictures
from oneshot.report.phenomena import Table, Value, primary_suite, published_tables, tables
from oneshot.report.plots import inline
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval
from oneshot.report.verdicts import JudgedClaim, verdicts
from oneshot.tasks.measures import is_share
from oneshot.trial.state import TrialState

PAGE, DATA = "report.html", "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is written of a sweep."""

    judged: tuple[JudgedClaim, ...]
    files: dict[str, str]
    """Name -> text: the page, the JSON, the figures."""
    description: str
    """Markdown: the verdict first."""

    @property
    def cannot_judge(self) -> list[JudgedClaim]:
        """Claims for which no seed has all of its runs."""
        return [one for one in self.judged if one.effect is None]


def make_report(gathered: Gathered) -> Report:
    """Judges, measures and draws."""
    judged = verdicts(gathered)
    drawn = pictures(gathered, judged)
    measured = [table for table in (_accuracy_table(gathered), *published_tables(gathered), *tables(gathered)) if table]
    files = {
        PAGE: _page(gathered, judged, drawn, measured),
        DATA: json.dumps(_data(gathered, judged, measured), indent=1, sort_keys=True),
        **{f"{picture.name}.svg": picture.svg for picture in drawn},
    }
    return Report(judged=tuple(judged), files=files, description=description(gathered, judged))


def _accuracy_table(gathered: Gathered) -> Table | None:
    """Every cell on every suite."""
    rows: list[tuple[Value, ...]] = []
    for those in by_cell(gathered.runs):
        ended = finished(those)
        for suite in those[0].suites if ended else ():
            start, last = (level(ended, suite.name, at) for at in ("start", "last"))
            if last is not None:
                seeds = f"{len(ended)} of {len(those)}"
                rows.append((cell_label(those[0]), suite.name, seeds, start, last, gains(ended, suite.name)))
    if not rows:
        return None
    return Table(
        name="accuracy",
        title="Accuracy before and after",
        about="Strict pass@1 of finished trials. Of one seed, or where all agree: Wilson's interval over problems.",
        columns=("cell", "suite", "seeds", "start", "last", "gain"),
        rows=tuple(rows),
    )


def standing(gathered: Gathered) -> str:
    """`17 of 18 trials finished, 1 failed`, and the same of a search's."""
    text = _standing(gathered.runs)
    return f"{text}; of the search {_standing(gathered.searched)}" if gathered.searched else text


def _standing(runs: Sequence[Run]) -> str:
    counts = Counter(run.state for run in runs)
    others = (TrialState.FAILED, TrialState.STOPPED, TrialState.MISSING)
    finished = f"{counts[TrialState.FINISHED]} of {len(runs)} trials finished"
    return ", ".join([finished, *(f"{counts[state]} {state}" for state in others if counts[state])])


# --- as data ---


def _data(gathered: Gathered, judged: Sequence[JudgedClaim], measured: Sequence[Table]) -> dict[str, Any]:
    """What report.json holds."""
    return {
        "name": gathered.name,
        "question": gathered.question,
        "standing": standing(gathered),
        "claims_digest": gathered.frozen.digest,
        "claims_frozen_ms": gathered.frozen.frozen_ms,
        "verdicts": [one.to_json() for one in judged],
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
        "environments": [one for one, _ in _environments(gathered.runs)],
    }


def _environments(runs: Sequence[Run]) -> list[tuple[Mapping[str, Any], int]]:
    """Every environment that an attempt ran in, with the number of runs."""
    counts: dict[str, int] = {}
    for run in runs:
        for one in run.environments:
            text = json.dumps(one, sort_keys=True)
            counts[text] = counts.get(text, 0) + 1
    return [(json.loads(text), number) for text, number in counts.items()]


# --- as people read it ---


def effect_text(judged: JudgedClaim, number: float | None) -> str:
    """A difference in points where the metric is a share, else as it is."""
    if number is None:
        return ""
    return f"{100 * number:+.1f}" if is_share(judged.metric) else f"{number:+.3g}"


def interval_text(judged: JudgedClaim) -> str:
    """`[+3.1, +8.0]`, or nothing."""
    if judged.low is None or judged.high is None:
        return ""
    return f"[{effect_text(judged, judged.low)}, {effect_text(judged, judged.high)}]"


def p_text(p_value: float | None) -> str:
    """A p-value as it is printed."""
    if p_value is None:
        return ""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def what_text(judged: JudgedClaim) -> str:
    """What was compared, in a line."""
    at_a, at_b = judged.at
    steps = f"at {at_a}" if at_a == at_b else f"a at {at_a}, b at {at_b}"
    parts = [judged.metric, "gain since the start" if judged.of == "gain" else "", steps]
    parts.append("" if judged.categories == "all" else f"{judged.categories} categories")
    return ", ".join(filter(None, [*parts, f"expected {judged.expect}"]))


def where_text(judged: JudgedClaim) -> str:
    """`model tiny-qwen2`."""
    return ", ".join(f"{axis} {cell}" for axis, cell in judged.cells.items())


def frozen_text(gathered: Gathered) -> str:
    """When the claims were put on record."""
    frozen = gathered.frozen
    if frozen.frozen_at is None:
        return "The claims were not frozen: the sweep has not begun, or began with a version that did not."
    broken = "" if frozen.is_intact else " They do not have that digest any more: the record was changed by hand."
    began = [run for run in gathered.runs if run.origin == gathered.name and _began_before(run, frozen.frozen_ms)]
    when = f"after {len(began)} trials of the sweep had begun" if began else "before any trial of the sweep began"
    return f"Frozen {frozen.frozen_at}, {when}; sha256 {frozen.digest[:16]}.{broken}"


def _began_before(run: Run, frozen_ms: int | None) -> bool:
    return run.started_ms is not None and frozen_ms is not None and run.started_ms < frozen_ms


def description(gathered: Gathered, judged: Sequence[JudgedClaim]) -> str:
    """Markdown for MLflow: question, verdict, where the rest is."""
    lines = [f"**{in_short(judged)}** {_cell(gathered.question)} {standing(gathered)}.", ""]
    if judged:
        lines += ["| claim | verdict | effect | 95% interval | p (Holm) | seeds |", "|---|---|---|---|---|---|"]
        for one in judged:
            name = f"{one.name} ({where_text(one)})" if one.cells else one.name
            texts = (name, f"**{one.verdict}**", effect_text(one, one.effect), interval_text(one), p_text(one.p_holm))
            lines.append("| " + " | ".join([*map(_cell, texts), str(one.num_seeds)]) + " |")
        lines += ["", "Effects of accuracies in points. " + frozen_text(gathered)]
    else:
        lines.append("The sweep has no claims: nothing is judged.")
    return "\n".join([*lines, "", "The whole report: artifact `report/report.html`; numbers: `report/report.json`."])


def in_short(judged: Sequence[JudgedClaim]) -> str:
    """`Verdict: 6 of 7 claims supported, 1 inconclusive.`"""
    if not judged:
        return "No claims, so no verdict."
    counts = Counter(one.verdict for one in judged)
    others = [f"{counts[verdict]} {verdict}" for verdict in ("contradicted", "inconclusive") if counts[verdict]]
    return "Verdict: " + ", ".join([f"{counts['supported']} of {len(judged)} supported", *others]) + "."


def _cell(text: str) -> str:
    """Text within a Markdown table, of which no mark is heeded."""
    for mark in "\\`*_[]<>|~#":
        text = text.replace(mark, f"\\{mark}") if not text.startswith("**") else text
    return text.replace("\n", " ")


def _table_page(table: Table) -> dict[str, Any]:
    rows = [
        [_value(value, column, table.form) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    return {"name": table.name, "title": table.title, "about": table.about, "columns": table.columns, "rows": rows}


def _value(value: Value, column: str, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    is_change = form == "change" or "gain" in column or " - " in column

    def number(one: float) -> str:
        if form == "number" or column.startswith(("hours", "points")):
            return f"{one:.3g}"
        return f"{100 * one:{'+' if is_change else ''}.1f}"

    if isinstance(value, Interval):
        ends = "" if value.low is None or value.high is None else f" [{number(value.low)}, {number(value.high)}]"
        return number(value.mean) + ends
    return number(value)


def _page(
    gathered: Gathered, judged: Sequence[JudgedClaim], drawn: Sequence[Picture], measured: Sequence[Table]
) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    suite = primary_suite(gathered)
    beside, num_not_shown = side_by_side(gathered, suite) if suite is not None else ([], 0)
    facts = {
        "name": gathered.name,
        "question": gathered.question,
        "reproduces": gathered.reproduces,
        "standing": standing(gathered),
        "made_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": version("oneshot"),
        "warnings": gathered.warnings,
        "frozen": frozen_text(gathered),
        "digest": gathered.frozen.digest,
        "yaml": gathered.yaml,
        "is_tiny": any(run.config["model"]["path"].startswith("tiny:") for run in gathered.runs),
        "num_trials": len(gathered.runs) + len(gathered.searched),
        "absent": [run for run in (*gathered.runs, *gathered.searched) if run.state != "finished"],
        "claims": [
            {
                "name": one.name,
                "where": where_text(one),
                "what": what_text(one),
                "test": one.test,
                "verdict": one.verdict,
                "effect": effect_text(one, one.effect),
                "interval": interval_text(one),
                "p_value": p_text(one.p_value),
                "p_holm": p_text(one.p_holm),
                "num_seeds": one.num_seeds,
                "num_problems": one.num_problems if one.num_problems is not None else "",
                "notes": one.notes,
            }
            for one in judged
        ],
        "pictures": [
            {"name": one.name, "caption": one.caption, "svg": inline(one.svg, label=one.caption)} for one in drawn
        ],
        "tables": [_table_page(table) for table in measured],
        "beside": beside,
        "num_not_shown": num_not_shown,
        "environments": [
            {
                "versions": ", ".join(f"{name} {number}" for name, number in sorted(one["versions"].items())),
                "gpu": one["gpu"] or "none",
                "platform": one["platform"],
                "num_runs": number,
            }
            for one, number in _environments(gathered.runs)
        ],
    }
    return templates.get_template("page.html.j2").render(report=facts, limit=MAX_CHARS)
