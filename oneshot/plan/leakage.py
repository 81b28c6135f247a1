"""A sweep and its cells -> an error if what it chooses by is also what it judges by or trains on.

The metrics that choose (objective and constraint of a search, early stopping, guards, `at: best`) may not be metrics of
a claim, nor of a suite that has any of its problems under another name. The seeds of a search may not be seeds of the
grid. Problems for choosing may not be trained on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from oneshot.config.claims import ClaimConfig, GroupConfig, PublishedConfig
from oneshot.config.paths import SettingError, Where
from oneshot.config.sweep import SweepConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, nearest
from oneshot.plan.cells import Cell
from oneshot.plan.claims import comparisons, judged_suites, trained_categories
from oneshot.plan.keep_best import check_kept, kept_by
from oneshot.plan.pinned import PinnedSweep
from oneshot.tasks.benchmarks import Suite, load_suites, val_prompts
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import (
    category_key,
    group_of,
    has_metric,
    is_one_of,
    is_over_problems,
    measure_of,
    nearest_metric,
    suite_of,
)

MIN_CELLS = 3  # of an axis that a claim takes the mean over
Suites = Sequence[tuple[Suite, ...]]  # the suites of each trial
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
    kept = kept_by([cell.config for cell in cells])
    suites = _suites([cell.config for cell in cells]) if config.claims else ()
    for number, claim in enumerate(config.claims):
        for where, metric in _guards(config):
            if (reason := _overlap(metric, claim, config.groups, suites)) is not None:
                why = (
                    f"{metric} is judged by claims.{number}{reason}; a guard fails trials, which changes who is judged"
                )
                raise sweep.source.error(where, f"{why}; guard a metric of training, such as rollout/entropy")
        if chosen_by := chosen(config, claim, suites, kept):
            raise sweep.source.error(("claims", number, "metric"), f"{claim.metric} also chooses: {chosen_by}; {HINT}")


def choices(config: SweepConfig, claims: Sequence[ClaimConfig], configs: Sequence[TrialConfig]) -> dict[str, str]:
    """Return what chooses by the problems of each metric that is judged, as `allow_selection_on_test` lets it.

    The key is the metric, with ` at best` if a claim chooses its step.
    """
    suites, kept = _suites(configs), kept_by(configs)
    found = {}
    for claim in claims:
        reasons = [chosen(config, claim, suites, kept)]
        reasons += [
            f"{'.'.join(map(str, where[:2]))}{reason}"
            for where, metric in _guards(config)
            if (reason := _overlap(metric, claim, config.groups, suites)) is not None
        ]
        if text := ", ".join(filter(None, reasons)):
            found[choice_key(claim)] = text
    return found


def choice_key(claim: ClaimConfig) -> str:
    """Return the key of a claim in what `choices` returns."""
    return f"{claim.metric} at best" if _is_at_best(claim) else claim.metric


def _is_at_best(claim: ClaimConfig) -> bool:
    return "best" in (claim.a.get("at"), claim.b.get("at"), *claim.over_settings.at)


def chosen(config: SweepConfig, claim: ClaimConfig, suites: Suites, kept: Mapping[str, str]) -> str:
    """Return what chooses by the problems that a claim judges, or an empty text. `kept` is what `kept_by` returns."""
    choosers = {**kept, **{metric: ".".join(where[:2]) for where, metric in _choosers(config)}}
    for metric, chooser in choosers.items():
        if (reason := _overlap(metric, claim, config.groups, suites)) is not None:
            return f"{chooser}{reason}"
    if not _is_at_best(claim):
        return ""
    judged = judged_suites(claim, config.groups)
    has_chooser = False
    for of_trial in suites:
        # as report/steps.py chooses: by the first suite for choosing that the claim does not judge
        by = next((suite for suite in of_trial if suite.source in VAL_SUITES and suite.name not in judged), None)
        has_chooser = has_chooser or by is not None
        for suite in of_trial:
            if by is not None and suite.name in judged and (shared := len(by.prompts & suite.prompts)):
                return f"`at: best`, which chooses a step by {by.name}, with {shared} of the problems of {suite.name}"
    return "" if has_chooser else "`at: best`, which chooses a step by it"


def _choosers(config: SweepConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the place and the name of each metric that chooses."""
    search, early_stop = config.search, config.early_stop
    if search is not None:
        yield ("search", "objective", "metric"), search.objective.metric
        if search.constraint is not None:
            yield ("search", "constraint", "metric"), search.constraint.metric
    if early_stop is not None and early_stop.metric is not None:
        yield ("early_stop", "metric"), early_stop.metric


def _guards(config: SweepConfig) -> Iterator[tuple[Where, str]]:
    """Yield the place and the metric of each guard that fails trials by a value. A metric that is nan has none."""
    for number, guard in enumerate(config.guards):
        if guard.is_ is None:
            yield ("guards", number, "metric"), guard.metric


def _suites(configs: Iterable[TrialConfig]) -> Suites:
    """Return the suites of each trial, each set of suites once."""
    by_rule = {config.model_dump_json(include={"eval", "prompt", "rollout"}): config for config in configs}
    return tuple(load_suites(config) for config in by_rule.values())


def _overlap(metric: str, claim: ClaimConfig, groups: Mapping[str, GroupConfig], suites: Suites) -> str | None:
    """Return how a metric is about what a claim judges; an empty text if it is its metric or suite, None if not at all.

    Suites are compared by their problems: a copy of a file is the same suite under another name.
    """
    name, judged = suite_of(metric), judged_suites(claim, groups)
    if name is None or not judged:
        return "" if metric == claim.metric else None
    names = [*groups[name[1:]].suites] if name.startswith("@") and name[1:] in groups else [name]
    if not {*names}.isdisjoint(judged):
        return ""
    every = [suite for of_trial in suites for suite in of_trial]
    for suite in (suite for suite in every if suite.name in judged):
        for own in (own for own in every if own.name in names):
            if shared := len(own.prompts & suite.prompts):
                return f", whose {own.name} has {shared} of the problems of {suite.name}"
    return None


