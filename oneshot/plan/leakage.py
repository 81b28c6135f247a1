"""What a sweep chooses by and what it judges by, kept apart.

What chooses (a search's objective and constraint, early stopping, `at: best`) may be no claim's metric, a search's
seeds may be none of the grid's, and problems that are for choosing may not be trained on.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from oneshot.config.paths import SettingError, Where
from oneshot.config.sweep import ClaimConfig, PublishedConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, nearest
from oneshot.plan.cells import Cell
from oneshot.plan.claims import comparisons, trained_categories
from oneshot.plan.pinned import PinnedSweep
from oneshot.tasks.benchmarks import load_suites, val_prompts
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import MEASURES, TRAINING, category_key, is_measure, is_one_of, is_over_problems, suite_of

VAL_SUITES = ("val", "arithmetic-val")
MEND = "choose by `val` or `arithmetic-val`, or set allow_selection_on_test: true, which verdicts say"


def check_choices(sweep: PinnedSweep, *, grid: Sequence[Cell], searched: Sequence[Cell]) -> None:
    """Refuses to choose by what is judged, or by what is trained on; the grid is judged, `searched` cells choose.

    Raises:
        SweepFileError: names the place and the mend.
    """
    cells = [*grid, *searched]
    _refuse_val(sweep, cells)
    _check_metrics(sweep, cells, searched)
    _check_claims(sweep, grid)
    config = sweep.config
    if config.allow_selection_on_test:
        return
    if config.search is not None and config.grid != []:
        for place, seed in enumerate(config.search.seeds):
            if seed in config.seeds:
                raise sweep.source.error(
                    ("search", "seeds", place),
                    f"seed {seed} is one of the grid's, which the winner would be judged by; take another, as "
                    f"{max(config.seeds) + 100}",
                )
    choosers = dict(_choosers(sweep))
    sources = _sources(cells) if choosers and config.claims else {}
    for number, claim in enumerate(config.claims):
        chosen_by = next((why for metric, why in choosers.items() if _is_one(metric, claim.metric, sources)), None)
        if (
            chosen_by is None
            and "best" in (claim.a.get("at"), claim.b.get("at"))
            and not _is_for_choosing(claim, cells)
        ):
            chosen_by = "`at: best`, which chooses a step by it"
        if chosen_by is not None:
            raise sweep.source.error(("claims", number, "metric"), f"{claim.metric} also chooses: {chosen_by}; {MEND}")


def _choosers(sweep: PinnedSweep) -> Iterator[tuple[str, str]]:
    search, early_stop = sweep.config.search, sweep.config.early_stop
    if search is not None:
        yield search.objective.metric, "search.objective"
        if search.constraint is not None:
            yield search.constraint.metric, "search.constraint"
    if early_stop is not None and early_stop.metric is not None:
        yield early_stop.metric, "early_stop.metric"


def _sources(cells: Sequence[Cell]) -> dict[str, set[str]]:
    """Suite -> the problems that it asks, by the name of their set."""
    found: dict[str, set[str]] = {}
    for suite in (suite for cell in cells for suite in load_suites(cell.config)):
        found.setdefault(suite.name, set()).add(suite.source)
    return found


def _is_one(metric: str, other: str, sources: Mapping[str, set[str]]) -> bool:
    """Whether two metrics are of the same problems, whatever their suites are called, or the same."""
    suite, of_other = suite_of(metric), suite_of(other)
    if suite is None or of_other is None:
        return metric == other
    return suite == of_other or not sources.get(suite, set()).isdisjoint(sources.get(of_other, ()))


def _is_for_choosing(claim: ClaimConfig, cells: Sequence[Cell]) -> bool:
    """Whether some suite that is for choosing, and is not the claim's own, can name the best step."""
    suites = {(suite.name, suite.source) for cell in cells for suite in load_suites(cell.config)}
    return any(source in VAL_SUITES and name != suite_of(claim.metric) for name, source in suites)


def _check_metrics(sweep: PinnedSweep, cells: Sequence[Cell], searched: Sequence[Cell]) -> None:
    """A metric that no trial has would be waited for in vain; a point is worth what all its trials have."""
    asked: list[tuple[Where, str]] = []
    search, early_stop = sweep.config.search, sweep.config.early_stop
    if search is not None:
        asked.append((("search", "objective", "metric"), search.objective.metric))
        if search.constraint is not None:
            asked.append((("search", "constraint", "metric"), search.constraint.metric))
    if early_stop is not None and early_stop.metric is not None:
        asked.append((("early_stop", "metric"), early_stop.metric))
    for where, metric in asked:
        for cell in searched:
            if not _has(metric, suites := set(cell.config.eval.suites)):
                raise sweep.source.error(where, f"{cell.label} has no metric {metric}{_nearest_metric(metric, suites)}")
    asked = [(("claims", number, "metric"), claim.metric) for number, claim in enumerate(sweep.config.claims)]
    asked += [(("guards", number, "metric"), guard.metric) for number, guard in enumerate(sweep.config.guards)]
    suites = {name for cell in cells for name in cell.config.eval.suites}
    for where, metric in asked:
        if not _has(metric, suites):
            raise sweep.source.error(where, f"no trial has the metric {metric}{_nearest_metric(metric, suites)}")


