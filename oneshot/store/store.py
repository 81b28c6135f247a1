"""The trial store: what happened, in a folder or under an fsspec URL. The truth that every other part reads.

    <root>/trials/<key>/   trial.json              what the training is
                           attempts/<n>.json       who ran it, when, on what; whoever makes it has the turn (lease.py)
                           lease                   the last attempt's beat: whether its process lives
                           metrics/<attempt>-<first step>.jsonl    segments of steps
                           evaluations/<suite digest>-<step>.json  what each evaluation measured
                           rollouts/<name>.json    completions: of evaluations, and samples of training steps
                           checkpoint/<id>/        weights, optimiser, step; checkpoint.json says which
                           log/<attempt>.txt
                           result.json             how the last attempt that ended did; written last
    <root>/sweeps/<name>/  sweep.yaml  claims.json  plan.json  report/  attempts/  lease

Nothing is ever appended to: a file is written whole, under a temporary name that is renamed, or as one object where the
store is made of objects. Whatever a store fails with is an OSError.
"""

import contextlib
import errno
import json
import logging
import os
import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import fsspec
from fsspec.implementations.local import LocalFileSystem

from oneshot.errors import UserError

Outcome = Literal["finished", "failed"]
FailureKind = Literal["", "crash", "node", "oom", "nan", "guard", "stall", "config", "data", "storage"]
"""Class of a failure, by which it is tried again or not; empty where it is not known."""

EVALUATION_COLUMNS = ("problem", "answer", "completion", "strict", "lenient", "category", "reason", "id", "num_tokens")
SAMPLED_COLUMNS = ("example", "completion", "reward", "num_tokens", "truncated")
"""Columns of the tables under rollouts/."""

OBJECT_STORES = frozenset(
    {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "cos", "obs", "tos", "r2"}
)
"""fsspec's protocols whose puts are whole, and whose renames would be a copy and a removal."""
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a local file system answers that has none."""
CREATE_AGAIN_S = (0.2, 1.0)
"""Pauses before a creation that met another one is tried again: S3 answers 409 to both of two at a time."""

logger = logging.getLogger(__name__)

_creation = threading.Lock()
"""memory:// has no exclusive creation between threads."""


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
    kind: FailureKind = ""
    """What it failed of."""
    failures: dict[str, int] = field(default_factory=dict)
    """Attempts that failed since the last retry, by kind."""


def unfenced() -> None:
    """Whoever has no lease may write: a folder of their own, or a store of one process."""


