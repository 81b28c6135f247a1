"""A store's sweeps and their `keep` rules -> how long gc keeps each training's weights and tables of completions.

A rule applies to trainings that are finished for every sweep that has them; the most careful of the sweeps' rules
counts. The tables that a claim of any of these sweeps is judged by stay, whatever their age.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from oneshot.config.claims import ClaimConfig
from oneshot.config.file import read
from oneshot.config.sweep import KeepConfig
from oneshot.errors import OneshotError, first_line
from oneshot.plan.claims import judged_suites
from oneshot.plan.loader import begun_sweep, begun_text
from oneshot.report.runs import Gathered, Run, gather
from oneshot.report.steps import NoStepError, find_step
from oneshot.store.folder import now_ms
from oneshot.store.gc import DAY_MS, STARTS, Retention, keys_of
from oneshot.store.records import Result
from oneshot.store.store import Store
from oneshot.store.trial_folder import table_name
from oneshot.tasks.measures import measure_of, suite_of
from oneshot.trial.state import TrialState

UNREADABLE = (OneshotError, ValueError, KeyError, TypeError)
"""Errors of a sweep that another version wrote, or whose data or records are missing or damaged."""


def retentions(store: Store, *, without: str | None = None) -> tuple[dict[str, Retention], list[str]]:
    """Return the rule for each training that has one, by key, and a line for each sweep that cannot be read.

    The trainings of a sweep that cannot be read have no rule. `without` is a sweep that does not count.
    """
    keys_by_sweep = {name: keys for name in store.sweeps() if name != without and (keys := keys_of(store, name))}
    rules, faults = _rules(store, [name for name in store.sweeps() if name != without])
    unreadable = [line for name, line in faults.items() if name in keys_by_sweep]
    if set(rules.values()) <= {KeepConfig()}:
        return {}, []
    owners: dict[str, list[str]] = {}
    for name, keys in keys_by_sweep.items():
        for key in keys:
            owners.setdefault(key, []).append(name)
    loosest = {key: most_careful(rules[name] for name in names) for key, names in owners.items()}
    timed = {key for key, rule in loosest.items() if rule != KeepConfig() and is_old(store.trial(key).result(), rule)}
    tables: dict[str, set[str]] = {key: set() for key in timed}
    for name, keys in keys_by_sweep.items():
        if not keys & timed:
            continue
        try:
            needed = needed_tables(gather(begun_sweep(store, name)))
        except UNREADABLE as error:
            unreadable.append(_unreadable(name, error))
            needed = {}
        for key in keys & tables.keys():
            if key in needed:
                tables[key] |= needed[key]
            else:
                del tables[key]
    kept = {
        key: Retention(**loosest[key].model_dump(), needed_tables=frozenset(names)) for key, names in tables.items()
    }
    return kept, unreadable


def _rules(store: Store, names: Iterable[str]) -> tuple[dict[str, KeepConfig], dict[str, str]]:
    """Return each sweep's rules as it last ran, and why some cannot be read: these keep everything.

    A sweep keeps everything, too, if another one waits to begin from its weights.
    """
    rules, faults, awaited = {}, {}, set()
    for name in names:
        try:
            config = read(begun_text(store, name), name=name).config
            rules[name] = config.keep
            if store.sweep(name).read_json(STARTS) is None:
                awaited |= set(_first_stages([config.trial, config.model_dump(include={"axes", "grid"})]))
        except UNREADABLE as error:
            rules[name] = KeepConfig()
            faults[name] = _unreadable(name, error)
    return {name: KeepConfig() if name in awaited else rule for name, rule in rules.items()}, faults


def _first_stages(settings: Any) -> Iterator[str]:
    """Yield the sweeps that `model.init` names somewhere in nested settings."""
    if isinstance(settings, list):
        for inner in settings:
            yield from _first_stages(inner)
    if not isinstance(settings, dict):
        return
    for path, value in settings.items():
        if path.endswith("init") and isinstance(value, dict) and isinstance(value.get("sweep"), str):
            yield value["sweep"]
        elif path.endswith("init.sweep") and isinstance(value, str):
            yield value
        yield from _first_stages(value)


def _unreadable(name: str, error: Exception) -> str:
    return f"{name}: cannot be read, so nothing of its trainings is removed by age: {first_line(error)}"


def is_old(result: Result | None, rule: KeepConfig) -> bool:
    """Return whether a training ended longer ago than one of a rule's times."""
    days = [each for each in (rule.checkpoint_days, rule.completion_days) if each is not None]
    return result is not None and bool(days) and now_ms() - result.ended_ms > min(days) * DAY_MS


def most_careful(rules: Iterable[KeepConfig]) -> KeepConfig:
    """Return the rule that keeps longest; absent days are for ever."""
    given = list(rules)

    def longest(days: Sequence[float | None]) -> float | None:
        return None if None in days else max(each for each in days if each is not None)

    return KeepConfig(
        checkpoint_days=longest([rule.checkpoint_days for rule in given]),
        completion_days=longest([rule.completion_days for rule in given]),
    )


def needed_tables(gathered: Gathered) -> dict[str, set[str]]:
    """Return the tables that the claims are judged by, for each training that is finished in all trials of the sweep.

    They are those of the suites that some claim judges: at the start, at the last step, and at the best or saturated
    step if a claim is about it. A training without such a suite on this machine is left out, as if it were open.
    """
    claims = (*gathered.frozen.claims, *gathered.amended)
    runs = (*gathered.runs, *gathered.searched)
    needed: dict[str, set[str]] = {run.key: set() for run in runs if run.key is not None}
    for number, run in enumerate(runs):
        if run.key not in needed:
            continue
        suites = {suite.name: suite.digest for suite in run.suites}
        # no claim is about a search's trials
        reads = set(_reads(run, claims, gathered)) if number < len(gathered.runs) else set()
        if run.state is not TrialState.FINISHED or not {suite for suite, _ in reads} <= suites.keys():
            del needed[run.key]
        else:
            needed[run.key] |= {table_name(suites[suite], step) for suite, step in reads}
    return needed


def _reads(run: Run, claims: Sequence[ClaimConfig], gathered: Gathered) -> Iterator[tuple[str, int]]:
    """Yield suite and step of each evaluation of a run that some claim may be judged by."""
    for claim in claims:
        suites = judged_suites(claim, gathered.judging.groups)
        for suite in suites:
            yield from ((suite, step) for step in (0, run.num_steps))
        named = {*suites, *filter(None, (suite_of(claim.metric), claim.b.get("suite")))}  # a group has steps of its own
        strict = measure_of(claim.metric).removesuffix("_lenient") if named else ""
        for at in {claim.a.get("at", "last"), claim.b.get("at", "last"), *claim.over_settings.at}:
            for name, measure in product(named, (strict, f"{strict}_lenient")):
                metric, selects_on_test = f"eval/{name}/{measure}", gathered.selects_on_test
                try:
                    step = find_step(run, at, suite=name, metric=metric, selects_on_test=selects_on_test)
                except NoStepError:
                    continue
                yield from ((suite, step) for suite in suites)
