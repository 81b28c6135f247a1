"""Gathered runs -> the paper's phenomena as tables of numbers with intervals over seeds.

Each function returns a table, or None if the sweep has nothing to show in it. Its `about` defines what it measures and
names the source. A gain is strict pass@1 at the last step minus that at the start, unless the table says otherwise.
"""

from collections.abc import Callable, Sequence
from functools import partial

from oneshot.report.cells import cell_label, change, ended_cells, gain, gains, level, mean_difference, over_seeds
from oneshot.report.controls import format_table, label_table, ranking_table
from oneshot.report.forcing import forcing_table, scaling_table
from oneshot.report.runs import Gathered, primary_suite
from oneshot.report.selection import selection_table
from oneshot.report.stats import SHARE
from oneshot.report.steps import COLLAPSED, collapse, evaluated_after, saturation
from oneshot.report.table import Table, Value
from oneshot.tasks.measures import REFLECTION_WORDS, category_key


def tables(gathered: Gathered) -> list[Table]:
    """Return every table that has rows for this sweep."""
    suite = primary_suite(gathered)
    if suite is None:
        return []
    made = [make(gathered, suite) for make in TABLES]
    return [table for table in made if table is not None and table.rows]


def saturation_table(gathered: Gathered, suite: str) -> Table | None:
    """Return when training reward saturates, and the gains before and after that step."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        saturations = [(run, saturated) for run in runs if (saturated := saturation(run)) is not None]
        if not saturations:
            continue
        steps = [saturated.step for _, saturated in saturations]
        split_steps = {
            run.label: step
            for run, saturated in saturations
            if saturated.is_seen and (step := evaluated_after(run, suite, saturated.step)) is not None
        }
        split = [run for run, _ in saturations if run.label in split_steps]
        before = over_seeds(split, lambda run, at=split_steps: change(run, suite, 0, at[run.label]))  # type: ignore[misc]
        after = over_seeds(split, lambda run, at=split_steps: change(run, suite, at[run.label], run.num_steps))  # type: ignore[misc]
        rows.append((cell_label(runs[0]), _span(steps), f"{len(split)} of {len(runs)}", before, after))
    return Table(
        name="saturation",
        title="Saturation",
        about=(
            "t_sat: the first step whose training reward is at least 0.99 of the run's maximum (arXiv 2604.18574). "
            "Seen: runs with at least 50 more steps after t_sat, or a quarter of their steps if they have fewer than "
            "200; in the other runs the reward was still rising. Gains are on "
            f"{suite}, over the runs that were seen, before and after the first evaluation at or after t_sat."
        ),
        columns=("cell", "t_sat", "seen", "gain before t_sat", "gain after t_sat"),
        rows=tuple(rows),
    )


def _span(steps: Sequence[int]) -> str:
    return f"{min(steps)} to {max(steps)}" if len(set(steps)) > 1 else str(steps[0])


def collapse_table(gathered: Gathered, suite: str) -> Table | None:
    """Return when held-out accuracy collapses while training reward does not, for cells where it does."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        collapses = {run.label: found for run in runs if (found := collapse(run, suite)) is not None}
        if not collapses:
            continue
        fallen = [run for run in runs if run.label in collapses]
        highest = over_seeds(fallen, lambda run, of=collapses: of[run.label].highest, bounds=SHARE)  # type: ignore[misc]
        accuracy = over_seeds(fallen, lambda run, of=collapses: of[run.label].accuracy, bounds=SHARE)  # type: ignore[misc]
        spans = (_span([getattr(found, name) for found in collapses.values()]) for name in ("step", "highest_step"))
        rows.append(
            (
                cell_label(runs[0]),
                f"{len(fallen)} of {len(runs)}",
                *spans,
                highest,
                accuracy,
                level(fallen, suite, "last"),
            )
        )
    return Table(
        name="collapse",
        title="Collapse",
        about=(
            f"Collapse step: the first evaluation, after that of a run's highest accuracy on {suite}, at which "
            f"accuracy is at least {COLLAPSED:.0%} below it while training reward is not below what it was then. A "
            "fall of both is not counted. Accuracies are means over the runs that collapsed. On a suite of few "
            "problems a fall may be chance. The Model Collapse Step of arXiv 2603.08660 is another one: it watches "
            "accuracy on the training problems."
        ),
        columns=("cell", "runs", "collapse step", "step of the highest", "highest", "at collapse", "last"),
        rows=tuple(rows),
    )