class Folder:
    """A folder of the store: whole files in, whole files out.

    `fence` is called right before anything is made to count. A lease sets it, to raise `LeaseLost` where the folder
    is another process's by now.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path
        self.fence: Callable[[], None] = unfenced

    def write(self, name: str, text: str) -> None:
        """Writes a file whole; a reader sees the old text or the new one."""
        target = posixpath.join(self.path, name)
        if _puts_whole(self.fs):
            self.fence()
            with _as_os_errors():
                self.fs.pipe_file(target, text.encode())
            return
        with self._beside(target, text) as temporary:
            self.fence()
            self._rename(temporary, target)

    def create(self, name: str, text: str) -> bool:
        """Makes a file whole where there is none: of all who try, one is told True. Not fenced."""
        target = posixpath.join(self.path, name)
        if not isinstance(self.fs, LocalFileSystem):
            return self._create_remote(target, text)
        with self._beside(target, text) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                return _create_local(target, text)
        return True

    def _create_remote(self, target: str, text: str) -> bool:
        if not _puts_whole(self.fs):
            with _as_os_errors():
                self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
        for pause_s in (*CREATE_AGAIN_S, None):
            try:
                with _creation, _as_os_errors():
                    self.fs.pipe_file(target, text.encode(), mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                # not every store says "it is there" in the words that its fsspec package knows
                with _as_os_errors():
                    if self.fs.exists(target):
                        return False
                if pause_s is None or error.errno not in (errno.EIO, errno.EBUSY):
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last pause is None")

    @contextlib.contextmanager
    def _beside(self, target: str, text: str) -> Iterator[str]:
        """A file beside the target with its text to be; gone afterwards, whether or not it became the target."""
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with _as_os_errors():
                self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
                self.fs.pipe_file(temporary, text.encode())
            yield temporary
        finally:
            with contextlib.suppress(OSError), _as_os_errors():
                self.fs.rm_file(temporary)

    def _rename(self, temporary: str, target: str) -> None:
        if isinstance(self.fs, LocalFileSystem):
            os.replace(temporary, target)
        else:
            with _as_os_errors():
                self.fs.mv(temporary, target)

    def read(self, name: str) -> str | None:
        """A file's text; None where there is none."""
        try:
            with _as_os_errors():
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

    def salvage(self, name: str) -> Any | None:
        """A JSON file's value; None where there is none, or where the file system kept only a part of it."""
        try:
            return self.read_json(name)
        except ValueError as error:
            logger.warning("%s is torn, and taken for missing: %s", posixpath.join(self.path, name), error)
            return None

    def list(self, name: str) -> list[str]:
        """Names of the finished files of a sub-folder, sorted; none where it does not exist."""
        try:
            with _as_os_errors():
                entries = self.fs.ls(posixpath.join(self.path, name), detail=False)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(entry.rstrip("/")) for entry in entries)
        # NFS keeps a removed file that is still open, as .nfs...
        return sorted(name for name in names if not name.endswith(".tmp") and not name.startswith("."))

    def last_attempt(self) -> int:
        """The number of the latest attempt; 0 where none began."""
        return max((int(name.removesuffix(".json")) for name in self.list("attempts")), default=0)

    def put_folder(self, name: str, local: Path) -> None:
        """Stores a local folder's files under a name, whole: a reader sees the old ones or the new ones.

        The files lie in a folder of their own, and `<name>.json`, written last, says in which.
        """
        self.fence()
        fresh = uuid.uuid4().hex[:8]
        target = posixpath.join(self.path, name, fresh)
        try:
            with _as_os_errors():
                if not _puts_whole(self.fs):
                    self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
                self.fs.put(f"{local}/", f"{target}/", recursive=True)
        except BaseException:
            with contextlib.suppress(OSError), _as_os_errors():
                self.fs.rm(target, recursive=True)
            raise
        self.write_json(f"{name}.json", {"folder": fresh})
        for other in self.list(name):
            if other != fresh:
                self.remove(f"{name}/{other}")

    def get_folder(self, name: str, local: Path) -> bool:
        """Copies what `put_folder` stored last to a local folder; False where there is none."""
        said = self.salvage(f"{name}.json")
        if said is None:
            return False
        with _as_os_errors():
            self.fs.get(posixpath.join(self.path, name, said["folder"]) + "/", f"{local}/", recursive=True)
        return True

    def at_hand(self, name: str, local: Path) -> Path:
        """Where a file can be read on this machine: where it is, or a copy in a local folder."""
        path = posixpath.join(self.path, name)
        if isinstance(self.fs, LocalFileSystem):
            return Path(path)
        copy = local / posixpath.basename(name)
        with _as_os_errors():
            self.fs.get_file(path, str(copy))
        return copy

    def remove_folder(self, name: str) -> None:
        """Removes what `put_folder` stored."""
        self.remove(f"{name}.json")
        self.remove(name)

    def remove(self, name: str) -> None:
        """Removes a file or sub-folder, if it is there."""
        self.fence()
        with contextlib.suppress(FileNotFoundError), _as_os_errors():
            self.fs.rm(posixpath.join(self.path, name), recursive=True)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """A remote store's own kinds of error (botocore's are no OSError) -> OSError, the one kind that callers expect."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _puts_whole(fs: Any) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not OBJECT_STORES.isdisjoint(protocols)


def _create_local(target: str, text: str) -> bool:
    """Exclusive too, but whole only once it is closed."""
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


class TrialFolder(Folder):
    """Everything about one training."""

    def begin_attempt(self, facts: dict[str, Any]) -> int:
        """Records who runs the training now; returns the attempt's number, from 1."""
        attempt = self.last_attempt() + 1
        self.write_json(f"attempts/{attempt}.json", facts)
        return attempt

    def attempt(self, number: int) -> dict[str, Any]:
        """What was recorded when an attempt began; empty where nothing is."""
        return self.salvage(f"attempts/{number}.json") or {}

    def spent_ms(self) -> int:
        """How long all attempts so far held their worker, by the last sign of life that each one left."""
        attempts = {number: self.attempt(number) for number in range(1, self.last_attempt() + 1)}
        last_segments = {int(name.split("-")[0]): name for name in self.list("metrics")}
        lease, result = self.salvage("lease") or {}, self.result()
        spent_ms = 0
        for number, facts in attempts.items():
            if "started_ms" not in facts:
                continue
            signs_ms = [facts["started_ms"], attempts.get(number + 1, {}).get("last_beat_ms", 0)]
            if number in last_segments:
                signs_ms += [row.time_ms for row in self._segment(last_segments[number])]
            if result is not None and result.attempt == number:
                signs_ms.append(result.ended_ms)
            if lease.get("attempt") == number:
                signs_ms.append(lease["time_ms"])
            spent_ms += max(signs_ms) - facts["started_ms"]
        return spent_ms

    def write_segment(self, attempt: int, rows: Sequence[Row]) -> None:
        """Writes the steps since the last segment."""
        lines = [json.dumps(asdict(row)) for row in rows]
        self.write(f"metrics/{attempt:04d}-{rows[0].step:08d}.jsonl", "\n".join(lines) + "\n")

    def rows(self, *, read: dict[str, list[Row]] | None = None) -> list[Row]:
        """Every step on record, merged: where two attempts made a step, the later one's counts.

        `read` keeps segments between calls: one that is there does not change any more.
        """
        read = {} if read is None else read
        merged: dict[int, Row] = {}
        for name in self.list("metrics"):
            if name not in read:
                read[name] = self._segment(name)
            merged |= {row.step: row for row in read[name]}
        return [merged[step] for step in sorted(merged)]

    def _segment(self, name: str) -> list[Row]:
        """The whole lines of a segment: a file system that went down may keep half of the last one."""
        lines = (self.read(f"metrics/{name}") or "").splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(Row(**json.loads(line)))
            except ValueError as error:
                if number < len(lines):
                    raise
                logger.warning("%s/metrics/%s: its last line is torn, and left out: %s", self.path, name, error)
        return rows

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
        kind: FailureKind = "",
        reason: str = "",
        traceback: str = "",
        checkpoint: Literal["none", "weights", "full"] = "none",
    ) -> None:
        """Writes the result of an attempt, with the steps, evaluations and failures that are on record by then."""
        rows = self.rows()
        before = self.result()
        failures = {} if before is None else dict(before.failures)
        if outcome == "failed" and kind:
            failures[kind] = failures.get(kind, 0) + 1
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
                kind=kind,
                failures=failures,
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
        return result if result is not None and result.attempt == self.last_attempt() else None

    def result(self) -> Result | None:
        """How the last attempt that ended did; None where none has. Another may have begun since."""
        fields = self.salvage("result.json")
        if fields is None:
            return None
        fields["evaluations"] = frozenset((digest, step) for digest, step in fields["evaluations"])
        return Result(**fields)


