"""A trial or a sweep, and its record -> the parameters, metrics, tags, tables and datasets of its MLflow run."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from oneshot.config.claims import GroupConfig
from oneshot.config.paths import flat
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.report.cells import CellLine
from oneshot.report.verdicts import JudgedClaim
from oneshot.store.records import Result, Row
from oneshot.sweep.cluster.package import commit
from oneshot.sweep.tracking.views import GAIN, LAST
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.examples import identify
from oneshot.tasks.measures import category_key, measure_of, suite_of
from oneshot.trial.state import TrialState, trial_standing

TAG_LENGTH = 7500  # longest tag; MLflow silently cuts tags at 8,000 characters
MOST_CELLS = 200  # most cells with gains on the sweep's run, whose page lists all its metrics; `cells.json` has all
CUT = "*Cut here: the rest is under Artifacts, in `report/`.*"
ACCURACIES = ("pass_at_1", "pass_at_1_lenient", "gain", "avg_at_k", "pass_at_k")
CURVES = (*ACCURACIES, "boxed", "truncated", "length_mean")
"""A suite's measures that MLflow draws as curves; the rest is one table a trial: hundreds of curves freeze a page."""


def cut(text: str, length: int) -> str:
    """Return the text, or as many of its whole lines as fit before a note that it was cut."""
    if len(text) <= length:
        return text
    head = text[: length - len(CUT) - 2]
    return f"{head.rpartition(chr(10))[0] or head}\n\n{CUT}"


def tag_name(text: str) -> str:
    """Return a name that MLflow accepts: letters, digits and some marks."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", " ", text)[:250]


def plain_name(suite: str) -> str:
    """Return the name of a suite, or of a group without its `@`, which MLflow does not take."""
    return suite.removeprefix("@")


def is_curve(name: str) -> bool:
    """Return whether MLflow shows a metric as a curve: all but a suite's minor measures."""
    group, _, rest = name.partition("/")
    if group != "eval":
        return True
    _, _, measure = rest.partition("/")
    category, _, last = measure.rpartition("/")
    return measure in CURVES or (last == "pass_at_1" and not category.startswith("level "))


def measures_table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the evaluation measures that are not curves, one line for each suite, step and measure."""
    data = [
        [suite_of(name), measure_of(name), row.step, value]
        for row in rows
        for name, value in row.metrics.items()
        if not is_curve(name)
    ]
    return {"columns": ["suite", "measure", "step", "value"], "data": data}


def with_groups(rows: Sequence[Row], trial: Trial, groups: Mapping[str, GroupConfig]) -> list[Row]:
    """Return the rows with the mean pass@1 of each group of suites, as if the group were a suite."""
    if not groups:
        return list(rows)
    sizes = {suite.name: suite.count for suite in load_suites(trial.config)}
    return [replace(row, metrics={**row.metrics, **dict(_group_metrics(row.metrics, groups, sizes))}) for row in rows]


def _group_metrics(
    metrics: Mapping[str, float], groups: Mapping[str, GroupConfig], sizes: Mapping[str, int | None]
) -> Iterator[tuple[str, float]]:
    for name, group in groups.items():
        for measure in ("pass_at_1", "gain"):
            values = {
                suite: metrics[f"eval/{suite}/{measure}"]
                for suite in group.suites
                if f"eval/{suite}/{measure}" in metrics
            }
            if (mean := group.mean(values, sizes)) is not None:
                yield f"eval/{name}/{measure}", mean


def run_status(trial: Trial, result: Result) -> str:
    """Return MLflow's status of a trial that has ended."""
    return "FINISHED" if trial_standing(trial, result) is TrialState.FINISHED else "FAILED"


def run_identity(trial: Trial) -> str:
    """Return the tag by which a trial's run is found."""
    return f"{trial.key} {trial.label}"


def end_metrics(trial: Trial, rows: Sequence[Row], groups: Collection[str] = ()) -> dict[str, float]:
    """Return the accuracy after the last step and the gain of a trial on each suite or group, under short names."""
    last = next((row.metrics for row in rows if row.step == trial.config.train.num_steps), {})
    measures = {LAST: "pass_at_1", GAIN: "gain"}
    return {
        f"{end}/{suite}": last[f"eval/{suite}/{measure}"]
        for suite in (*trial.config.eval.suites, *groups)
        for end, measure in measures.items()
        if f"eval/{suite}/{measure}" in last
    }


def sweep_tags(plan: Plan) -> dict[str, str]:
    """Return what an edit of the file can add to: the cells of each axis, the seeds and the numbers of steps."""
    trials = plan.grid or plan.trials
    values: dict[str, list[str]] = {}
    for trial in trials:
        for axis, name in trial.cell.items():
            values.setdefault(f"axis.{axis}", []).append(name)
        values.setdefault("seeds", []).append(str(trial.seed))
        values.setdefault("steps", []).append(str(trial.config.train.num_steps))
    return {name: cut(", ".join(dict.fromkeys(each)), TAG_LENGTH) for name, each in values.items()}


