"""A sweep file and what its sweep began with -> what is new, unchanged or orphaned; edits that only add are accepted.

Compared are trials, not text: whatever a change of the file does to no trial is no edit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot.config.paths import flat
from oneshot.config.trial import TrialConfig
from oneshot.errors import OneshotError
from oneshot.plan.loader import recorded_sweep
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, Trial, make_plan
from oneshot.plan.sweep_run import SweepRun
from oneshot.tasks.benchmarks import due_evaluations

MEND = "only additions are taken up by a sweep that has begun; take it back, or give the sweep a new name"
UNKEYED = (
    "model.device",
    "prompt.eval_",
    "rollout.kv_gib",
    "train.microbatch_tokens",
    "train.activation_checkpointing",
)
"""Settings outside every key."""
FROZEN = ("search", "early_stop", "guards", "claims", "allow_selection_on_test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What has become of the trials that a sweep began with."""

    new: tuple[Trial, ...]
    unchanged: tuple[Trial, ...]
    """Also those of which only more is asked."""
    changed: tuple[Trial, ...]
    orphaned: tuple[Trial, ...]
    """Of the old plan, and in the new one no more."""
    refused: tuple[str, ...]
    """Edits that are no additions, a line each."""

    def to_json(self) -> dict[str, Any]:
        """What `plan --json` says of them."""
        counts = {name: len(getattr(self, name)) for name in ("new", "unchanged", "changed", "orphaned")}
        return {**counts, "orphaned_trials": [trial.label for trial in self.orphaned], "refused": list(self.refused)}


def check_edits(run: SweepRun) -> None:
    """Refuses edits that are no additions.

    Raises:
        SweepFileError: names each.
    """
    edits = find_edits(run)
    if edits is not None and edits.refused:
        raise run.sweep.source.error((), f"{edits.refused[0]}; {MEND}")


def find_edits(run: SweepRun) -> Edits | None:
    """What the file says now against what its sweep began with; None where it has not begun, or says the same."""
    sweep, plan, folder = run.sweep, run.plan, run.folder
    text = folder.read("sweep.yaml")
    if text is None:
        return None
    settings = folder.read_json("settings.json") or {}
    if text == sweep.source.text and settings == _settings(sweep):
        return None
    try:
        old = recorded_sweep(folder, text, name=f"{plan.name} as it began")
        before = make_plan(old)
    except OneshotError:  # written by a version that knew other keys: trials can still be told apart by theirs
        return None
    return _compare(old, before, sweep, plan)


def _settings(sweep: PinnedSweep) -> dict[str, Any]:
    return {path: setting.value for path, setting in sweep.overrides.items()}


def _identity(trial: Trial) -> tuple[object, ...]:
    return trial.phase, tuple(trial.cell.items()), trial.seed, trial.study, trial.point


def _compare(old: PinnedSweep, before: Plan, sweep: PinnedSweep, plan: Plan) -> Edits:
    was = {_identity(trial): trial for trial in before.trials}
    now = {_identity(trial): trial for trial in plan.trials}
    refused = [complaint for name in FROZEN for complaint in _frozen(name, old, sweep)]
    refused += _searched_otherwise(before, plan)
    orphaned = tuple(trial for identity, trial in was.items() if identity not in now)
    if orphaned:
        refused.append(f"{_labels(orphaned)} of this sweep would be left out")
    searched = {path for study in (*before.studies, *plan.studies) for path in study.space}
    unchanged: list[Trial] = []
    changed: dict[str, list[Trial]] = {}
    for identity, trial in now.items():
        if identity in was:
            complaint = _changed(was[identity], trial, searched=searched)
            (changed.setdefault(complaint, []) if complaint else unchanged).append(trial)
    refused += [f"{_labels(those)}: {complaint}" for complaint, those in changed.items()]
    return Edits(
        new=tuple(trial for identity, trial in now.items() if identity not in was),
        unchanged=tuple(unchanged),
        changed=tuple(trial for those in changed.values() for trial in those),
        orphaned=orphaned,
        refused=tuple(refused),
    )


def _labels(trials: Sequence[Trial]) -> str:
    more = f" and {len(trials) - 1} more" if len(trials) > 1 else ""
    return f"{trials[0].label}{more}"


def _frozen(name: str, old: PinnedSweep, sweep: PinnedSweep) -> list[str]:
    """What of a section has been changed; a search may be given more points."""
    was, now = getattr(old.config, name), getattr(sweep.config, name)
    if name == "search" and was is not None and now is not None:
        if now.num_trials < was.num_trials:
            return [f"search.num_trials: {was.num_trials} -> {now.num_trials}"]
        was, now = (one.model_dump(exclude={"num_trials", "space"}) for one in (was, now))
        return [f"search.{key}: {was[key]} -> {now[key]}" for key in was if was[key] != now[key]]
    return [] if was == now else [f"{name} was changed"]


def _searched_otherwise(before: Plan, plan: Plan) -> list[str]:
    """Ranges that have changed, as their studies have them."""
    spaces = {study.name: study.space for study in plan.studies}
    return [
        f"the search of {study.name}: {path}: {study.space.get(path)} -> {spaces[study.name].get(path)}"
        for study in before.studies
        for path in sorted({*study.space, *spaces.get(study.name, study.space)})
        if study.name in spaces and study.space.get(path) != spaces[study.name].get(path)
    ]


def _changed(was: Trial, now: Trial, *, searched: Collection[str]) -> str:
    """What a trial was and is not, empty where it only got more; a search that got longer may set it otherwise."""
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
        return ", ".join(changes) or "its model, examples or data have changed"
    last = was.config.train.num_steps
    lost = due_evaluations(was.config) - due_evaluations(now.config)
    if now.config.train.num_steps > last:
        lost = {(suite, step) for suite, step in lost if step != last}
    return "evaluations that were asked for are not asked for any more" if lost else ""


def _differences(was: TrialConfig, now: TrialConfig, *, besides: Collection[str]) -> list[str]:
    old, new = flat(was.model_dump(mode="json")), flat(now.model_dump(mode="json"))
    skipped = ("eval.", "checkpoint.", "train.num_steps", *besides)
    return [
        f"{path}: {old.get(path)} -> {new.get(path)}"
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path) and not path.startswith(skipped)
    ]
