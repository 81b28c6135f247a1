"""A sweep file and its recorded sweep -> new, unchanged and orphaned trials, and the edits that are refused.

Only additions are accepted once a trial has a step on record. Trials are compared, not text: a change of the file that
affects no trial is no edit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oneshot.config.paths import flat
from oneshot.config.trial import TrialConfig
from oneshot.errors import OneshotError
from oneshot.plan.frozen import Frozen, Planned, Rules, frozen, rule_changes, suite_digests
from oneshot.plan.loader import recorded_sweep
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.tasks.benchmarks import due_evaluations, load_suites

HINT = "a sweep that has begun accepts only additions; undo the edit, or give the sweep a new name"
UNKEYED = (
    "model.device",
    "prompt.eval_",
    "rollout.kv_gib",
    "train.microbatch_tokens",
    "train.activation_checkpointing",
)
"""Settings that are part of no key."""
FROZEN = ("search", "early_stop", "guards", "claims")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """The trials of an edited sweep, compared with those of the sweep when it began."""

    new: tuple[Trial, ...]
    unchanged: tuple[Trial, ...]
    extended: dict[str, tuple[Trial, ...]]  # what was added -> trials that only got more steps or evaluations
    changed: tuple[Trial, ...]
    orphaned: tuple[Trial, ...]  # trials of the old plan that the new plan does not have
    refused: tuple[str, ...]  # edits that are not additions, one line each

    def to_json(self) -> dict[str, Any]:
        """Return the edits as `plan --json` prints them."""
        counts = {name: len(getattr(self, name)) for name in ("new", "unchanged", "changed", "orphaned")}
        extended = {addition: len(trials) for addition, trials in self.extended.items()}
        return {
            **counts,
            "extended": extended,
            "orphaned_trials": [trial.label for trial in self.orphaned],
            "refused": list(self.refused),
        }


def check_edits(run: SweepRun) -> None:
    """Refuse edits that are not additions. Raises SweepFileError: there is such an edit; names the first."""
    edits = find_edits(run)
    if edits is not None and edits.refused:
        raise run.sweep.source.error((), f"{edits.refused[0]}; {HINT}")


def find_edits(run: SweepRun) -> Edits | None:
    """Compare the file with the sweep when it began. None if the sweep has not begun, or nothing was edited."""
    sweep, plan, folder = run.sweep, run.plan, run.folder
    text = folder.read("sweep.yaml")
    if text is None:
        return None
    settings = folder.read_json("settings.json") or {}
    changed_suites = _suite_changes(frozen(folder, Planned()), plan)
    if text == sweep.source.text and settings == sweep.override_values():
        return _only_refused(plan, changed_suites) if changed_suites else None
    try:
        old = recorded_sweep(folder, text, name=f"{plan.name} as it began")
        before = make_plan(old)
    except OneshotError:  # written by a version with other settings; trial keys still tell trainings apart
        return None
    has_begun = any(run.store.trial(trial.key).list("metrics") for trial in before.trials if trial.key is not None)
    edits = _compare(old, before, sweep, plan, has_begun=has_begun)
    return replace(edits, refused=edits.refused + changed_suites)


def _suite_changes(record: Frozen, plan: Plan) -> tuple[str, ...]:
    """Return the frozen suites whose problems, answers or sampling are not what they were. New suites are additions."""
    now = suite_digests(trial.config for trial in plan.grid)
    changed = [name for name, digests in record.suites.items() if now.get(name) and not {*digests} <= {*now[name]}]
    sources = (
        {suite.name: suite.source for trial in plan.grid for suite in load_suites(trial.config)} if changed else {}
    )
    return tuple(
        f"eval.suites.{name}: the problems, answers or sampling of {sources[name]} are not the frozen ones"
        for name in changed
    )


def _only_refused(plan: Plan, refused: tuple[str, ...]) -> Edits:
    return Edits(new=(), unchanged=plan.trials, extended={}, changed=(), orphaned=(), refused=refused)


def _identity(trial: Trial) -> tuple[object, ...]:
    return trial.phase, tuple(trial.cell.items()), trial.seed, trial.study, trial.point


def _compare(old: PinnedSweep, before: Plan, sweep: PinnedSweep, plan: Plan, *, has_begun: bool) -> Edits:
    was = {_identity(trial): trial for trial in before.trials}
    now = {_identity(trial): trial for trial in plan.trials}
    refused = [change for name in FROZEN for change in _section_changes(name, old, sweep)]
    rules = rule_changes(Rules.of(old.config), Rules.of(sweep.config))
    refused += [f"{name} was changed" for name in rules]
    refused += _range_changes(before, plan)
    orphaned = tuple(trial for identity, trial in was.items() if identity not in now)
    if orphaned and has_begun:
        refused.append(f"{_labels(orphaned)} would be removed from the sweep")
    searched = {path for study in (*before.studies, *plan.studies) for path in study.space}
    unchanged: list[Trial] = []
    changed: dict[str, list[Trial]] = {}
    extended: dict[str, list[Trial]] = {}
    for identity, trial in now.items():
        if identity in was:
            if change := _trial_change(was[identity], trial, searched=searched):
                changed.setdefault(change, []).append(trial)
            elif addition := _addition(was[identity].config, trial.config):
                extended.setdefault(addition, []).append(trial)
            else:
                unchanged.append(trial)
    refused += [f"{_labels(trials)}: {change}" for change, trials in changed.items() if has_begun]
    return Edits(
        new=tuple(trial for identity, trial in now.items() if identity not in was),
        unchanged=tuple(unchanged),
        extended={addition: tuple(trials) for addition, trials in extended.items()},
        changed=tuple(trial for trials in changed.values() for trial in trials),
        orphaned=orphaned,
        refused=tuple(refused),
    )


def _labels(trials: Sequence[Trial]) -> str:
    more = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
    return f"{trials[0].label}{more}"


def _section_changes(name: str, old: PinnedSweep, sweep: PinnedSweep) -> list[str]:
    """Return the changes of a section that are refused. A search may get more points."""
    was, now = getattr(old.config, name), getattr(sweep.config, name)
    if name == "search" and was is not None and now is not None:
        if now.num_trials < was.num_trials:
            return [f"search.num_trials: {was.num_trials} -> {now.num_trials}"]
        was, now = (search.model_dump(exclude={"num_trials", "space"}) for search in (was, now))
        return [f"search.{key}: {was[key]} -> {now[key]}" for key in was if was[key] != now[key]]
    return [] if was == now else [f"{name} was changed"]


def _range_changes(before: Plan, plan: Plan) -> list[str]:
    """Return the changes of ranges, as their studies have them."""
    spaces = {study.name: study.space for study in plan.studies}
    return [
        f"the search of {study.name}: {path}: {study.space.get(path)} -> {spaces[study.name].get(path)}"
        for study in before.studies
        for path in sorted({*study.space, *spaces.get(study.name, study.space)})
        if study.name in spaces and study.space.get(path) != spaces[study.name].get(path)
    ]


def _trial_change(was: Trial, now: Trial, *, searched: Collection[str]) -> str:
    """Return how a trial changed, or an empty text if it only got more steps or evaluations.

    A search that got longer may give a trial without a key other values of the searched settings.
    """
    if was.config == now.config and was.key == now.key:
        return ""
    if now.config.train.num_steps < was.config.train.num_steps:
        return f"train.num_steps: {was.config.train.num_steps} -> {now.config.train.num_steps}"
    if was.key is None or now.key is None:
        changes = _differences(was.config, now.config, besides={*searched, *UNKEYED})
        if changes:
            return ", ".join(changes)
    elif was.key != now.key:
        changes = _differences(was.config, now.config, besides=())
        return ", ".join(changes) or "its model, examples or data changed"
    last = was.config.train.num_steps
    due, may_go = due_evaluations(now.config), now.config.train.num_steps > last
    is_lost = any(
        evaluation not in due and not (may_go and evaluation[1] == last) for evaluation in due_evaluations(was.config)
    )
    return "some of its evaluations would be removed" if is_lost else ""


def _addition(was: TrialConfig, now: TrialConfig) -> str:
    """Return what a trial got more of, or an empty text."""
    if was == now:
        return ""
    before, after = was.train.num_steps, now.train.num_steps
    if after > before:
        return f"{after - before} more steps ({before} -> {after})"
    recorded = due_evaluations(was)
    return "more evaluations" if any(evaluation not in recorded for evaluation in due_evaluations(now)) else ""


def _differences(was: TrialConfig, now: TrialConfig, *, besides: Collection[str]) -> list[str]:
    old, new = flat(was.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    skipped = ("eval.", "checkpoint.", "train.num_steps", *besides)
    return [
        f"{path}: {old.get(path)} -> {new.get(path)}"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path) and not path.startswith(skipped)
    ]
