"""A plan and its store -> the bytes that each trial leaves on disk, by kind, and those of the whole sweep.

Those of a cell with a finished trial are that trial's; others are estimated. The constants were measured on tables and
metrics of this project (docs/log.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from oneshot.config.trial import TrialConfig
from oneshot.models.memory import DTYPE_BYTES, critic_share
from oneshot.models.shapes import model_shape
from oneshot.plan.sweep_run import SweepRun
from oneshot.plan.trial import Trial
from oneshot.store.gc import KINDS, OTHER, kinds_of
from oneshot.store.records import MAX_SAMPLED, Result
from oneshot.store.trial_folder import COMPLETIONS, TrialFolder
from oneshot.tasks.benchmarks import due_steps, load_suites
from oneshot.trial.state import TrialState, trial_standing

TOKEN_BYTES = 1.2  # of a completion's text: about 4 characters, of which gzip leaves 30%
ROW_BYTES, TABLE_BYTES = 10, 300  # of a table of completions besides the texts
STEP_BYTES, EVALUATION_BYTES = 1000, 650  # of metrics
LOG_BYTES, OTHER_BYTES = 1000, 4500  # of a training

Bytes = dict[str, int | None]
"""Kind of data, as gc has it -> bytes; None if the model's size is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialDisk:
    """What one training leaves on disk."""

    bytes_by_kind: Bytes
    running_bytes: int | None  # most bytes of its checkpoints while it runs: a new one beside the old one
    is_measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The disk space of a sweep whose trials have all finished."""

    trials: tuple[TrialDisk, ...]  # of each trial of the plan
    bytes_by_kind: Bytes  # of all trainings, each once
    basis: tuple[str, ...]  # estimated, measured

    @property
    def num_bytes(self) -> int | None:
        """Return the sum over all kinds, or None if one is unknown."""
        return _sum(self.bytes_by_kind.values())

    @property
    def running_bytes(self) -> int | None:
        """Return the most that one running trial's checkpoints take, or None if one is unknown."""
        sizes = [trial.running_bytes for trial in self.trials]
        return None if None in sizes else max((size for size in sizes if size is not None), default=0)

    def to_json(self) -> dict[str, object]:
        """Return the totals as `plan --json` prints them."""
        names = ("num_bytes", "bytes_by_kind", "running_bytes")
        return {**{name: getattr(self, name) for name in names}, "basis": list(self.basis)}


def find_disk(sweep_run: SweepRun, *, num_finished: int) -> Disk:
    """Measure one finished trial of each cell, and estimate the trials of other cells."""
    measured: dict[tuple[str, ...], Mapping[str, int]] = {}
    for trial in sweep_run.plan.trials if num_finished else ():
        if trial.key is None or _cell(trial) in measured:
            continue
        folder = sweep_run.store.trial(trial.key)
        result = folder.result()
        if trial_standing(trial, result) is TrialState.FINISHED and _is_whole(folder, result):
            measured[_cell(trial)] = kinds_of(sweep_run.store, trial.key)
    by_config: dict[tuple[object, ...], TrialDisk] = {}
    trials = []
    for trial in sweep_run.plan.trials:
        name = (_cell(trial), trial.config.train.num_steps)
        if name not in by_config:
            sizes = measured.get(_cell(trial))
            weights, full = _checkpoints(trial.config)
            by_config[name] = TrialDisk(
                bytes_by_kind=_estimate(trial, weights, full) if sizes is None else dict(sizes),
                running_bytes=_sum((full, full, _best(trial.config, weights))),
                is_measured=sizes is not None,
            )
        trials.append(by_config[name])
    payers = {id(trial) for trial in sweep_run.plan.paid()}
    paid = [disk for trial, disk in zip(sweep_run.plan.trials, trials, strict=True) if id(trial) in payers]
    return Disk(
        trials=tuple(trials),
        bytes_by_kind={kind: _sum(disk.bytes_by_kind[kind] for disk in paid) for kind in (*KINDS, OTHER)},
        basis=tuple(sorted({"measured" if disk.is_measured else "estimated" for disk in paid})),
    )


def _is_whole(folder: TrialFolder, result: Result | None) -> bool:
    """Return whether gc has removed neither weights nor tables of a training by age."""
    has_weights = result is None or result.checkpoint == "none" or folder.read("checkpoint.json") is not None
    return has_weights and len(folder.list(COMPLETIONS)) >= len(folder.evaluations())


def _best(config: TrialConfig, weights: int | None) -> int | None:
    return weights if config.checkpoint.best_metric is not None else 0


def _cell(trial: Trial) -> tuple[str, ...]:
    return (trial.phase, str(trial.point), *trial.cell.values())


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(size for size in known if size is not None)


def _checkpoints(config: TrialConfig) -> tuple[int | None, int | None]:
    """Return the bytes of a trial's weights, and of a checkpoint with which it resumes; None for an unknown model."""
    if config.script is not None or config.train.num_steps == 0:
        return 0, 0
    if (shape := model_shape(config)) is None:
        return None, None
    adapter = config.model.adapter
    trained = shape.num_params if adapter is None else shape.adapter_params(adapter)
    weights = DTYPE_BYTES[config.model.dtype] * trained
    # AdamW's two moments, and a critic's own model with its moments
    return weights, round(3 * weights * (1 + critic_share(config, shape)))


def _estimate(trial: Trial, weights: int | None, full: int | None) -> Bytes:
    keep, config = trial.config.checkpoint.keep, trial.config
    kept = {"none": 0, "weights": weights, "full": full}[keep] if isinstance(keep, str) else weights
    best = _best(config, weights)
    suites = load_suites(config)
    counts = [len(due_steps(suite, config)) for suite in suites]
    num_evaluations = sum(counts)
    num_graded = sum((suite.count or 0) * suite.samples * num for suite, num in zip(suites, counts, strict=True))
    sampled, num_steps = 0.0, config.train.num_steps
    if num_steps and config.train.method == "grpo" and config.script is None:
        # of step 1, of the steps with evaluations and of the last
        num_tables = min(num_steps, 1 + max(1, max(counts, default=0) - config.eval.at_start))
        group = config.rollout.num_groups * config.rollout.group_size
        num_rows = min(MAX_SAMPLED, group)
        length = trial.cost.train_tokens / (num_steps * (1 + config.rollout.resample) * group)
        sampled = num_tables * (TABLE_BYTES + num_rows * (ROW_BYTES + TOKEN_BYTES * length))
    graded = num_evaluations * TABLE_BYTES + num_graded * ROW_BYTES + TOKEN_BYTES * trial.cost.eval_tokens
    return {
        "checkpoints": _sum((kept, best)),
        "completions": round(graded + sampled),
        "metrics": num_steps * STEP_BYTES + num_evaluations * EVALUATION_BYTES,
        "logs": LOG_BYTES,
        OTHER: OTHER_BYTES,
    }
