"""Gathered runs -> the paper's phenomena as tables of numbers with intervals over seeds.

Each function gives a table, or None where the sweep says nothing of it. What each measures, and after whom, is its
`about`. Gains are strict pass@1 at the last step less that at the start, unless the table says otherwise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from oneshot.plan.leakage import VAL_SUITES
from oneshot.report.cells import apart, cell_label, change, ended_cells, finished, gain, gains, level, over_seeds
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval, kendall, mean_interval
from oneshot.report.steps import evaluated_after, saturation
from oneshot.tasks.measures import REFLECTION_WORDS, category_key, suite_of

Value = str | float | Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns and rows, with what they are about."""

    name: str
    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    form: str = "points"
    """How numbers are written: `points` (shares x 100), `change` (the same, with a sign), `number`."""

    def to_json(self) -> dict[str, Any]:
        """As report.json has it."""

        def plain(value: Value) -> Any:
            if isinstance(value, Interval):
                return {"mean": value.mean, "low": value.low, "high": value.high, "num": value.num}
            return value

        return {
            "name": self.name,
            "title": self.title,
            "about": self.about,
            "columns": list(self.columns),
            "rows": [[plain(value) for value in row] for row in self.rows],
        }


def primary_suite(gathered: Gathered) -> str | None:
    """The first claim's suite, else the first that is not for choosing."""
    for claim in gathered.frozen.claims:
        if (suite := suite_of(claim.metric)) is not None:
            return suite
    suites = [suite for run in gathered.runs for suite in run.suites]
    judging = [suite.name for suite in suites if suite.source not in VAL_SUITES]
    return next(iter([*judging, *(suite.name for suite in suites)]), None)


def tables(gathered: Gathered) -> list[Table]:
    """All that the sweep has something to say of."""
    suite = primary_suite(gathered)
    if suite is None:
        return []
    found = [make(gathered, suite) for make in TABLES]
    return [table for table in found if table is not None and table.rows]


def saturation_table(gathered: Gathered, suite: str) -> Table | None:
    """When training reward saturates, and what is gained before and after."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        found = [(run, saturated) for run in runs if (saturated := saturation(run)) is not None]
        if not found:
            continue
        steps = [saturated.step for _, saturated in found]
        turns = {
            run.label: turn
            for run, saturated in found
            if saturated.is_seen and (turn := evaluated_after(run, suite, saturated.step)) is not None
        }
        split = [run for run, _ in found if run.label in turns]
        before = over_seeds(split, lambda run, at=turns: change(run, suite, 0, at[run.label]))  # type: ignore[misc]
        after = over_seeds(split, lambda run, at=turns: change(run, suite, at[run.label], run.num_steps))  # type: ignore[misc]
        span = f"{min(steps)} to {max(steps)}" if len(set(steps)) > 1 else str(steps[0])
        rows.append((cell_label(runs[0]), span, f"{len(split)} of {len(runs)}", before, after))
    return Table(
        name="saturation",
        title="Saturation",
        about=(
            "t_sat: the first step whose training reward is at least 0.99 of the run's maximum (arXiv 2604.18574). "
            "Seen: runs in which 50 steps follow it (of a run shorter than 200 steps, a quarter of it); in the others "
            f"the reward was still rising. Gains on {suite}, of the runs that were seen, are split at the first "
            "evaluation from t_sat on."
        ),
        columns=("cell", "t_sat", "seen", "gain before t_sat", "gain after t_sat"),
        rows=tuple(rows),
    )


def category_table(gathered: Gathered, suite: str) -> Table | None:
    """Gain on each category of problems, by what was trained on."""
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
        each = [gains(runs, suite, measure=f"{name}/pass_at_1") for name in sorted(names)]
        rows.append((cell_label(runs[0]), ", ".join(sorted(trained)) or "not said", *each))
    return Table(
        name="categories",
        title="Gain by category of problem",
        about=f"Gain on each category of {suite}; the paper reads transfer from those that were not trained on.",
        columns=("cell", "trained on", *sorted(names)),
        rows=tuple(rows),
        form="change",
    )


def format_table(gathered: Gathered, suite: str) -> Table | None:
    """The share of the outcome arm's gain that the format arm has."""
    rows: list[tuple[Value, ...]] = []
    for outcome, control in _partners(gathered, lambda config: config["reward"]["kind"] == "format"):
        if outcome[0].config["reward"]["kind"] != "outcome":
            continue
        shares = _share(outcome, control, suite)
        rows.append(
            (
                cell_label(outcome[0]),
                cell_label(control[0]),
                gains(outcome, suite),
                gains(control, suite),
                shares,
            )
        )
    return Table(
        name="format",
        title="How much of the gain is format",
        about=(
            "The format arm pays for a box, whatever is in it. Share: its mean gain over the outcome arm's, with a "
            "jackknife interval over seeds, in percent; none where the outcome arm's own gain is not clear of 0."
        ),
        columns=("outcome arm", "format arm", "gain, outcome", "gain, format", "share"),
        rows=tuple(rows),
    )


