"""A training and its folder -> the training done and recorded; in Ray and out of it alike.

`record` yields after each step. What it writes is enough to show the training, to judge it and to continue it: a
segment of metrics at every checkpoint and at least every 10 s, tables of completions, checkpoints, and the result last.
"""

import errno
import io
import json
import logging
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from oneshot.config.sweep import GuardConfig
from oneshot.errors import DataError, DeadProcessError, GuardError, TrialError, UserError
from oneshot.logs import JsonLines, wants_json
from oneshot.models.placement import choose_strategy
from oneshot.plan.trainings import Training
from oneshot.store.folder import now_ms
from oneshot.store.lease import Holder, Lease, LeaseLost, take
from oneshot.store.records import EVALUATION_COLUMNS, SAMPLED_COLUMNS, FailureKind, Row
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.tasks.grading import Grader
from oneshot.training.metrics import Evaluation, StepMetrics
from oneshot.trial.trainer import Trainer, begin, make_ready

SEGMENT_S = 10.0
MAX_SAMPLED = 64
"""Training completions kept of one step."""

logger = logging.getLogger(__name__)


def record(
    training: Training,
    folder: TrialFolder,
    *,
    grader: Grader,
    origin: str,
    stale_holder: Holder | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Generator[StepMetrics]:
    """Runs a training to its end, from its checkpoint if it has one, and records it in its folder.

    `origin` names the sweep, or whatever else asked; `stale_holder` is who held the folder last and was seen to be
    gone; `facts` are kept with the attempt. A training that fails is recorded with its traceback and log, and raises
    nothing: whoever runs it reads the result.
    Closing the generator saves a checkpoint first. Whoever loses the folder to another leaves without a word in it.

    Raises:
        Leased: another process is at this training.
    """
    make_ready(training)
    lease = take(
        folder, sweep=origin, metadata={**environment(), **_spread(training), **facts}, stale_holder=stale_holder
    )
    recorder = _Recorder(training, folder, lease)
    try:
        trainer = recorder.begin(grader)
        for step in recorder.steps(trainer):
            recorder.take(step, trainer)
            yield step
        recorder.end(trainer)
    except LeaseLost as lost:
        logger.warning("leaves without writing: %s", lost)
    except GeneratorExit:
        recorder.interrupt()
        raise
    except Exception as error:  # whatever a trial dies of is its result; the sweep goes on with the others
        logger.error("the trial failed: %s", error)
        recorder.fail(error)
    finally:
        recorder.close()


class _Recorder:
    """What one attempt has done so far, and its writing."""

    def __init__(self, training: Training, folder: TrialFolder, lease: Lease) -> None:
        self.training = training
        self.folder = folder
        self.lease = lease
        self.attempt = lease.attempt
        self.log = _Log(sweep=lease.holder.sweep, key=training.key, attempt=lease.attempt)
        self.guards = Guards(training.guards)
        self.pending: list[Row] = []
        self.last_segment_s = self.last_checkpoint_s = time.monotonic()
        self.trainer: Trainer | None = None
        self.only_evaluates = False
        """The weights are there: rows gain evaluations, and the checkpoint stays."""
        self.known_rows: dict[int, Row] = {}

    def begin(self, grader: Grader) -> Trainer:
        """Loads what the training needs; after attempts that ran out of memory, in smaller portions."""
        self.folder.write_json("trial.json", describe(self.training))
        self.known_rows = {row.step: row for row in self.folder.rows()}
        before = self.folder.result()
        halvings = before.failures.get("oom", 0) if before is not None else 0
        if halvings:
            logger.info("computes in portions of 1/%d: it ran out of memory before", 2**halvings)
        self.trainer = begin(self.training, grader=grader, attempt=self.attempt, halvings=halvings)
        return self.trainer

    def steps(self, trainer: Trainer) -> Iterator[StepMetrics]:
        """What is left to do: the training from where it stands, or evaluations of the weights that it left."""
        config, done = self.training.config, self.folder.evaluations()
        wanted = due_evaluations(config) - done
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as local:
            at = self._fetch_checkpoint(Path(local))
            if at and set(range(1, at + 1)) - self.known_rows.keys():
                logger.warning("starts anew: the metrics of steps before the checkpoint of step %d were torn", at)
                at = 0
            if at == config.train.num_steps and {step for _, step in wanted} <= {0, at}:
                logger.info("the training is done: %d evaluations are to be made", len(wanted))
                self.only_evaluates = True
                trainer.set_baseline(self._baseline())
                yield from trainer.evaluate(Path(local) if at else None, done=done)
                return
            if at and trainer.can_continue(Path(local)):
                if any(step <= at for _, step in wanted):
                    logger.info("starts anew: an evaluation is asked for that the checkpoint of step %d is past", at)
                else:
                    trainer.load(Path(local))
                    trainer.set_baseline(self._baseline())
                    logger.info("continues from step %d", trainer.step)
        yield from trainer.train()

    def _fetch_checkpoint(self, local: Path) -> int:
        """Copies the folder's checkpoint, if it has one; the steps that the training has behind it."""
        if not self.folder.get_folder("checkpoint", local):
            return 0
        step: int = json.loads((local / "state.json").read_text())["step"]
        return step

    def _baseline(self) -> dict[str, float]:
        """Accuracy at the start by what a suite asks: another sweep may have called it otherwise."""
        suites = load_suites(self.training.config)
        at_start = {suite.name: self.folder.evaluation(suite.digest, 0) for suite in suites}
        return {name: one["metrics"]["pass_at_1"] for name, one in at_start.items() if one is not None}

    def take(self, step: StepMetrics, trainer: Trainer) -> None:
        """Records a step; writes what is due.

        Raises:
            GuardError: a guard of the sweep is broken.
        """
        config = self.training.config
        row = Row(step=step.step, time_ms=now_ms(), metrics=step.metrics, visits=step.visits)
        if self.only_evaluates and step.step in self.known_rows:
            known = self.known_rows[step.step]
            row = replace(known, metrics=known.metrics | row.metrics)
        self.pending.append(row)
        for evaluation in step.evaluations:
            self._write_evaluation(evaluation)
        if step.sampled and (step.step == 1 or step.evaluations or step.step == config.train.num_steps):
            self.folder.write_completions(
                f"step-{step.step:06d}",
                SAMPLED_COLUMNS,
                (
                    [getattr(s, "example_id" if c == "example" else c) for c in SAMPLED_COLUMNS]
                    for s in step.sampled[:MAX_SAMPLED]
                ),
            )
        due = 0 < step.step < config.train.num_steps and self._is_checkpoint_due(step.step)
        if due or time.monotonic() - self.last_segment_s > SEGMENT_S or step.step == 0:
            self.flush()
        if due:
            self._checkpoint(trainer, with_optimizer=True)
        self.guards.check(step.metrics)

    def _is_checkpoint_due(self, step: int) -> bool:
        wanted = self.training.config.checkpoint
        age_s = time.monotonic() - self.last_checkpoint_s
        return step % wanted.every_steps == 0 or (wanted.every_s is not None and age_s >= wanted.every_s)

    def _write_evaluation(self, evaluation: Evaluation) -> None:
        self.folder.write_completions(
            f"eval-{evaluation.digest}-{evaluation.step}",
            EVALUATION_COLUMNS,
            ([getattr(r, "problem_id" if c == "id" else c) for c in EVALUATION_COLUMNS] for r in evaluation.records),
            suite=evaluation.suite,
            digest=evaluation.digest,
            step=evaluation.step,
        )
        prefix = f"eval/{evaluation.suite}/"
        metrics = {name.removeprefix(prefix): value for name, value in evaluation.metrics.items()}
        self.folder.write_evaluation(evaluation.suite, evaluation.digest, evaluation.step, metrics)

    def flush(self) -> None:
        """Writes the steps since the last segment, and the log so far."""
        if self.pending:
            self.folder.write_segment(self.attempt, self.pending)
            self.pending = []
        self.folder.write(self.folder.log_name(self.attempt), self.log.text())
        self.last_segment_s = time.monotonic()

    def _checkpoint(self, trainer: Trainer, *, with_optimizer: bool) -> None:
        with tempfile.TemporaryDirectory() as local:
            trainer.save(Path(local), with_optimizer=with_optimizer)
            self.folder.put_folder("checkpoint", Path(local))
        self.last_checkpoint_s = time.monotonic()

    def interrupt(self) -> None:
        """Leaves a checkpoint of the last whole step, and no result."""
        try:
            self.flush()
            if self.trainer is not None and self.trainer.step and not self.only_evaluates:
                self._checkpoint(self.trainer, with_optimizer=True)
        except LeaseLost as lost:
            logger.warning("leaves without writing: %s", lost)
        except DeadProcessError as error:
            logger.warning("leaves no checkpoint of its last step: %s", error)

    def end(self, trainer: Trainer) -> None:
        """Writes what is kept of a training that is through, then its result."""
        self.flush()
        keep = self.training.config.checkpoint.keep
        if self.only_evaluates or self.training.config.train.num_steps == 0:
            pass  # what is kept is kept already, or is the model that was begun with
        elif keep == "none":
            self.folder.remove_folder("checkpoint")
        else:
            self._checkpoint(trainer, with_optimizer=keep == "full")
        self.folder.end_attempt(self.attempt, "finished", checkpoint=keep)

    def fail(self, error: Exception) -> None:
        """Writes a failed result with the traceback of the error that is being handled."""
        trace = traceback.format_exc()
        self.log.write(trace)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        try:
            self.flush()
            before = self.folder.result()
            kept = "none" if before is None else before.checkpoint
            self.folder.end_attempt(
                self.attempt, "failed", kind=failure_kind(error), reason=reason, traceback=trace, checkpoint=kept
            )
        except LeaseLost as lost:
            logger.warning("leaves without writing: %s", lost)

    def close(self) -> None:
        if self.trainer is not None:
            self.trainer.close()
        self.log.close()
        try:
            self.lease.release()
        except OSError as error:  # cut off from the store: the lease lapses
            logger.warning("the lease of %s cannot be given back: %s", self.folder.path, error)


class Guards:
    """Bounds of the sweep's `guards`, and for how many steps each has been broken."""

    def __init__(self, guards: tuple[GuardConfig, ...]) -> None:
        self._guards = guards
        self._broken: Counter[int] = Counter()

    def check(self, metrics: dict[str, float]) -> None:
        """Takes a step's metrics.

        Raises:
            GuardError: one of them has been out of bounds for as many steps as its guard allows.
        """
        for place, guard in enumerate(self._guards):
            value = metrics.get(guard.metric)
            if value is None:
                continue
            self._broken[place] = self._broken[place] + 1 if _breaks(guard, value) else 0
            if self._broken[place] >= guard.for_steps:
                for_steps = f" for {guard.for_steps} steps" if guard.for_steps > 1 else ""
                raise GuardError(f"{guard.metric} is {value:g}, {_bound(guard)}{for_steps}")


def _breaks(guard: GuardConfig, value: float) -> bool:
    if guard.is_ is not None:
        return not math.isfinite(value)
    return (guard.above is not None and value > guard.above) or (guard.below is not None and value < guard.below)


def _bound(guard: GuardConfig) -> str:
    if guard.is_ is not None:
        return "not a finite number"
    return f"above {guard.above:g}" if guard.above is not None else f"below {guard.below:g}"


def failure_kind(error: Exception) -> FailureKind:
    """The class of a failure, which decides whether the training is tried again."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
        return "oom"
    # torch's allocator on a CPU, NCCL
    if isinstance(error, RuntimeError) and any(why in str(error) for why in ("not enough memory", "out of memory")):
        return "oom"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, UserError):
        return "config"
    if isinstance(error, GuardError):
        return "guard"
    if isinstance(error, DeadProcessError):
        return "crash"
    if isinstance(error, TrialError):
        return "nan"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return "storage"
    return "crash"


class _Log:
    """Log records of oneshot and of libraries' warnings, while an attempt runs."""

    def __init__(self, **facts: Any) -> None:
        self._buffer = io.StringIO()
        self._handlers: list[logging.Handler] = [logging.StreamHandler(self._buffer)]
        self._handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        if wants_json():  # for whatever collects the worker's stderr; the text above is the store's
            self._handlers.append(logging.StreamHandler(sys.stderr))
            self._handlers[1].setFormatter(JsonLines(**facts))
        for handler in self._handlers:
            logging.getLogger().addHandler(handler)
        self._level = logging.getLogger("oneshot").level
        logging.getLogger("oneshot").setLevel(logging.INFO)

    def write(self, text: str) -> None:
        self._buffer.write(text)

    def text(self) -> str:
        return self._buffer.getvalue()

    def close(self) -> None:
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
        logging.getLogger("oneshot").setLevel(self._level)


def describe(training: Training) -> dict[str, Any]:
    """What trial.json says."""
    return {
        "key": training.key,
        "seed": training.seed,
        "config": training.config.model_dump(mode="json"),
        "gpus": training.resources.gpus,
    }


def environment() -> dict[str, Any]:
    """Where an attempt runs, and a digest of the versions that it runs on."""
    versions = _versions()
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpu": _gpu_name(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "env_digest": sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16],
        "argv": sys.argv[:1],
    }


def _gpu_name() -> str:
    """Of the first GPU here; a script, and a process whose children compute, never load torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return (subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines() or [""])[0]


def _spread(training: Training) -> dict[str, Any]:
    """How a training is spread over processes."""
    if training.config.script is not None:
        return {"num_processes": 1, "strategy": "single"}
    try:
        strategy: str = choose_strategy(training.config, training.resources)
    except UserError:  # of a model or a suite that is not there: told where it is loaded, and recorded
        strategy = "unknown"
    return {"num_processes": training.resources.processes, "strategy": strategy}


@cache
def _versions() -> dict[str, str]:
    names = ("oneshot", "torch", "transformers", "accelerate", "peft", "math-verify", "numpy")
    return {name: _version(name) for name in names} | {"python": platform.python_version()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise UserError(f"{name} is not installed as a package; `pip install -e .` in the project folder") from error