def sweep_params(plan: Plan) -> list[tuple[str, str]]:
    """Return the settings that all trials share, without defaults and without what an edit of the file can add to."""
    dumps = (flat(trial.config.model_dump(mode="json", exclude_defaults=True)) for trial in plan.trials)
    settings = [{path: _text(value) for path, value in dump.items()} for dump in dumps]
    return [
        (path, value)
        for path, value in (settings[0].items() if settings else ())
        if all(each.get(path) == value for each in settings)
        if not path.startswith(("eval.", "checkpoint.", "train.num_steps"))
    ]


def sweep_metrics(states: Iterable[TrialState], lines: Sequence[CellLine], *, num_cells: int) -> dict[str, float]:
    """Return the number of trials by state, and the mean gain of each cell on each suite, unless the plan has many."""
    counts = Counter(states)
    shown = (TrialState.FINISHED, TrialState.FAILED, TrialState.STOPPED, TrialState.MISSING)
    gains = {
        f"gains/{plain_name(line.suite)}/{category_key(' '.join(line.cell.values()))}": line.gain.mean
        for line in lines
        if line.gain is not None and num_cells <= MOST_CELLS
    }
    return {"trials/all": counts.total(), **{f"trials/{state}": counts[state] for state in shown}, **gains}


def claim_metrics(judged: Sequence[JudgedClaim]) -> dict[str, float]:
    """Return the effect of each claim with its interval."""
    return {
        f"claims/{category_key(' '.join([claim.name, *claim.cells.values()]))}/{name}": number
        for claim in judged
        for name, number in (("effect", claim.effect), ("low", claim.low), ("high", claim.high))
        if number is not None
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_params(trial: Trial) -> list[tuple[str, str]]:
    """Return the parameters of a trial's run."""
    # `cell` repeats the axes in one name, by which MLflow groups runs better than by several
    params = {"cell": "/".join(trial.cell.values())} | {f"cell.{axis}": name for axis, name in trial.cell.items()}
    params |= {"seed": str(trial.seed), "phase": trial.phase}
    if trial.phase == "search":
        params |= {"study": trial.study, "point": str(trial.point)}
    config = flat(trial.config.model_dump(mode="json"))
    return [*params.items(), *((path, _text(value)) for path, value in config.items())]


def dataset_inputs(trial: Trial) -> list[DatasetInput]:
    """Return the training examples and the suites as MLflow datasets."""
    datasets = [(suite.name, suite.digest, "eval", len(suite.problems)) for suite in load_suites(trial.config)]
    examples = identify(trial.config.examples)
    if examples.ids:
        digest = sha256("".join(examples.digests).encode()).hexdigest()
        datasets.insert(0, (", ".join(examples.ids), digest, "training", len(examples.ids)))
    return [
        DatasetInput(
            Dataset(
                name=name[:500],
                digest=digest[:36],
                source_type="oneshot",
                source=json.dumps({"name": name[:500]}),
                profile=json.dumps({"num_problems": num_problems}),
            ),
            tags=[InputTag("mlflow.data.context", context)],
        )
        for name, digest, context, num_problems in datasets
    ]


def trial_tags(trial: Trial, number: int, attempt: Mapping[str, Any], *, sweep: str) -> dict[str, str]:
    """Return the tags of a trial whose last attempt has this number and record."""
    tags = {
        "sweep": sweep,
        "trial.key": str(trial.key),
        "seed": str(trial.seed),
        "phase": trial.phase,
        "attempt": str(number),
        "env.digest": attempt["env_digest"],
        "gpu": attempt["gpu"] or "none",
        **placement_tags(attempt),
        **{f"cell.{axis}": name for axis, name in trial.cell.items()},
        **{f"label.{name}": value for name, value in trial.labels.items()},
        **source_tags(),
    }
    return tags if attempt["sweep"] == sweep else {**tags, "reused.from": attempt["sweep"]}


def placement_tags(attempt: Mapping[str, Any]) -> dict[str, str]:
    """Return an attempt's processes and rollout engine; attempts recorded before there was a choice have defaults."""
    usual = {"num_processes": 1, "strategy": "single", "engine": "lockstep"}
    return {name: str(attempt.get(name, value)) for name, value in usual.items()}


def source_tags() -> dict[str, str]:
    """Return the commit of the running checkout, if it is one."""
    revision = commit()
    return {} if revision is None else {"mlflow.source.git.commit": revision}