def _share(outcome: Sequence[Run], control: Sequence[Run], suite: str) -> Interval | None:
    """Ratio of mean gains, by the jackknife over seeds that both have."""
    mine = {run.seed: number for run in outcome if (number := gain(run, suite)) is not None}
    theirs = {run.seed: number for run in control if (number := gain(run, suite)) is not None}
    seeds = sorted(mine.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    spread = mean_interval([mine[seed] for seed in seeds])
    if spread.low is None or spread.low <= 0:
        return None
    whole = fmean(theirs[seed] for seed in seeds) / spread.mean
    pseudo = []
    for left_out in seeds:
        rest = [seed for seed in seeds if seed != left_out]
        ratio = fmean(theirs[seed] for seed in rest) / fmean(mine[seed] for seed in rest)
        pseudo.append(len(seeds) * whole - (len(seeds) - 1) * ratio)
    return mean_interval(pseudo)


def _partners(
    gathered: Gathered, is_control: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[list[Run], list[Run]]]:
    """Cells paid for right answers, each with the controls that differ from it in the cell of one axis."""
    cells = list(ended_cells(gathered.runs))
    controls = [runs for runs in cells if is_control(runs[0].config)]
    for runs in cells:
        if is_control(runs[0].config):
            continue
        for control in controls:
            differing = [axis for axis, name in runs[0].cell.items() if control[0].cell[axis] != name]
            if len(differing) == 1:
                yield runs, control


def strictness_table(gathered: Gathered, suite: str) -> Table | None:
    """Gain by both verdicts on an answer."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        strict, lenient = gains(runs, suite), gains(runs, suite, measure="pass_at_1_lenient")
        difference = apart(
            runs,
            lambda run: gain(run, suite),
            lambda run: gain(run, suite, measure="pass_at_1_lenient"),
        )
        if strict is not None and lenient is not None:
            rows.append((cell_label(runs[0]), strict, lenient, difference))
    return Table(
        name="strictness",
        title="Strict against lenient",
        about=(
            "Strict: the last box is right. Lenient: any answer that can be read is right. What strict gains beyond "
            "lenient is learning to put a known answer into a box."
        ),
        columns=("cell", "strict gain", "lenient gain", "strict - lenient"),
        rows=tuple(rows),
    )


def pass_at_k_table(gathered: Gathered, _suite: str) -> Table | None:
    """pass@k before and after, on suites with several completions a problem."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        for facts in runs[0].suites:
            if facts.samples == 1:
                continue
            powers = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < facts.samples]
            for k, measure in [*((k, f"pass_at_{k}") for k in powers), (facts.samples, "pass_at_k")]:
                ends = [level(runs, facts.name, at, measure=measure) for at in ("start", "last")]
                rows.append((cell_label(runs[0]), facts.name, str(k), *ends, gains(runs, facts.name, measure=measure)))
    return Table(
        name="pass_at_k",
        title="pass@k before and after",
        about="Unbiased estimate that any of k completions is right (arXiv 2107.03374): RL that only sharpens gains at "
        "k = 1 and loses at large k.",
        columns=("cell", "suite", "k", "start", "last", "gain"),
        rows=tuple(rows),
    )


def text_table(gathered: Gathered, suite: str) -> Table | None:
    """What completions look like before and after."""
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
            is_empty = all(one is None or one.mean == 0 for one in (start, last))
            if not is_empty:
                rows.append((cell_label(runs[0]), title, start, last))
    return Table(
        name="texts",
        title="What completions look like",
        about=f"Shares of completions on {suite}: with a box, with a reflection word ({', '.join(REFLECTION_WORDS)}; "
        "the paper's Figure 4), with a repetition, with code, truncated; and their mean length. Measures that are 0 "
        "before and after are left out.",
        columns=("cell", "measure", "start", "last"),
        rows=tuple(rows),
        form="number",
    )


def label_table(gathered: Gathered, suite: str) -> Table | None:
    """Gain with other labels than the rows' own."""
    rows: list[tuple[Value, ...]] = []
    for own, other in _partners(gathered, _is_relabelled):
        if not _same_rows(own[0], other[0]):
            continue
        by_seed = {run.seed: gain(run, suite) for run in own}
        difference = apart(other, lambda run: gain(run, suite), lambda run, of=by_seed: of.get(run.seed))  # type: ignore[misc]
        examples = ", ".join(other[0].examples)
        rows.append(
            (cell_label(own[0]), cell_label(other[0]), examples, gains(own, suite), gains(other, suite), difference)
        )
    return Table(
        name="labels",
        title="Label robustness",
        about="Cells whose examples carry another label than their own, beside the cell that differs in one axis.",
        columns=("own label", "other label", "examples", "gain, own", "gain, other", "other - own"),
        rows=tuple(rows),
    )


