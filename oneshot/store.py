"""The trial store: what happened, in a folder or under an fsspec URL. The truth that every other part reads.

    <root>/trials/<key>/   trial.json              what the training is
                           attempts/<n>.json       who ran it, when, on what
                           metrics/<attempt>-<first step>.jsonl    segments of steps
                           evaluations/<suite digest>-<step>.json  what each evaluation measured
                           rollouts/<name>.json    completions: of evaluations, and samples of training steps
                           checkpoint/<id>/        weights, optimiser, step; checkpoint.json says which
                           log/<attempt>.txt
                           result.json             how the last attempt that ended did; written last
    <root>/sweeps/<name>/  sweep.yaml  plan.json  report/

Nothing is ever appended to: a file is written whole under a temporary name and renamed.
"""

import json
import os
import posixpath
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

from oneshot.errors import UserError

Outcome = Literal["finished", "failed"]

EVALUATION_COLUMNS = ("problem", "answer", "completion", "strict", "lenient", "category", "reason", "id", "num_tokens")
SAMPLED_COLUMNS = ("example", "completion", "reward", "num_tokens", "truncated")
"""Columns of the tables under rollouts/."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Metrics of one step, with the time at which they were known."""

    step: int
    time_ms: int
    metrics: dict[str, float]
    visits: dict[str, float] = field(default_factory=dict)
    """Accuracy on each example that the step visited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a training ended."""

    outcome: Outcome
    attempt: int
    steps_done: int
    evaluations: frozenset[tuple[str, int]]
    """(suite digest, step) of every evaluation on record."""
    reason: str
    """Why it failed, in one line; empty where it finished."""
    traceback: str
    log_path: str
    checkpoint: Literal["none", "weights", "full"]
    started_ms: int
    ended_ms: int


class Folder:
    """A folder of the store: whole files in, whole files out."""

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path

    def write(self, name: str, text: str) -> None:
        """Writes a file whole; a reader sees the old text or the new one."""
        target = posixpath.join(self.path, name)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
        self.fs.pipe_file(temporary, text.encode())
        self._rename(temporary, target)

    def read(self, name: str) -> str | None:
        """A file's text; None where there is none."""
        try:
            content: bytes = self.fs.cat_file(posixpath.join(self.path, name))
        except FileNotFoundError:
            return None
        return content.decode()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a value as JSON."""
        self.write(name, json.dumps(value, indent=2, sort_keys=True))

    def read_json(self, name: str) -> Any | None:
        """A JSON file's value; None where there is none."""
        text = self.read(name)
        return None if text is None else json.loads(text)

    def list(self, name: str) -> list[str]:
        """Names of the finished files of a sub-folder, sorted; none where it does not exist."""
        try:
            entries = self.fs.ls(posixpath.join(self.path, name), detail=False)
        except FileNotFoundError:
            return []
        return sorted(posixpath.basename(entry) for entry in entries if not entry.endswith(".tmp"))

    def _rename(self, temporary: str, target: str) -> None:
        if isinstance(self.fs, LocalFileSystem):
            os.replace(temporary, target)
        else:
            self.fs.mv(temporary, target)

    def put_folder(self, name: str, local: Path) -> None:
        """Stores a local folder's files under a name, whole: a reader sees the old ones or the new ones.

        The files lie in a folder of their own, and `<name>.json`, written last, says in which.
        """
        fresh = uuid.uuid4().hex[:8]
        self.fs.makedirs(posixpath.join(self.path, name), exist_ok=True)
        self.fs.put(f"{local}/", posixpath.join(self.path, name, fresh) + "/", recursive=True)
        self.write_json(f"{name}.json", {"folder": fresh})
        for other in self.list(name):
            if other != fresh:
                self.remove(f"{name}/{other}")

    def get_folder(self, name: str, local: Path) -> bool:
        """Copies what `put_folder` stored last to a local folder; False where there is none."""
        said = self.read_json(f"{name}.json")
        if said is None:
            return False
        self.fs.get(posixpath.join(self.path, name, said["folder"]) + "/", f"{local}/", recursive=True)
        return True

    def remove_folder(self, name: str) -> None:
        """Removes what `put_folder` stored."""
        self.remove(f"{name}.json")
        self.remove(name)

    def remove(self, name: str) -> None:
        """Removes a file or sub-folder, if it is there."""
        target = posixpath.join(self.path, name)
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)