class Store:
    """A trial store at a folder or fsspec URL."""

    def __init__(self, root: str) -> None:
        # other processes' files are to be seen at once; only stores of objects remember listings, or know the option
        options = {"use_listings_cache": False} if root.partition("://")[0] in OBJECT_STORES else {}
        try:
            self.fs, path = fsspec.core.url_to_fs(root, **options)
        except ImportError as error:
            raise UserError(f"storage: {root}: {error}, on every machine that runs trials") from error
        except ValueError as error:
            raise UserError(f"storage: {root}: {error}") from error
        self.path = path.rstrip("/")
        self.root = root

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def absolute(self) -> str:
        """Its root as a process in another working directory finds it."""
        return str(Path(self.path).resolve()) if self.is_local else self.root

    def trial(self, key: str) -> TrialFolder:
        """The folder of one training."""
        return TrialFolder(self.fs, posixpath.join(self.path, "trials", key))

    def trainings(self) -> list[str]:
        """Keys of every training on record."""
        return Folder(self.fs, self.path).list("trials")

    def sweeps(self) -> list[str]:
        """Names of every sweep on record."""
        return Folder(self.fs, self.path).list("sweeps")

    def sweep(self, name: str) -> Folder:
        """The folder of one sweep."""
        return Folder(self.fs, posixpath.join(self.path, "sweeps", name))

    def scratch(self, name: str) -> Folder:
        """A folder for what is not kept, which `remove_scratch` removes."""
        return Folder(self.fs, posixpath.join(self.path, f".scratch-{name}"))

    def remove_scratch(self, name: str) -> None:
        """Removes a folder that `scratch` named."""
        Folder(self.fs, self.path).remove(f".scratch-{name}")

    def check_writable(self) -> None:
        """Creates, replaces and removes a file.

        Raises:
            UserError: the storage cannot be written, or creates a file that is there already.
        """
        probe = Folder(self.fs, self.path)
        name = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            probe.create(name, "")
            is_exclusive = not probe.create(name, "")
            probe.write(name, "new")
            probe.remove(name)
        except OSError as error:
            mend = (
                "choose a folder that this user may write, on a disk with room"
                if self.is_local
                else "check its address, that the bucket is there, and the credentials in the environment"
            )
            raise UserError(f"storage: {self.root}: cannot be written: {error}; {mend}") from error
        if not is_exclusive:
            raise UserError(
                f"storage: {self.root}: cannot be written: it creates a file that is there already, so that two "
                "processes could take one trial; choose a store that refuses (S3's If-None-Match)"
            )


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
