"""A training and its folder -> the training run and recorded, with or without Ray.

`record` yields after each step. Its files are enough to show, judge and resume the training: a segment of metrics at
every checkpoint and at least every 10 s, tables of completions, checkpoints, and finally the result.
"""

import io
import json
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from oneshot.errors import DataError, DeadProcessError, first_line
from oneshot.logs import JsonLines, wants_json
from oneshot.plan.trainings import Training
from oneshot.store.folder import now_ms
from oneshot.store.lease import Holder, Lease, LeaseLost, take
from oneshot.store.records import EVALUATION_COLUMNS, FORCING_COLUMNS, MAX_SAMPLED, SAMPLED_COLUMNS, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder, table_name
from oneshot.tasks.benchmarks import due_evaluations, load_suites
from oneshot.tasks.grading import Grader
from oneshot.tasks.solutions import Sampled
from oneshot.training.launcher import Processes
from oneshot.training.metrics import EvaluatedCompletion, Evaluation, StepMetrics
from oneshot.trial.best import BEST, best_of, can_resume, recorded_scores
from oneshot.trial.environment import describe, distribution, environment
from oneshot.trial.guards import Guards, failure_kind
from oneshot.trial.scripted import ScriptedTrainer
from oneshot.trial.start import fetch_start

if TYPE_CHECKING:
    from oneshot.training.trainer import LocalTrainer

Trainer: TypeAlias = "LocalTrainer | Processes | ScriptedTrainer"
SEGMENT_S = 10.0
SOLUTIONS = "sampled.json"
"""File in a trial's folder with the solutions that a model sampled, by example."""
LOST = "stops without writing: %s"
_SAMPLED = attrgetter(*("example_id" if column == "example" else column for column in SAMPLED_COLUMNS))
_EVALUATED = attrgetter(*("problem_id" if column == "id" else column for column in EVALUATION_COLUMNS))
_FORCING = attrgetter(*(f"forcing.{column}" for column in FORCING_COLUMNS))

logger = logging.getLogger(__name__)


def record(
    training: Training,
    folder: TrialFolder,
    *,
    grader: Grader,
    origin: str,
    stale_holder: Holder | None = None,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    starts: Store | None = None,
) -> Generator[StepMetrics]:
    """Run a training to its end, from its checkpoint if it has one, and record it in its folder.

    `origin` names the sweep or command that asked for the training; `stale_holder` is the folder's last holder, known
    to be dead; `metadata` is recorded with the attempt; `starts` is the store with the weights that training may begin
    from, if it is not the folder's. A failure is recorded with its traceback and log, and not raised: the caller reads
    the result. Closing the generator saves a checkpoint. If another process takes the folder over, this one stops
    without writing.

    Raises Leased: another process runs this training.
    """
    if training.config.script is None and training.resources.processes == 1:
        # torch takes seconds to import, and trainers other than this one do not need it here
        import oneshot.training.trainer  # noqa: F401
    metadata = {**environment(), **distribution(training), **metadata}
    lease = take(folder, sweep=origin, metadata=metadata, stale_holder=stale_holder)
    recorder = _Recorder(training, folder, lease, starts)
    try:
        trainer = recorder.begin(grader)
        for step in recorder.steps(trainer):
            recorder.take(step, trainer)
            yield step
        recorder.end(trainer)
    except LeaseLost as error:
        logger.warning(LOST, error)
    except GeneratorExit:
        recorder.interrupt()
        raise
    except Exception as error:  # any error is the trial's result, and must not stop the sweep
        logger.error("the trial failed: %s", error)
        recorder.fail(error)
    finally:
        recorder.close()


def _begin(
    training: Training, *, grader: Grader, attempt: int, halvings: int, sampled: Sampled | None, start: Path | None
) -> Trainer:
    """Load what the training needs, at step 0. Raises UserError: a model, example or suite cannot be used."""
    if training.config.script is not None:
        return ScriptedTrainer(training.config, seed=training.seed, attempt=attempt)
    config, seed, resources = training.config, training.seed, training.resources
    given: dict[str, Any] = {"halvings": halvings, "sampled": sampled, "start": start}
    if resources.processes > 1:
        return Processes(config, seed=seed, resources=resources, grader_timeout_s=grader.timeout_s, **given)
    from oneshot.training.trainer import LocalTrainer

    return LocalTrainer(config, seed=seed, resources=resources, grader=grader, **given)