def _has(metric: str, suites: Collection[str]) -> bool:
    if not metric.startswith("eval/"):
        return metric in TRAINING or metric.startswith("script/")
    return suite_of(metric) in suites and is_measure(metric.split("/", 2)[2])


def _nearest_metric(metric: str, suites: Collection[str]) -> str:
    if not metric.startswith("eval"):
        return nearest(metric, TRAINING)
    suite = suite_of(metric)
    if suite in suites:
        return nearest(metric, [f"eval/{suite}/{measure}" for measure in MEASURES])
    return nearest(metric, [f"eval/{name}/pass_at_1" for name in sorted(suites)] or ["no suite"])


def _check_claims(sweep: PinnedSweep, grid: Sequence[Cell]) -> None:
    """Every claim can be judged, were all trials to finish: its cells, steps, suites and categories are there."""
    cells = {tuple(cell.names.items()): cell for cell in grid}
    if sweep.config.claims and not grid:
        raise sweep.source.error(("claims",), "claims are about the grid, of which there is none")
    try:
        found = comparisons(sweep.config.claims, [cell.names for cell in grid])
    except SettingError as error:
        raise sweep.source.error(error.where, error.message) from error
    for comparison in found:
        where: Where = ("claims", comparison.number)
        if comparison.claim.of == "gain" and comparison.at_a == comparison.at_b == "start":
            raise sweep.source.error((*where, "of"), "nothing is gained at the start; leave `of: gain` out")
        for side, at in (("a", comparison.at_a), ("b", comparison.at_b)):
            selected = [cells[tuple(names.items())] for pair in comparison.pairs for names in getattr(pair, side)]
            for cell in selected:
                if complaint := _cannot_judge(comparison.claim, cell, at=at):
                    raise sweep.source.error((*where, side), f"{cell.label}: {complaint}")
    for number, published in enumerate(sweep.config.published):
        _check_published(sweep, published, ("published", number), grid)


def _cannot_judge(claim: ClaimConfig, cell: Cell, *, at: str) -> str:
    """Why a cell can have no part in a claim, empty where it can."""
    suite = suite_of(claim.metric)
    if suite is None:
        return "" if claim.categories == "all" else f"{claim.metric} has no categories"
    measure = claim.metric.split("/", 2)[2]
    if measure == "gain":
        return f"{claim.metric} is one number a run; write metric: eval/{suite}/pass_at_1 with of: gain"
    if claim.categories != "all" and ("/" in measure or not is_over_problems(measure)):
        return f"{claim.metric} has no value for each problem, and so no categories"
    if suite not in cell.config.eval.suites:
        return f"it is not evaluated on {suite}; give all cells of a claim the suite"
    if complaint := _has_no_such(measure, suite, claim, cell):
        return complaint
    if (claim.of == "gain" or at == "start") and not cell.config.eval.at_start:
        return "it is not evaluated at the start; set eval.at_start: true"
    is_known = cell.waits_for is None or "category" in cell.labels
    if claim.categories != "all" and is_known and not trained_categories(cell.labels, cell.config):
        return f"categories: {claim.categories}: its examples' category is not said; add labels: {{category: ...}}"
    return ""


def _has_no_such(measure: str, name: str, claim: ClaimConfig, cell: Cell) -> str:
    """Why a suite does not have a measure, or the categories of a claim, as far as its problems are at hand."""
    suite = next(one for one in load_suites(cell.config) if one.name == name)
    part, _, last = measure.rpartition("/")
    power = last.removeprefix("pass_at_")
    if power.isdigit() and int(power) > suite.samples:
        return f"{name} has {suite.samples} completions a problem, so no {measure}"
    trained = (
        trained_categories(cell.labels, cell.config) if claim.categories != "all" and cell.waits_for is None else ()
    )
    if not part and not trained:
        return ""
    try:
        problems = suite.problems
    except DataError:  # not fetched yet
        return ""
    categories = sorted({problem.category for problem in problems if problem.category})
    there = {category_key(one) for one in categories}
    there |= {f"level {category_key(one.level.lower().removeprefix('level '))}" for one in problems if one.level}
    if part and part not in there:
        return f"{name} has no category {part!r}{nearest(part, sorted(there))}"
    if trained and not any(map(is_one_of(trained), categories)):
        return f"{name} has no problem of the category {', '.join(sorted(trained))}{nearest(min(trained), categories)}"
    return ""


def _check_published(sweep: PinnedSweep, published: PublishedConfig, where: Where, grid: Sequence[Cell]) -> None:
    suites = {name for cell in grid for name in cell.config.eval.suites}
    for place, suite in enumerate(published.columns):
        if suite not in suites:
            raise sweep.source.error(
                (*where, "columns", place), f"no trial has the suite{nearest(suite, sorted(suites))}"
            )
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
    """What a trial trains on of a suite that is for choosing, as the end of a sentence; empty: nothing."""
    if source not in VAL_SUITES:
        return ""
    examples = identify(config.examples)
    held_out = val_prompts(source)
    used = [name for name, prompt in zip(examples.ids, examples.prompts, strict=True) if prompt in held_out]
    if not used:
        return ""
    others = "dsr_sub-val, the other 1,009 rows" if source == "val" else "others"
    return (
        f"trains on {len(used)} of the problems that the suite `{source}` holds out ({used[0]}, ...); "
        f"train on {others}, or leave `{source}` out"
    )