def _same_rows(own: Run, other: Run) -> bool:
    """Whether examples differ in their labels alone; of sets with wrong labels only the number is compared."""
    if any(isinstance(one, dict) and one.get("wrong") for one in other.config["examples"]):
        return own.num_examples == other.num_examples
    return own.examples == tuple(name.partition("=")[0] for name in other.examples)


def _is_relabelled(config: Mapping[str, Any]) -> bool:
    """Whether an example carries another label than its own, written or drawn."""
    named = [one for one in config["examples"] if isinstance(one, dict)]
    return any(one.get("wrong") or ("row" in one and one.get("answer") is not None) for one in named)


def _example_axis(runs: Sequence[Run]) -> str | None:
    """The axis whose cells train on different examples."""
    for axis in runs[0].cell if runs else ():
        examples: dict[str, set[tuple[object, ...]]] = {}
        for run in runs:
            examples.setdefault(run.cell[axis], set()).add((run.num_examples, *run.examples))
        if (
            len(examples) > 1
            and len(set.union(*examples.values())) > 1
            and all(len(one) == 1 for one in examples.values())
        ):
            return axis
    return None


def ranking_table(gathered: Gathered, suite: str) -> Table | None:
    """Whether seeds agree on which example is best."""
    axis = _example_axis(gathered.runs)
    if axis is None:
        return None
    groups: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
    for run in finished(gathered.runs):
        number = gain(run, suite)
        if number is not None:
            rest = tuple(name for one, name in run.cell.items() if one != axis)
            groups.setdefault(rest, {}).setdefault(run.seed, {})[run.cell[axis]] = number
    rows: list[tuple[Value, ...]] = []
    for rest, by_seed in groups.items():
        found = kendall(list(by_seed.values()))
        if found is not None:
            num_examples = len({name for scores in by_seed.values() for name in scores})
            rows.append((" / ".join(rest) or "all", str(num_examples), str(len(by_seed)), found.mean, found.low))
    return Table(
        name="ranking",
        title="Do seeds rank the examples alike?",
        about="Kendall's tau-b between the gains of examples at two seeds, over all pairs of seeds: 1 is the same "
        "order, 0 none in common.",
        columns=("cells", "examples", "seeds", "mean tau", "least tau"),
        rows=tuple(rows),
        form="number",
    )


def cost_table(gathered: Gathered, suite: str) -> Table | None:
    """What a gain cost."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        hours = over_seeds(runs, lambda run: run.gpu_hours if run.gpus else run.spent_h)
        gained = gains(runs, suite)
        if hours is not None and gained is not None:
            unit = "GPU" if runs[0].gpus else "CPU worker"
            per = gained.mean * 100 / hours.mean if hours.mean > 0 else None
            rows.append((cell_label(runs[0]), unit, hours.mean, gained, per))
    return Table(
        name="cost",
        title="Hours against gain",
        about="Hours that a trial held its GPUs (its worker, where it had none), all attempts, mean over seeds.",
        columns=("cell", "of", "hours a trial", "gain", "points an hour"),
        rows=tuple(rows),
    )


def published_tables(gathered: Gathered) -> list[Table]:
    """Others' numbers beside ours."""
    found, ended = [], finished(gathered.runs)
    for number, published in enumerate(gathered.published, 1):
        rows: list[tuple[Value, ...]] = []
        for row in published.rows:
            wanted = {axis: str(name) for axis, name in row.cell.items()}
            runs = [run for run in ended if wanted.items() <= run.cell.items()]
            for suite, theirs in zip(published.columns, row.values, strict=True):
                if theirs is None:
                    continue
                ours = level(runs, suite, row.at)
                rows.append(
                    (" / ".join(wanted.values()) or "all cells", suite, row.at, theirs, ours, _less(ours, theirs))
                )
        found.append(
            Table(
                name=f"published_{number}",
                title=f"Beside {published.by}",
                about=f"Published by {published.by}: {published.how}. Ours: mean over seeds at the fixed step, with "
                "its interval; the difference takes the published number as it stands, without an error of its own.",
                columns=("cell", "suite", "at", "published", "ours", "ours - published"),
                rows=tuple(rows),
                form="points",
            )
        )
    return [table for table in found if table.rows]


def _less(ours: Interval | None, theirs: float) -> Interval | None:
    """An interval moved by a fixed number."""
    if ours is None:
        return None
    low, high = (None if end is None else end - theirs for end in (ours.low, ours.high))
    return Interval(mean=ours.mean - theirs, low=low, high=high, num=ours.num)


TABLES: tuple[Callable[[Gathered, str], Table | None], ...] = (
    saturation_table,
    category_table,
    format_table,
    strictness_table,
    pass_at_k_table,
    text_table,
    label_table,
    ranking_table,
    cost_table,
)
