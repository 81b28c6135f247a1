"""The record of one training in the store: attempts, steps, evaluations, completions, result."""

import gzip
import json
import logging
import posixpath
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from oneshot.store.folder import Folder, now_ms
from oneshot.store.records import FailureKind, Outcome, Result, Row

COMPLETIONS = "rollouts"  # sub-folder with the tables of completions
LEVEL = 6  # of gzip: 9 takes up to 2.5 times as long and saves less than 3% (docs/log.md)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What an attempt held: its worker's time, and GPUs of a type."""

    ms: int
    gpus: float | None  # None in records of older versions
    accelerator: str  # Ray's name; empty if unknown


def mean_gpus(held: Sequence[Held], *, planned: float) -> float:
    """Return the GPUs of attempts on average over their time; `planned` for those that did not record them."""
    ms = sum(each.ms for each in held)
    return sum(each.ms * (planned if each.gpus is None else each.gpus) for each in held) / ms if ms else planned


def table_name(digest: str, step: int) -> str:
    """Return the name of the table with the completions of an evaluation of a suite."""
    return f"eval-{digest}-{step}"


class TrialFolder(Folder):
    """The folder of one training."""

    def attempt(self, number: int) -> dict[str, Any]:
        """Return what was recorded when an attempt began, or an empty dict."""
        return self.salvage(f"attempts/{number}.json") or {}

    def attempts(self) -> list[dict[str, Any]]:
        """Return what was recorded when each attempt began."""
        return [self.attempt(number) for number in range(1, self.last_attempt() + 1)]

    def spent_ms(self) -> int:
        """Return how long all attempts held their workers."""
        return sum(held.ms for held in self.held())

    def held(self, records: Sequence[dict[str, Any]] | None = None) -> list[Held]:
        """Return how long each attempt held its worker, up to its last sign of life, and with which GPUs.

        `records` are those of `attempts`, if they have been read.
        """
        attempts = dict(enumerate(self.attempts() if records is None else records, 1))
        last_segments = {int(name.split("-")[0]): name for name in self.list("metrics")}
        lease, result = self.salvage("lease") or {}, self.result()
        held = []
        for number, attempt in attempts.items():
            if "started_ms" not in attempt:
                continue
            signs_ms = [attempt["started_ms"], attempts.get(number + 1, {}).get("last_beat_ms", 0)]
            if result is not None and result.attempt == number:
                signs_ms.append(result.ended_ms)
            elif number in last_segments:
                signs_ms += [row.time_ms for row in self._segment(last_segments[number])]
            if lease.get("attempt") == number:
                signs_ms.append(lease["time_ms"])
            ms = max(signs_ms) - attempt["started_ms"]
            held.append(Held(ms=ms, gpus=attempt.get("gpus"), accelerator=attempt.get("accelerator", "")))
        return held

    def write_segment(self, attempt: int, rows: Sequence[Row]) -> None:
        """Write the steps since the last segment."""
        lines = [json.dumps(asdict(row)) for row in rows]
        self.write(f"metrics/{attempt:04d}-{rows[0].step:08d}.jsonl", "\n".join(lines) + "\n")

    def rows(self, *, read: dict[str, list[Row]] | None = None) -> list[Row]:
        """Return every recorded step; if two attempts made a step, the later one counts.

        `read` caches segments between calls: a segment never changes.
        """
        read = {} if read is None else read
        merged: dict[int, Row] = {}
        for name in self.list("metrics"):
            if name not in read:
                read[name] = self._segment(name)
            merged |= {row.step: row for row in read[name]}
        return [merged[step] for step in sorted(merged)]

    def _segment(self, name: str) -> list[Row]:
        """Return the whole lines of a segment: after a crash, a file system may keep half of the last one."""
        lines = (self.read(f"metrics/{name}") or "").splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(Row(**json.loads(line)))
            except ValueError as error:
                if number < len(lines):
                    raise
                logger.warning("%s/metrics/%s: the last line is incomplete and ignored: %s", self.path, name, error)
        return rows

    def write_completions(
        self, name: str, columns: Sequence[str], data: Iterable[Sequence[Any]], **fields: Any
    ) -> None:
        """Write a table of completions to rollouts/<name>.json.gz; equal tables are equal files."""
        text = json.dumps({**fields, "columns": list(columns), "data": list(data)})
        self.write(f"{COMPLETIONS}/{name}.json.gz", gzip.compress(text.encode(), LEVEL, mtime=0))

    def completions(self, name: str) -> dict[str, Any] | None:
        """Return a table of completions, or None without one. Raises ValueError: the file is damaged."""
        compressed = self.read_bytes(f"{COMPLETIONS}/{name}.json.gz")
        table: dict[str, Any] | None
        if compressed is None:  # version 0.1.0 wrote plain JSON
            table = self.read_json(f"{COMPLETIONS}/{name}.json")
            return table
        try:
            table = json.loads(gzip.decompress(compressed))
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path}/{COMPLETIONS}/{name}.json.gz is damaged: {error}") from error
        return table

    def write_evaluation(self, suite: str, digest: str, step: int, metrics: dict[str, float]) -> None:
        """Record a suite's metrics after a step, named without `eval/<suite>/`."""
        self.write_json(f"evaluations/{digest}-{step}.json", {"suite": suite, "metrics": metrics})

    def evaluation(self, digest: str, step: int) -> dict[str, Any] | None:
        """Return what `write_evaluation` recorded: the suite's name in the training, and its metrics."""
        evaluation: dict[str, Any] | None = self.read_json(f"evaluations/{digest}-{step}.json")
        return evaluation

    def evaluations(self) -> frozenset[tuple[str, int]]:
        """Return (suite digest, step) of every recorded evaluation."""
        names = (name.removesuffix(".json").rsplit("-", 1) for name in self.list("evaluations"))
        return frozenset((digest, int(step)) for digest, step in names)

    def kept_place(self, name: str) -> str | None:
        """Return the sub-folder with the weights that are stored under a name (`checkpoint`, `best`), or None."""
        pointer = self.salvage(f"{name}.json")
        return None if pointer is None else f"{name}/{pointer['folder']}"

    def kept_step(self, name: str) -> int | None:
        """Return the step of the weights that are stored under a name, or None without any."""
        place = self.kept_place(name)
        state = None if place is None else self.salvage(f"{place}/state.json")
        return None if state is None else int(state["step"])

    def end_attempt(
        self,
        attempt: int,
        outcome: Outcome,
        *,
        kind: FailureKind = "",
        reason: str = "",
        traceback: str = "",
        checkpoint: Literal["none", "weights", "full"] = "none",
    ) -> None:
        """Write the result of an attempt, with the steps, evaluations and failures recorded so far.

        After a failure without further steps, `checkpoint` is what an earlier attempt left.
        """
        rows = self.rows()
        before = self.result()
        failures = {} if before is None else dict(before.failures)
        if outcome == "failed" and kind:
            failures[kind] = failures.get(kind, 0) + 1
        steps_done = rows[-1].step if rows else 0
        if outcome == "failed" and before is not None and before.steps_done >= steps_done:
            checkpoint = before.checkpoint
        self.write_result(
            Result(
                outcome=outcome,
                attempt=attempt,
                steps_done=steps_done,
                evaluations=self.evaluations(),
                reason=reason,
                traceback=traceback,
                log_path=posixpath.join(self.path, self.log_name(attempt)),
                checkpoint=checkpoint,
                started_ms=self.attempt(attempt)["started_ms"],
                ended_ms=now_ms(),
                kind=kind,
                failures=failures,
            )
        )

    @staticmethod
    def log_name(attempt: int) -> str:
        """Return the name of an attempt's log."""
        return f"log/{attempt}.txt"

    def write_result(self, result: Result) -> None:
        """Write a result."""
        fields = {name: getattr(result, name) for name in Result.__slots__}
        fields["evaluations"] = sorted(list(pair) for pair in result.evaluations)
        self.write_json("result.json", fields)

    def current_result(self) -> Result | None:
        """Return the result of the latest attempt, or None if it has not ended."""
        result = self.result()
        return result if result is not None and result.attempt == self.last_attempt() else None

    def result(self) -> Result | None:
        """Return the result of the last attempt that ended, or None. Another may have begun since."""
        fields = self.salvage("result.json")
        if fields is None:
            return None
        fields["evaluations"] = frozenset((digest, step) for digest, step in fields["evaluations"])
        return Result(**fields)