def category_table(gathered: Gathered, suite: str) -> Table | None:
    """Return the gain on each category of problems, with the categories that were trained on."""
    cells = list(ended_cells(gathered.runs))
    names = {
        name.removesuffix("/pass_at_1")
        for runs in cells
        for numbers in runs[0].measured.get(suite, {}).values()
        for name in numbers
        if name.endswith("/pass_at_1") and not name.startswith("level ")
    }
    if len(names) < 2:
        return None
    rows: list[tuple[Value, ...]] = []
    for runs in cells:
        trained = {category_key(name) for name in runs[0].trained}
        by_category = [gains(runs, suite, measure=f"{name}/pass_at_1") for name in sorted(names)]
        rows.append((cell_label(runs[0]), ", ".join(sorted(trained)) or "unknown", *by_category))
    return Table(
        name="categories",
        title="Gain by category of problem",
        about=f"Gain on each category of {suite}. Gains on categories without training show transfer.",
        columns=("cell", "trained on", *sorted(names)),
        rows=tuple(rows),
        form="change",
    )


def strictness_table(gathered: Gathered, suite: str) -> Table | None:
    """Return gains by strict and by lenient grading."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        strict, lenient = gains(runs, suite), gains(runs, suite, measure="pass_at_1_lenient")
        by_measure = (partial(gain, suite=suite, measure=measure) for measure in ("pass_at_1", "pass_at_1_lenient"))
        difference = mean_difference(runs, *by_measure)
        if strict is not None and lenient is not None:
            rows.append((cell_label(runs[0]), strict, lenient, difference))
    return Table(
        name="strictness",
        title="Strict against lenient",
        about=(
            "Strict: the last boxed answer is right. Lenient: any answer that can be read from the completion is "
            "right. A strict gain above the lenient gain is the model learning to box an answer that it could give."
        ),
        columns=("cell", "strict gain", "lenient gain", "strict - lenient"),
        rows=tuple(rows),
    )


def pass_at_k_table(gathered: Gathered, _suite: str) -> Table | None:
    """Return pass@k before and after training, on suites with several completions a problem."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        for suite in runs[0].suites:
            if suite.samples == 1:
                continue
            powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < suite.samples]
            for k, measure in [*((k, f"pass_at_{k}") for k in powers), (suite.samples, "pass_at_k")]:
                ends = [level(runs, suite.name, at, measure=measure) for at in ("start", "last")]
                rows.append((cell_label(runs[0]), suite.name, str(k), *ends, gains(runs, suite.name, measure=measure)))
    return Table(
        name="pass_at_k",
        title="pass@k before and after",
        about="Unbiased estimate of the probability that at least one of k completions is right (arXiv 2107.03374). "
        "RL that only sharpens the distribution gains at k = 1 and loses at large k.",
        columns=("cell", "suite", "k", "start", "last", "gain"),
        rows=tuple(rows),
    )


def text_table(gathered: Gathered, suite: str) -> Table | None:
    """Return properties of the completions' text before and after training."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        for measure, title in (
            ("boxed", "boxed"),
            ("reflection", "reflection words"),
            ("repetition", "repetition"),
            ("code", "code"),
            ("truncated", "truncated"),
            ("length_mean", "tokens"),
        ):
            start, last = (level(runs, suite, at, measure=measure) for at in ("start", "last"))
            if any(interval is not None and interval.mean != 0 for interval in (start, last)):
                rows.append((cell_label(runs[0]), title, start, last))
    return Table(
        name="texts",
        title="What completions look like",
        about=f"Shares of completions on {suite}: with a box, with a reflection word ({', '.join(REFLECTION_WORDS)}; "
        "the paper's Figure 4), with a repetition, with code, truncated; and their mean length in tokens. Measures "
        "that are 0 before and after are left out.",
        columns=("cell", "measure", "start", "last"),
        rows=tuple(rows),
        form="number",
    )


def cost_table(gathered: Gathered, suite: str) -> Table | None:
    """Return the hours spent for each gain."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        hours = over_seeds(runs, lambda run: run.gpu_hours if run.gpus else run.spent_h)
        gained = gains(runs, suite)
        if hours is not None and gained is not None:
            unit = "GPU" if runs[0].gpus else "CPU worker"
            points_per_hour = gained.mean * 100 / hours.mean if hours.mean > 0 else None
            rows.append((cell_label(runs[0]), unit, hours.mean, gained, points_per_hour))
    return Table(
        name="cost",
        title="Hours against gain",
        about="GPU-hours of a trial over all attempts, or hours of its worker if it has no GPU; mean over seeds.",
        columns=("cell", "of", "hours a trial", "gain", "points an hour"),
        rows=tuple(rows),
    )


TABLES: tuple[Callable[[Gathered, str], Table | None], ...] = (
    saturation_table,
    collapse_table,
    category_table,
    format_table,
    strictness_table,
    pass_at_k_table,
    selection_table,
    text_table,
    forcing_table,
    scaling_table,
    label_table,
    ranking_table,
    cost_table,
)
