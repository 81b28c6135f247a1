"""The trial store: what happened, in a folder or under an fsspec URL. The truth that every other part reads.

    <root>/trials/<key>/   trial.json              what the training is
                           attempts/<n>.json       who ran it, when, on what
                           metrics/<attempt>-<first step>.jsonl    segments of steps
                           rollouts/<name>.json    completions: of evaluations, and samples of training steps
                           checkpoint/             weights, optimiser, step
                           log/<attempt>.txt
                           result.json             last; its presence means that the training ended
    <root>/sweeps/<name>/  sweep.yaml  plan.json  report/

Nothing is ever appended to: a file is written whole under a temporary name and renamed.
"""

import json
import os
import posixpath
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

    def replace_folder(self, name: str, local: Path) -> None:
        """Puts the files of a local folder in the place of a sub-folder."""
        target = posixpath.join(self.path, name)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        self.fs.put(str(local), temporary, recursive=True)
        if self.fs.exists(target):
            self.fs.rm(target, recursive=True)
        self.fs.mv(temporary, target, recursive=True)

    def fetch_folder(self, name: str, local: Path) -> bool:
        """Copies a sub-folder to a local one; False where there is none."""
        source = posixpath.join(self.path, name)
        if not self.fs.exists(source):
            return False
        self.fs.get(source.rstrip("/") + "/", str(local), recursive=True)
        return True

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
        lines = [json.dumps({"step": row.step, "time_ms": row.time_ms, "metrics": row.metrics}) for row in rows]
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

    def evaluations(self) -> dict[tuple[str, int], str]:
        """(suite digest, step) -> name of its table of completions."""
        found = {}
        for name in self.list("rollouts"):
            if name.startswith("eval-"):
                suite, step = name.removeprefix("eval-").removesuffix(".json").rsplit("-", 2)[-2:]
                found[suite, int(step)] = name.removesuffix(".json")
        return found

    def write_result(self, result: Result) -> None:
        """Ends the training's record."""
        fields = {name: getattr(result, name) for name in Result.__slots__}
        fields["evaluations"] = sorted(list(pair) for pair in result.evaluations)
        self.write_json("result.json", fields)

    def result(self) -> Result | None:
        """How the training ended; None where it has not."""
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
