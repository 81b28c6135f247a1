"""A training and its folder -> the training done and recorded; in Ray and out of it alike.

`record` yields after each step. What it writes is enough to show the training, to judge it and to continue it: a
segment of metrics at every checkpoint and at least every 10 s, tables of completions, checkpoints, and the result last.
"""

import io
import logging
import os
import platform
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Iterator
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from oneshot.errors import UserError
from oneshot.grpo.evaluate import Evaluation
from oneshot.grpo.policy import use_cpus
from oneshot.grpo.state import TrialState, checkpoint_step, load_state, new_state, save_state
from oneshot.grpo.train import StepMetrics, evaluate_kept, train
from oneshot.store import EVALUATION_COLUMNS, SAMPLED_COLUMNS, Row, TrialFolder, now_ms
from oneshot.tasks.benchmarks import due_evaluations
from oneshot.tasks.grading import Grader
from oneshot.trainings import Training

SEGMENT_S = 10.0
MAX_SAMPLED = 64
"""Training completions kept of one step."""

logger = logging.getLogger(__name__)


def record(training: Training, folder: TrialFolder, *, grader: Grader, origin: str) -> Generator[StepMetrics]:
    """Runs a training to its end, from its checkpoint if it has one, and records it in its folder.

    `origin` names the sweep, or whatever else asked. A training that fails is recorded with its traceback and log,
    and raises nothing: whoever runs it reads the result. Closing the generator saves a checkpoint first.
    """
    recorder = _Recorder(training, folder, origin)
    try:
        grader.forget_ungraded()
        use_cpus(max(1, int(training.resources.cpus)))
        state = new_state(training.config, seed=training.seed, grader=grader)
        for step in recorder.steps(state):
            recorder.take(step, state)
            yield step
        recorder.end(state)
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

    def __init__(self, training: Training, folder: TrialFolder, origin: str) -> None:
        self.training = training
        self.folder = folder
        folder.write_json("trial.json", describe(training))
        self.attempt = folder.begin_attempt({"sweep": origin, "started_ms": now_ms(), **environment()})
        self.log = _Log()
        self.pending: list[Row] = []
        self.last_segment_s = time.monotonic()
        self.state: TrialState | None = None
        self.only_evaluates = False
        """The weights are there: rows gain evaluations, and the checkpoint stays."""
        self.known_rows = {row.step: row for row in folder.rows()}

    def steps(self, state: TrialState) -> Iterator[StepMetrics]:
        """What is left to do: the training from where it stands, or evaluations of the weights that it left."""
        self.state = state
        config, done = self.training.config, self.folder.evaluations()
        wanted = due_evaluations(config) - done
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as local:
            at = self._fetch_checkpoint(Path(local))
            if at == config.train.num_steps and {step for _, step in wanted} <= {0, at}:
                logger.info("the training is done: %d evaluations are to be made", len(wanted))
                self.only_evaluates = True
                self._know_baseline(state)
                yield from evaluate_kept(config, state, Path(local) if at else None, done=done)
                return
            if at and (Path(local) / "optimizer.safetensors").is_file():
                if any(step <= at for _, step in wanted):
                    logger.info("starts anew: an evaluation is asked for that the checkpoint of step %d is past", at)
                else:
                    load_state(state, Path(local))
                    self._know_baseline(state)
                    logger.info("continues from step %d", state.step)
        yield from train(config, state)

    def _fetch_checkpoint(self, local: Path) -> int:
        """Copies the folder's checkpoint, if it has one; the steps that the training has behind it."""
        return checkpoint_step(local) if self.folder.get_folder("checkpoint", local) else 0

    def _know_baseline(self, state: TrialState) -> None:
        """By what a suite asks: another sweep may have called it otherwise."""
        at_start = {suite.name: self.folder.evaluation(suite.digest, 0) for suite in state.suites}
        state.baseline = {name: one["metrics"]["pass_at_1"] for name, one in at_start.items() if one is not None}

    def take(self, step: StepMetrics, state: TrialState) -> None:
        """Records a step; writes what is due."""
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
        due = step.step % config.checkpoint.every_steps == 0 and 0 < step.step < config.train.num_steps
        if due or time.monotonic() - self.last_segment_s > SEGMENT_S or step.step == 0:
            self.flush()
        if due:
            self._checkpoint(state, with_optimizer=True)

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

    def _checkpoint(self, state: TrialState, *, with_optimizer: bool) -> None:
        with tempfile.TemporaryDirectory() as local:
            save_state(state, Path(local), with_optimizer=with_optimizer)
            self.folder.put_folder("checkpoint", Path(local))

    def interrupt(self) -> None:
        """Leaves a checkpoint of the last whole step, and no result."""
        self.flush()
        if self.state is not None and self.state.step and not self.only_evaluates:
            self._checkpoint(self.state, with_optimizer=True)

    def end(self, state: TrialState) -> None:
        """Writes what is kept of a training that is through, then its result."""
        self.flush()
        keep = self.training.config.checkpoint.keep
        if self.only_evaluates or self.training.config.train.num_steps == 0:
            pass  # what is kept is kept already, or is the model that was begun with
        elif keep == "none":
            self.folder.remove_folder("checkpoint")
        else:
            self._checkpoint(state, with_optimizer=keep == "full")
        self.folder.end_attempt(self.attempt, "finished", checkpoint=keep)

    def fail(self, error: Exception) -> None:
        """Writes a failed result with the traceback of the error that is being handled."""
        trace = traceback.format_exc()
        self.log.write(trace)
        self.flush()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        before = self.folder.result()
        kept = "none" if before is None else before.checkpoint
        self.folder.end_attempt(self.attempt, "failed", reason=reason, traceback=trace, checkpoint=kept)

    def close(self) -> None:
        self.log.close()


class _Log:
    """Log records of oneshot and of libraries' warnings, while an attempt runs."""

    def __init__(self) -> None:
        self._buffer = io.StringIO()
        self._handler = logging.StreamHandler(self._buffer)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(self._handler)
        self._level = logging.getLogger("oneshot").level
        logging.getLogger("oneshot").setLevel(logging.INFO)

    def write(self, text: str) -> None:
        self._buffer.write(text)

    def text(self) -> str:
        return self._buffer.getvalue()

    def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
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
    versions = {
        name: _version(name) for name in ("oneshot", "torch", "transformers", "accelerate", "math-verify", "numpy")
    }
    versions["python"] = platform.python_version()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpu": gpu,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "env_digest": sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16],
        "argv": sys.argv[:1],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise UserError(f"{name} is not installed as a package; `pip install -e .` in the project folder") from error
