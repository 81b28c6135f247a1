"""A sweep and its cells -> an error if what it chooses by is also what it judges by or trains on.

The metrics that choose (objective and constraint of a search, early stopping, `at: best`) may not be metrics of a
claim. The seeds of a search may not be seeds of the grid. Problems for choosing may not be trained on.
"""

from collections.abc import Iterator, Mapping, Sequence

from oneshot.config.claims import ClaimConfig, PublishedConfig
from oneshot.config.paths import SettingError, Where
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, nearest
from oneshot.plan.cells import Cell
from oneshot.plan.claims import comparisons, trained_categories
from oneshot.plan.keep_best import check_kept, kept_by
from oneshot.plan.pinned import PinnedSweep
from oneshot.tasks.benchmarks import load_suites, val_prompts
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import (
    category_key,
    has_metric,
    is_one_of,
    is_over_problems,
    measure_of,
    nearest_metric,
    suite_of,
)

VAL_SUITES = ("val", "arithmetic-val")
HINT = "choose by `val` or `arithmetic-val`, or set allow_selection_on_test: true, which verdicts then state"


def check_choices(sweep: PinnedSweep, *, grid: Sequence[Cell], searched: Sequence[Cell]) -> None:
    """Refuse to choose by what is judged or trained on. Cells of `grid` are judged, and `searched` cells choose.

    Raises SweepFileError: names the place and what to do.
    """
    cells = [*grid, *searched]
    _refuse_val(sweep, cells)
    check_kept(sweep, cells)
    _check_metrics(sweep, cells, searched)
    _check_claims(sweep, grid)
    config = sweep.config
    if config.allow_selection_on_test:
        return
    if config.search is not None and config.grid != []:
        for place, seed in enumerate(config.search.seeds):
            if seed in config.planned_seeds:
                why = f"seed {seed} is also a seed of the grid, which judges the winner; use another seed, such as "
                raise sweep.source.error(("search", "seeds", place), f"{why}{max(config.planned_seeds) + 100}")
    choosers = kept_by(cells) | {metric: ".".join(where[:2]) for where, metric in _choosers(sweep)}
    sources = _sources(cells) if choosers and config.claims else {}
    for number, claim in enumerate(config.claims):
        chosen_by = next((why for metric, why in choosers.items() if _overlap(metric, claim.metric, sources)), None)
        is_at_best = "best" in (claim.a.get("at"), claim.b.get("at"))
        if chosen_by is None and is_at_best and not _is_for_choosing(claim, cells):
            chosen_by = "`at: best`, which chooses a step by it"
        if chosen_by is not None:
            raise sweep.source.error(("claims", number, "metric"), f"{claim.metric} also chooses: {chosen_by}; {HINT}")


def _choosers(sweep: PinnedSweep) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the name of each metric that chooses."""
    search, early_stop = sweep.config.search, sweep.config.early_stop
    if search is not None:
        yield ("search", "objective", "metric"), search.objective.metric
        if search.constraint is not None:
            yield ("search", "constraint", "metric"), search.constraint.metric
    if early_stop is not None and early_stop.metric is not None:
        yield ("early_stop", "metric"), early_stop.metric


def _sources(cells: Sequence[Cell]) -> dict[str, set[str]]:
    """Return the sets of problems of each suite."""
    sources: dict[str, set[str]] = {}
    for suite in (suite for cell in cells for suite in load_suites(cell.config)):
        sources.setdefault(suite.name, set()).add(suite.source)
    return sources


def _overlap(metric: str, other: str, sources: Mapping[str, set[str]]) -> bool:
    """Return whether two metrics are the same, or their suites have problems of the same set."""
    suite, other_suite = suite_of(metric), suite_of(other)
    if suite is None or other_suite is None:
        return metric == other
    return suite == other_suite or not sources.get(suite, set()).isdisjoint(sources.get(other_suite, ()))


def _is_for_choosing(claim: ClaimConfig, cells: Sequence[Cell]) -> bool:
    """Return whether a suite for choosing, other than the claim's own, can choose the best step."""
    suites = {(suite.name, suite.source) for cell in cells for suite in load_suites(cell.config)}
    return any(source in VAL_SUITES and name != suite_of(claim.metric) for name, source in suites)


def _check_metrics(sweep: PinnedSweep, cells: Sequence[Cell], searched: Sequence[Cell]) -> None:
    """Refuse a metric of a search that some of its cells do not have, and other metrics that no trial has."""
    for where, metric in _choosers(sweep):
        for cell in searched:
            if not has_metric(metric, suites := set(cell.config.eval.suites)):
                raise sweep.source.error(where, f"{cell.label} has no metric {metric}{nearest_metric(metric, suites)}")
    suites = {name for cell in cells for name in cell.config.eval.suites}
    for section, measured in (("claims", sweep.config.claims), ("guards", sweep.config.guards)):
        for number, metric in enumerate(each.metric for each in measured):
            if not has_metric(metric, suites):
                why = f"no trial has the metric {metric}{nearest_metric(metric, suites)}"
                raise sweep.source.error((section, number, "metric"), why)