class TrialFolder(Folder):
    """Everything about one training."""

    def begin_attempt(self, facts: dict[str, Any]) -> int:
        """Records who runs the training now; returns the attempt's number, from 1."""
        attempt = len(self.list("attempts")) + 1
        self.write_json(f"attempts/{attempt}.json", facts)
        return attempt

    def attempt(self, number: int) -> dict[str, Any]:
        """What was recorded when an attempt began."""
        return self.read_json(f"attempts/{number}.json") or {}

    def write_segment(self, attempt: int, rows: Sequence[Row]) -> None:
        """Writes the steps since the last segment."""
        lines = [json.dumps(asdict(row)) for row in rows]
        self.write(f"metrics/{attempt:04d}-{rows[0].step:08d}.jsonl", "\n".join(lines) + "\n")

    def rows(self) -> list[Row]:
        """Every step on record, merged: where two attempts made a step, the later one's counts."""
        merged: dict[int, Row] = {}
        for name in self.list("metrics"):
            for line in (self.read(f"metrics/{name}") or "").splitlines():
                row = Row(**json.loads(line))
                merged[row.step] = row
        return [merged[step] for step in sorted(merged)]

    def write_completions(self, name: str, columns: Sequence[str], data: Iterable[Sequence[Any]], **facts: Any) -> None:
        """Writes a table of completions as rollouts/<name>.json."""
        self.write(f"rollouts/{name}.json", json.dumps({**facts, "columns": list(columns), "data": list(data)}))

    def completions(self, name: str) -> dict[str, Any] | None:
        """A table of completions."""
        found: dict[str, Any] | None = self.read_json(f"rollouts/{name}.json")
        return found

    def write_evaluation(self, suite: str, digest: str, step: int, metrics: dict[str, float]) -> None:
        """Records that a suite was run after a step; `metrics` are named without `eval/<suite>/`."""
        self.write_json(f"evaluations/{digest}-{step}.json", {"suite": suite, "metrics": metrics})

    def evaluation(self, digest: str, step: int) -> dict[str, Any] | None:
        """What `write_evaluation` recorded: the suite's name in the training, and its metrics."""
        found: dict[str, Any] | None = self.read_json(f"evaluations/{digest}-{step}.json")
        return found

    def evaluations(self) -> frozenset[tuple[str, int]]:
        """(suite digest, step) of every evaluation on record."""
        names = (name.removesuffix(".json").rsplit("-", 1) for name in self.list("evaluations"))
        return frozenset((digest, int(step)) for digest, step in names)

    def end_attempt(
        self,
        attempt: int,
        outcome: Outcome,
        *,
        reason: str = "",
        traceback: str = "",
        checkpoint: Literal["none", "weights", "full"] = "none",
    ) -> None:
        """Writes the result of an attempt, with the steps and evaluations that are on record by then."""
        rows = self.rows()
        self.write_result(
            Result(
                outcome=outcome,
                attempt=attempt,
                steps_done=rows[-1].step if rows else 0,
                evaluations=self.evaluations(),
                reason=reason,
                traceback=traceback,
                log_path=posixpath.join(self.path, self.log_name(attempt)),
                checkpoint=checkpoint,
                started_ms=self.attempt(attempt)["started_ms"],
                ended_ms=now_ms(),
            )
        )

    @staticmethod
    def log_name(attempt: int) -> str:
        """Where an attempt's log lies in the folder."""
        return f"log/{attempt}.txt"

    def write_result(self, result: Result) -> None:
        """Ends the training's record."""
        fields = {name: getattr(result, name) for name in Result.__slots__}
        fields["evaluations"] = sorted(list(pair) for pair in result.evaluations)
        self.write_json("result.json", fields)

    def current_result(self) -> Result | None:
        """How the latest attempt ended; None where it has not, or there was none."""
        result = self.result()
        return result if result is not None and result.attempt == len(self.list("attempts")) else None

    def result(self) -> Result | None:
        """How the last attempt that ended did; None where none has. Another may have begun since."""
        fields = self.read_json("result.json")
        if fields is None:
            return None
        fields["evaluations"] = frozenset((digest, step) for digest, step in fields["evaluations"])
        return Result(**fields)


class Store:
    """A trial store at a folder or fsspec URL."""

    def __init__(self, root: str) -> None:
        try:
            self.fs, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise UserError(f"storage: {root}: {error}") from error
        self.path = path.rstrip("/")
        self.root = root

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def trial(self, key: str) -> TrialFolder:
        """The folder of one training."""
        return TrialFolder(self.fs, posixpath.join(self.path, "trials", key))

    def trainings(self) -> list[str]:
        """Keys of every training on record."""
        return Folder(self.fs, self.path).list("trials")

    def sweep(self, name: str) -> Folder:
        """The folder of one sweep."""
        return Folder(self.fs, posixpath.join(self.path, "sweeps", name))

    def check_writable(self) -> None:
        """Writes and removes a file.

        Raises:
            UserError: the storage cannot be written.
        """
        probe = Folder(self.fs, self.path)
        name = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            probe.write(name, "")
            probe.remove(name)
        except OSError as error:
            raise UserError(f"storage: {self.root}: cannot be written: {error}") from error


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
