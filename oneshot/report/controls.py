"""Gathered runs -> tables that compare cells with each other: format, labels, and the ranking of examples.

Each function returns a table, or None if the sweep has nothing to show in it. Its `about` defines what it measures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from oneshot.report.cells import cell_label, ended_cells, finished, gain, gains, mean_difference
from oneshot.report.contrast import paired_difference, seed_difference, share_of
from oneshot.report.evidence import Difference
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import Interval, kendall
from oneshot.report.table import Table, Value
from oneshot.report.values import Part, Sides, Values, mean_of, over_problems, tables


def format_table(gathered: Gathered, suite: str) -> Table | None:
    """Return the share of the outcome arm's gain that the format arm reaches."""
    rows: list[tuple[Value, ...]] = []
    for outcome, control in _partners(gathered, lambda config: config["reward"]["kind"] == "format"):
        if outcome[0].config["reward"]["kind"] != "outcome":
            continue
        arms, share = (cell_label(outcome[0]), cell_label(control[0])), _share(outcome, control, suite, gathered)
        rows.append((*arms, gains(outcome, suite), gains(control, suite), share))
    return Table(
        name="format",
        title="How much of the gain is format",
        about=(
            "The format arm rewards any boxed answer. Share: its mean gain as a percentage of the outcome arm's, with "
            "Fieller's interval. It is empty if the interval of the outcome arm's gain is not above 0."
        ),
        columns=("outcome arm", "format arm", "gain, outcome", "gain, format", "share"),
        rows=tuple(rows),
    )


def _share(outcome: Sequence[Run], control: Sequence[Run], suite: str, gathered: Gathered) -> Interval | None:
    """Return the ratio of mean gains with its interval, as a claim with `share_at_least` has it."""
    of_outcome, of_control = (
        {run.seed: values for run in runs if (values := _gain_by_problem(run, suite, gathered)) is not None}
        for runs in (outcome, control)
    )
    both = sorted(of_outcome.keys() & of_control.keys())
    if not both:
        return None
    by_seed: list[list[Sides]] = [[((of_control[seed],), (of_outcome[seed],))] for seed in both]
    base = _difference([[((of_outcome[seed],), (of_outcome[seed],))] for seed in both], ratio=0.0)
    if base.low is None or base.low <= 0:
        return None
    share = fmean(of_control[seed].mean for seed in both) / base.effect
    return share_of(lambda ratio: _difference(by_seed, ratio=ratio), share)


def _difference(by_seed: Sequence[Sequence[Sides]], *, ratio: float) -> Difference:
    """Return the mean of a - ratio * b, over problems too if their grades are stored."""
    by_suite = tables(by_seed, ratio=ratio)
    if by_suite is not None:
        return paired_difference(*by_suite.values())
    return seed_difference([fmean(mean_of(pair, ratio=ratio) for pair in pairs) for pairs in by_seed])


def _gain_by_problem(run: Run, suite: str, gathered: Gathered) -> Values | None:
    """Return the gain of a run, by problem if its grades at the start and at the end are stored."""
    number = gain(run, suite)
    if number is None:
        return None
    parts = []
    for step in (0, run.num_steps):
        grades = gathered.record.grades(run, suite, step)
        if grades is None or (chosen := over_problems(grades, "pass_at_1")) is None:
            return Values(mean=number)
        values_P, ids = chosen
        parts.append(Part(suite=suite, weight=1.0, values_P=values_P, ids=ids, families=grades.families or ids))
    start, end = parts
    if start.ids != end.ids:
        return Values(mean=number)
    change_P = end.values_P - start.values_P
    return Values(mean=float(change_P.mean()), parts=(end.times(change_P),))


def _partners(
    gathered: Gathered, is_control: Callable[[Mapping[str, Any]], bool]
) -> Iterator[tuple[list[Run], list[Run]]]:
    """Yield each cell that is no control with each control that differs from it on exactly one axis."""
    cells = list(ended_cells(gathered.runs))
    controls = [runs for runs in cells if is_control(runs[0].config)]
    for runs in cells:
        if is_control(runs[0].config):
            continue
        for control in controls:
            differing = [axis for axis, name in runs[0].cell.items() if control[0].cell[axis] != name]
            if len(differing) == 1:
                yield runs, control


def label_table(gathered: Gathered, suite: str) -> Table | None:
    """Return gains with other labels than the rows' own."""
    rows: list[tuple[Value, ...]] = []
    for own, other in _partners(gathered, _is_relabelled):
        if not _same_rows(own[0], other[0]):
            continue
        by_seed = {run.seed: gain(run, suite) for run in own}
        difference = mean_difference(other, lambda run: gain(run, suite), lambda run, of=by_seed: of.get(run.seed))  # type: ignore[misc]
        cells, examples = (cell_label(own[0]), cell_label(other[0])), ", ".join(other[0].examples)
        rows.append((*cells, examples, gains(own, suite), gains(other, suite), difference))
    return Table(
        name="labels",
        title="Label robustness",
        about="Cells whose examples have a label other than their own, beside the cell that differs on one axis.",
        columns=("own label", "other label", "examples", "gain, own", "gain, other", "other - own"),
        rows=tuple(rows),
    )


def _same_rows(own: Run, other: Run) -> bool:
    """Return whether examples differ only in their labels. For sets with wrong labels only their number is compared."""
    if any(isinstance(example, dict) and example.get("wrong") for example in other.config["examples"]):
        return own.num_examples == other.num_examples
    return own.examples == tuple(name.partition("=")[0] for name in other.examples)


def _is_relabelled(config: Mapping[str, Any]) -> bool:
    """Return whether an example has a label other than its own, either stated or drawn."""
    examples = [example for example in config["examples"] if isinstance(example, dict)]
    return any(example.get("wrong") or ("row" in example and example.get("answer") is not None) for example in examples)


def ranking_table(gathered: Gathered, suite: str) -> Table | None:
    """Return how well seeds agree on which example is best."""
    axis = _example_axis(gathered.runs)
    if axis is None:
        return None
    groups: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
    for run in finished(gathered.runs):
        number = gain(run, suite)
        if number is not None:
            rest = tuple(name for each, name in run.cell.items() if each != axis)
            groups.setdefault(rest, {}).setdefault(run.seed, {})[run.cell[axis]] = number
    rows: list[tuple[Value, ...]] = []
    for rest, by_seed in groups.items():
        tau = kendall(list(by_seed.values()))
        if tau is not None:
            num_examples = len({name for scores in by_seed.values() for name in scores})
            rows.append((" / ".join(rest) or "all", str(num_examples), str(len(by_seed)), tau.mean, tau.low))
    return Table(
        name="ranking",
        title="Do seeds rank the examples alike?",
        about="Kendall's tau-b between the gains of examples at two seeds, over all pairs of seeds. 1 means the same "
        "order, 0 unrelated orders.",
        columns=("cells", "examples", "seeds", "mean tau", "least tau"),
        rows=tuple(rows),
        form="number",
    )


def _example_axis(runs: Sequence[Run]) -> str | None:
    """Return the axis whose cells train on different examples."""
    for axis in runs[0].cell if runs else ():
        examples: dict[str, set[tuple[object, ...]]] = {}
        for run in runs:
            examples.setdefault(run.cell[axis], set()).add((run.num_examples, *run.examples))
        is_one_each = all(len(of_cell) == 1 for of_cell in examples.values())
        if is_one_each and len(set.union(*examples.values())) > 1:
            return axis
    return None