def _check_claims(sweep: PinnedSweep, grid: Sequence[Cell]) -> None:
    """Check that every claim has the cells, steps, suites and categories to be judged once all trials finish."""
    cells = {tuple(cell.names.items()): cell for cell in grid}
    if sweep.config.claims and not grid:
        raise sweep.source.error(("claims",), "claims are about the grid, and there is no grid; remove them")
    try:
        all_comparisons = comparisons(sweep.config.claims, [cell.names for cell in grid])
    except SettingError as error:
        raise sweep.source.error(error.where, error.message) from error
    for comparison in all_comparisons:
        where: Where = ("claims", comparison.number)
        if comparison.claim.of == "gain" and comparison.at_a == comparison.at_b == "start":
            raise sweep.source.error((*where, "of"), "the gain at the start is always 0; remove `of: gain`")
        for side, at in (("a", comparison.at_a), ("b", comparison.at_b)):
            selected = [cells[tuple(names.items())] for pair in comparison.pairs for names in getattr(pair, side)]
            for cell in selected:
                if complaint := _cannot_judge(comparison.claim, cell, at=at):
                    raise sweep.source.error((*where, side), f"{cell.label}: {complaint}")
    for number, published in enumerate(sweep.config.published):
        _check_published(sweep, published, ("published", number), grid)


def _cannot_judge(claim: ClaimConfig, cell: Cell, *, at: str) -> str:
    """Return why a cell cannot be part of a claim, or an empty text if it can."""
    suite = suite_of(claim.metric)
    if suite is None:
        return "" if claim.categories == "all" else f"{claim.metric} has no categories"
    measure = measure_of(claim.metric)
    if measure == "gain":
        return f"{claim.metric} has no value by problem; use metric: eval/{suite}/pass_at_1 with of: gain"
    if claim.categories != "all" and ("/" in measure or not is_over_problems(measure)):
        return f"{claim.metric} has no value by problem, so it cannot be restricted to categories"
    if suite not in cell.config.eval.suites:
        return f"it is not evaluated on {suite}; add the suite to all cells of the claim"
    if complaint := _missing_measure(measure, suite, claim, cell):
        return complaint
    if (claim.of == "gain" or at == "start") and not cell.config.eval.at_start:
        return "it is not evaluated at the start; set eval.at_start: true"
    has_examples = cell.waits_for is None or "category" in cell.labels
    if claim.categories != "all" and has_examples and not trained_categories(cell.labels, cell.config):
        return f"categories: {claim.categories}: the category of its examples is unknown; add labels: {{category: ...}}"
    return ""


def _missing_measure(measure: str, name: str, claim: ClaimConfig, cell: Cell) -> str:
    """Return why a suite lacks a measure or the categories of a claim, or an empty text if it has them.

    A suite that is not fetched counts as having them.
    """
    suite = next(suite for suite in load_suites(cell.config) if suite.name == name)
    part, _, last = measure.rpartition("/")
    power = last.removeprefix("pass_at_")
    if power.isdigit() and int(power) > suite.samples:
        return f"{name} has {suite.samples} completions a problem, so no {measure}"
    is_restricted = claim.categories != "all" and cell.waits_for is None
    trained = trained_categories(cell.labels, cell.config) if is_restricted else ()
    if not part and not trained:
        return ""
    try:
        problems = suite.problems
    except DataError:  # not fetched yet
        return ""
    categories = sorted({problem.category for problem in problems if problem.category})
    parts = {category_key(category) for category in categories}
    levels = {problem.level.lower().removeprefix("level ") for problem in problems if problem.level}
    parts |= {f"level {category_key(level)}" for level in levels}
    if part and part not in parts:
        return f"{name} has no category {part!r}{nearest(part, sorted(parts))}"
    if trained and not any(map(is_one_of(trained), categories)):
        return f"{name} has no problem in category {', '.join(sorted(trained))}{nearest(min(trained), categories)}"
    return ""


def _check_published(sweep: PinnedSweep, published: PublishedConfig, where: Where, grid: Sequence[Cell]) -> None:
    suites = {name for cell in grid for name in cell.config.eval.suites}
    for place, suite in enumerate(published.columns):
        if suite not in suites:
            why = f"no trial has the suite{nearest(suite, sorted(suites))}"
            raise sweep.source.error((*where, "columns", place), why)
    for place, row in enumerate(published.rows):
        for axis, name in row.cell.items():
            at: Where = (*where, "rows", place, "cell", axis)
            if axis not in sweep.config.axes:
                raise sweep.source.error(at, f"unknown axis{nearest(axis, list(sweep.config.axes))}")
            names = list(dict.fromkeys(cell.names[axis] for cell in grid))
            if str(name) not in names:
                raise sweep.source.error(at, f"unknown cell {str(name)!r}{nearest(str(name), names)}")


def _refuse_val(sweep: PinnedSweep, cells: Sequence[Cell]) -> None:
    used_for_choice = {suite.source for cell in cells for suite in load_suites(cell.config)} & set(VAL_SUITES)
    for cell in cells if used_for_choice else ():
        for source in sorted(used_for_choice) if cell.waits_for is None else ():
            if complaint := trains_on(source, cell.config):
                raise sweep.source.error(cell.place("examples"), f"{cell.label} {complaint}")


def trains_on(source: str, config: TrialConfig) -> str:
    """Return which problems of a suite for choosing a trial trains on, as the end of a sentence; empty if none."""
    if source not in VAL_SUITES:
        return ""
    examples = identify(config.examples)
    held_out = val_prompts(source)
    used = [name for name, prompt in zip(examples.ids, examples.prompts, strict=True) if prompt in held_out]
    if not used:
        return ""
    others = "the other 1,009 rows (set dsr_sub-val)" if source == "val" else "other problems"
    return (
        f"trains on {len(used)} of the problems that the suite `{source}` holds out ({used[0]}, ...); "
        f"train on {others}, or remove `{source}` from eval.suites"
    )