def _check_metrics(sweep: PinnedSweep, cells: Sequence[Cell], searched: Sequence[Cell]) -> None:
    """Refuse a metric of a search that some of its cells do not have, and other metrics that no trial has."""
    for where, metric in _choosers(sweep.config):
        for cell in searched:
            if not has_metric(metric, suites := set(cell.config.eval.suites), cell.config.eval.graders):
                raise sweep.source.error(where, f"{cell.label} has no metric {metric}{nearest_metric(metric, suites)}")
    suites = {name for cell in cells for name in cell.config.eval.suites}
    graders = {name for cell in cells for name in cell.config.eval.graders}
    for name, group in sweep.config.groups.items():
        if name in suites:
            raise sweep.source.error(("groups", name), "is also the name of a suite; give the group another name")
        for place, suite in enumerate(group.suites):
            if suite not in suites:
                why = f"no trial has the suite{nearest(suite, sorted(suites))}"
                raise sweep.source.error(("groups", name, "suites", place), why)
    groups = {f"@{name}" for name in sweep.config.groups}
    for section, measured in (("claims", sweep.config.claims), ("guards", sweep.config.guards)):
        for number, metric in enumerate(each.metric for each in measured):
            there = suites | groups if section == "claims" else suites
            if not has_metric(metric, there, graders):
                is_undeclared = section == "claims" and not groups and group_of(metric) is not None
                hint = "; declare the group under `groups`" if is_undeclared else nearest_metric(metric, there)
                why = f"no trial has the metric {metric}{hint}"
                raise sweep.source.error((section, number, "metric"), why)


def _check_claims(sweep: PinnedSweep, grid: Sequence[Cell]) -> None:
    """Check that every claim has the cells, steps, suites and categories to be judged once all trials finish."""
    cells = {tuple(cell.names.items()): cell for cell in grid}
    suites = {name for cell in grid for name in cell.config.eval.suites} | {f"@{name}" for name in sweep.config.groups}
    graders = {name for cell in grid for name in cell.config.eval.graders}
    if sweep.config.claims and not grid:
        raise sweep.source.error(("claims",), "claims are about the grid, and there is no grid; remove them")
    try:
        all_comparisons = comparisons(sweep.config.claims, [cell.names for cell in grid])
    except SettingError as error:
        raise sweep.source.error(error.where, error.message) from error
    for comparison in all_comparisons:
        where: Where = ("claims", comparison.number)
        claim = comparison.claim
        num_parts = sum((each.number, each.cells) == (comparison.number, comparison.cells) for each in all_comparisons)
        if claim.of == "gain" and comparison.at_a == comparison.at_b == "start":
            raise sweep.source.error((*where, "of"), "the gain at the start is always 0; remove `of: gain`")
        if claim.expect.share_at_least is not None and claim.of != "gain":
            raise sweep.source.error((*where, "of"), "share_at_least is a share of a gain; set `of: gain`")
        if claim.over is not None and num_parts < MIN_CELLS:
            why = f"a mean over {num_parts} cells has no interval; needs {MIN_CELLS}, or use for_each or for_all"
            raise sweep.source.error((*where, "over"), why)
        if claim.over_settings.grader and not measure_of(claim.metric).removesuffix("_lenient").endswith("pass_at_1"):
            why = f"{claim.metric} is the same by every grader; judge pass_at_1, or remove `grader`"
            raise sweep.source.error((*where, "over_settings", "grader"), why)
        for side, at, metric in (("a", comparison.at_a, claim.metric), ("b", comparison.at_b, comparison.metric_b)):
            if metric != claim.metric and not has_metric(metric, suites, graders):
                raise sweep.source.error((*where, "b", "suite"), f"no trial has it{nearest_metric(metric, suites)}")
            selected = [cells[tuple(names.items())] for pair in comparison.pairs for names in getattr(pair, side)]
            for cell, each in product(selected, _metrics_of(metric, sweep.config.groups)):
                if complaint := _cannot_judge(claim, cell, each, at=at):
                    raise sweep.source.error((*where, side), f"{cell.label}: {complaint}")
    for number, published in enumerate(sweep.config.published):
        _check_published(sweep, published, ("published", number), grid)


def _metrics_of(metric: str, groups: Mapping[str, GroupConfig]) -> list[str]:
    """Return the metrics of a group's suites, or the metric itself."""
    group = group_of(metric)
    return [metric] if group is None else [f"eval/{suite}/{measure_of(metric)}" for suite in groups[group].suites]


def _cannot_judge(claim: ClaimConfig, cell: Cell, metric: str, *, at: str) -> str:
    """Return why a cell cannot be part of a claim, or an empty text if it can."""
    suite = suite_of(metric)
    if suite is None:
        return "" if claim.categories == "all" else f"{metric} has no categories"
    measure = measure_of(metric)
    if measure == "gain":
        return f"{metric} has no value by problem; use metric: eval/{suite}/pass_at_1 with of: gain"
    if claim.categories != "all" and ("/" in measure or not is_over_problems(measure)):
        return f"{metric} has no value by problem, so it cannot be restricted to categories"
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
    suites = {name for cell in grid for name in cell.config.eval.suites} | {f"@{name}" for name in sweep.config.groups}
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