def _digest(texts: Sampled) -> str:
    return sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


class _Recorder:
    """The progress of one attempt, and the writer of its files."""

    def __init__(self, training: Training, folder: TrialFolder, lease: Lease, starts: Store | None) -> None:
        self.training = training
        self.starts = starts
        self.folder = folder
        self.lease = lease
        self.attempt = lease.attempt
        self.log = _Log(sweep=lease.holder.sweep, key=training.key, attempt=lease.attempt)
        self.guards = Guards(training.guards, training.config)
        self.pending: list[Row] = []
        self.last_segment_s = self.last_checkpoint_s = time.monotonic()
        self.trainer: Trainer | None = None
        self.only_evaluates = False  # the training is done: only evaluations are added, and the checkpoint stays
        self.recorded_rows: dict[int, Row] = {}
        self.scores: dict[int, float] = {}  # step -> value of the metric that chooses the best weights

    def begin(self, grader: Grader) -> Trainer:
        """Load what the training needs; after attempts that ran out of memory, compute in smaller portions."""
        self.folder.write_json("trial.json", describe(self.training))
        self.recorded_rows = {row.step: row for row in self.folder.rows()}
        previous = self.folder.result()
        halvings = previous.failures.get("oom", 0) if previous is not None else 0
        if halvings:
            logger.info("computes in portions of 1/%d: an earlier attempt ran out of memory", 2**halvings)
        sampled = self._kept_solutions()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as local:
            self.trainer = _begin(
                self.training,
                grader=grader,
                attempt=self.attempt,
                halvings=halvings,
                sampled=sampled,
                start=fetch_start(self.training, self.folder, self.starts, Path(local)),
            )
        if sampled is None and not isinstance(self.trainer, ScriptedTrainer) and self.trainer.sampled:
            texts = dict(self.trainer.sampled)  # every later attempt learns these
            self.folder.write_json(SOLUTIONS, {"digest": _digest(texts), "texts": texts})
        return self.trainer

    def _kept_solutions(self) -> Sampled | None:
        """Return the solutions that an earlier attempt sampled. Raises DataError: the file was changed since then."""
        kept = self.folder.read_json(SOLUTIONS)
        if kept is not None and kept["digest"] != _digest(kept["texts"]):
            raise DataError(f"{self.folder.path}/{SOLUTIONS}: changed since it was written; use another seed")
        return None if kept is None else kept["texts"]

    def steps(self, trainer: Trainer) -> Iterator[StepMetrics]:
        """Run what is left: the rest of the training, or only evaluations of its final weights."""
        config, done = self.training.config, self.folder.evaluations()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as local:
            at = self._fetch_checkpoint(Path(local))
            if at and any(step not in self.recorded_rows for step in range(1, at + 1)):
                logger.warning("starts from scratch: metrics before the checkpoint of step %d are damaged", at)
                at = 0
            left = list(self._steps_left(done))
            if at == config.train.num_steps and set(left) <= {0, at, self.folder.kept_step(BEST)}:
                logger.info("the training is done; %d evaluations are left", len(left))
                self.only_evaluates = True
                trainer.set_baseline(self._baseline())
                yield from trainer.evaluate(self._fetch_kept(set(left), at, Path(local)), done=done)
                return
            # training cannot resume without the optimiser's state, which a script does not have
            if at and (config.script is not None or Path(local, "optimizer.safetensors").is_file()):
                if any(step <= at for step in left):
                    logger.info("starts from scratch: an evaluation is due before the checkpoint of step %d", at)
                elif not can_resume(config, self.folder, at=at):
                    logger.info("starts from scratch: the best weights before step %d are not kept", at)
                else:
                    self.scores = recorded_scores(config, self.folder, until=at)
                    trainer.load(Path(local))
                    trainer.set_baseline(self._baseline())
                    logger.info("resumes from step %d", trainer.step)
        yield from trainer.train()

    def _steps_left(self, done: Collection[tuple[str, int]]) -> Iterator[int]:
        """Yield the step of each evaluation that is due and not done."""
        return (due[1] for due in due_evaluations(self.training.config) if due not in done)

    def _fetch_checkpoint(self, local: Path) -> int:
        """Copy the folder's checkpoint if it has one; return its step, or 0."""
        if not self.folder.get_folder("checkpoint", local):
            return 0
        return int(json.loads((local / "state.json").read_text())["step"])

    def _fetch_kept(self, steps: set[int], last: int, local: Path) -> dict[int, Path]:
        """Return the places of the weights of steps after the start: the last ones, in `local`, and the best ones."""
        places = {last: local} if last else {}
        if best := steps - {0, last}:
            places[best.pop()] = local / BEST
            (local / BEST).mkdir()
            self.folder.get_folder(BEST, local / BEST)
        return {step: place for step, place in places.items() if step in steps}

    def _baseline(self) -> dict[str, float]:
        """Return the accuracies at the start, looked up by digest: another sweep may name a suite differently."""
        suites = load_suites(self.training.config)
        at_start = {suite.name: self.folder.evaluation(suite.digest, 0) for suite in suites}
        return {name: start["metrics"]["pass_at_1"] for name, start in at_start.items() if start is not None}

    def take(self, step: StepMetrics, trainer: Trainer) -> None:
        """Record a step, and write what is due. Raises GuardError: the step breaks a guard of the sweep."""
        config = self.training.config
        row = Row(
            step=step.step,
            time_ms=now_ms(),
            metrics=step.metrics,
            visits=step.visits,
            answer_entropies=step.answer_entropies,
        )
        if self.only_evaluates and step.step in self.recorded_rows:
            recorded = self.recorded_rows[step.step]
            row = replace(recorded, metrics=recorded.metrics | row.metrics)
        self.pending.append(row)
        for evaluation in step.evaluations:
            self._write_evaluation(evaluation)
        self._keep_best(step, trainer)
        if step.sampled and (step.step == 1 or step.evaluations or step.step == config.train.num_steps):
            rows = map(_SAMPLED, step.sampled[:MAX_SAMPLED])
            self.folder.write_completions(f"step-{step.step:06d}", SAMPLED_COLUMNS, rows)
        every, age_s = config.checkpoint, time.monotonic() - self.last_checkpoint_s
        due = 0 < step.step < config.train.num_steps and (
            step.step % every.every_steps == 0 or (every.every_s is not None and age_s >= every.every_s)
        )
        if due or time.monotonic() - self.last_segment_s > SEGMENT_S or step.step == 0:
            self.flush()
        if due:
            self._checkpoint(trainer, with_optimizer=True)
        self.guards.check(step.metrics)

    def _write_evaluation(self, evaluation: Evaluation) -> None:
        self.folder.write_completions(
            table_name(evaluation.digest, evaluation.step),
            *evaluation_table(evaluation.records),
            suite=evaluation.suite,
            digest=evaluation.digest,
            step=evaluation.step,
        )
        prefix = f"eval/{evaluation.suite}/"
        metrics = {name.removeprefix(prefix): value for name, value in evaluation.metrics.items()}
        self.folder.write_evaluation(evaluation.suite, evaluation.digest, evaluation.step, metrics)

    def _keep_best(self, step: StepMetrics, trainer: Trainer) -> None:
        """Keep the weights of a step that is the best so far, before any checkpoint of this step or a later one."""
        config, metric = self.training.config, self.training.config.checkpoint.best_metric
        if metric is None or self.only_evaluates or metric not in step.metrics:
            return
        self.scores[step.step] = step.metrics[metric]
        if step.step and config.train.num_steps and best_of(self.scores) == step.step:
            self._save(trainer, BEST, with_optimizer=False)

    def _end_best(self) -> None:
        """Remove weights that are not those of the best step, which a killed attempt may have left."""
        if self.training.config.checkpoint.best_metric is None:
            return
        best = best_of(self.scores)
        if not best:  # the best weights are the base model's
            self.folder.remove_folder(BEST)
        elif self.folder.kept_step(BEST) != best:  # where a resumed training is not exact to the last bit
            logger.warning("the weights of step %d, the best, are lost", best)
        self.folder.remove_superseded(BEST)

    def flush(self) -> None:
        """Write the steps since the last segment, and the log so far."""
        if self.pending:
            self.folder.write_segment(self.attempt, self.pending)
            self.pending = []
        self.folder.write(self.folder.log_name(self.attempt), self.log.text())
        self.last_segment_s = time.monotonic()

    def _checkpoint(self, trainer: Trainer, *, with_optimizer: bool) -> None:
        self._save(trainer, "checkpoint", with_optimizer=with_optimizer)
        self.last_checkpoint_s = time.monotonic()

    def _save(self, trainer: Trainer, name: str, *, with_optimizer: bool) -> None:
        with tempfile.TemporaryDirectory() as local:
            trainer.save(Path(local), with_optimizer=with_optimizer)
            self.folder.put_folder(name, Path(local))

    def interrupt(self) -> None:
        """Save a checkpoint of the last complete step, without a result."""
        try:
            self.flush()
            if self.trainer is not None and self.trainer.step and not self.only_evaluates:
                self._checkpoint(self.trainer, with_optimizer=True)
        except LeaseLost as error:
            logger.warning(LOST, error)
        except DeadProcessError as error:
            logger.warning("cannot save a checkpoint of the last step: %s", error)

    def end(self, trainer: Trainer) -> None:
        """Write what is kept of a finished training, then its result."""
        self.flush()
        keep = self.training.config.checkpoint.keep
        keep = "weights" if isinstance(keep, dict) else keep
        if not self.only_evaluates:
            self._end_best()
        if self.only_evaluates or self.training.config.train.num_steps == 0:
            pass  # the checkpoint is already there, or equals the base model
        elif keep == "none":
            self.folder.remove_folder("checkpoint")
        else:
            self._checkpoint(trainer, with_optimizer=keep == "full")
        self.folder.end_attempt(self.attempt, "finished", checkpoint=keep)

    def fail(self, error: Exception) -> None:
        """Write a failed result with the traceback of the current exception."""
        trace = traceback.format_exc()
        self.log.write(trace)
        try:
            self.flush()
            reason = first_line(error)
            self.folder.end_attempt(self.attempt, "failed", kind=failure_kind(error), reason=reason, traceback=trace)
        except LeaseLost as lost:
            logger.warning(LOST, lost)

    def close(self) -> None:
        if self.trainer is not None and not isinstance(self.trainer, ScriptedTrainer):
            self.trainer.close()
        self.log.close()
        try:
            self.lease.release()
        except OSError as error:  # the store cannot be reached: the lease will lapse
            logger.warning("cannot release the lease of %s: %s", self.folder.path, error)


def evaluation_table(records: Sequence[EvaluatedCompletion]) -> tuple[Sequence[str], list[Sequence[Any]]]:
    """Return columns and rows of an evaluation's completions, with how they thought if they had a budget."""
    if records[0].forcing is None:
        return EVALUATION_COLUMNS, list(map(_EVALUATED, records))
    rows: list[Sequence[Any]] = [(*_EVALUATED(record), *_FORCING(record)) for record in records]
    return (*EVALUATION_COLUMNS, *FORCING_COLUMNS), rows


class _Log:
    """The log of an attempt: oneshot's records and libraries' warnings."""

    def __init__(self, **fields: Any) -> None:
        self._buffer = io.StringIO()
        self._handlers: list[logging.Handler] = [logging.StreamHandler(self._buffer)]
        self._handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        if wants_json():  # for log collectors, beside the text in the store
            self._handlers.append(logging.StreamHandler(sys.stderr))
            self._handlers[1].setFormatter(JsonLines(**fields))
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
