"""A folder of the store, on a local disk or any fsspec file system: whole files in, whole files out.

Nothing is ever appended to. A file is written whole, under a temporary name that is renamed, or as one object in an
object store. Every failure of a store is an OSError.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

OBJECT_STORES = frozenset(
    {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "cos", "obs", "tos", "r2"}
)
"""fsspec protocols whose puts are atomic, and whose renames would be a copy and a removal."""
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of a local file system without hard links."""
CREATE_AGAIN_S = (0.2, 1.0)
"""Pauses before a creation that collided is tried again: S3 answers 409 to both of two simultaneous ones."""

logger = logging.getLogger(__name__)

_creation = threading.Lock()  # memory:// has no exclusive creation between threads


def unfenced() -> None:
    """Allow every write: the fence of a folder without a lease."""


class Folder:
    """A folder of the store, whose files are written and read whole.

    `fence` is called right before each write takes effect. A lease sets it, to raise `LeaseLost` if another process has
    taken the folder over.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self.fs = fs
        self.path = path
        self.fence: Callable[[], None] = unfenced

    def write(self, name: str, content: str | bytes) -> None:
        """Write a whole file; a reader sees the old content or the new one."""
        target, content = posixpath.join(self.path, name), content.encode() if isinstance(content, str) else content
        if _puts_whole(self.fs):
            self.fence()
            with _as_os_errors():
                self.fs.pipe_file(target, content)
            return
        with self._beside(target, content) as temporary:
            self.fence()
            self._rename(temporary, target)

    def create(self, name: str, text: str) -> bool:
        """Create a whole file; of several processes that try, exactly one gets True. Not fenced."""
        target = posixpath.join(self.path, name)
        if not isinstance(self.fs, LocalFileSystem):
            return self._create_remote(target, text)
        with self._beside(target, text.encode()) as temporary:
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
                # not every store reports an existing file in a way that its fsspec package knows
                with _as_os_errors():
                    if self.fs.exists(target):
                        return False
                if pause_s is None or error.errno not in (errno.EIO, errno.EBUSY):
                    raise
                time.sleep(pause_s)
        raise AssertionError("the last pause is None")

    @contextlib.contextmanager
    def _beside(self, target: str, content: bytes) -> Iterator[str]:
        """Write a temporary file next to the target; remove it afterwards unless it was renamed."""
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with _as_os_errors():
                self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
                self.fs.pipe_file(temporary, content)
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
        """Return a file's text, or None without a file."""
        content = self.read_bytes(name)
        return None if content is None else content.decode()

    def read_bytes(self, name: str) -> bytes | None:
        """Return a file's bytes, or None without a file."""
        path = posixpath.join(self.path, name)
        try:
            if isinstance(self.fs, LocalFileSystem):  # a third of fsspec's time
                return Path(path).read_bytes()
            with _as_os_errors():
                content: bytes = self.fs.cat_file(path)
        except FileNotFoundError:
            return None
        return content

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON."""
        self.write(name, json.dumps(value, indent=2, sort_keys=True))

    def read_json(self, name: str) -> Any | None:
        """Return a JSON file's value, or None without a file."""
        text = self.read(name)
        return None if text is None else json.loads(text)

    def salvage(self, name: str) -> Any | None:
        """Return a JSON file's value, or None without a file or if the file system kept only a part of it."""
        try:
            return self.read_json(name)
        except ValueError as error:
            logger.warning("%s is incomplete and ignored: %s", posixpath.join(self.path, name), error)
            return None

    def list(self, name: str) -> list[str]:
        """Return the sorted names of the finished files of a sub-folder; none if it does not exist."""
        path = posixpath.join(self.path, name)
        try:
            if isinstance(self.fs, LocalFileSystem):
                entries = os.listdir(path)
            else:
                with _as_os_errors():
                    entries = self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = (posixpath.basename(entry.rstrip("/")) for entry in entries)
        # NFS keeps a removed file that is still open as .nfs...
        return sorted(name for name in names if not name.endswith(".tmp") and not name.startswith("."))

    def last_attempt(self) -> int:
        """Return the number of the latest attempt, or 0."""
        return max((int(name.removesuffix(".json")) for name in self.list("attempts")), default=0)

    def put_folder(self, name: str, local: Path) -> None:
        """Store a local folder's files under a name; a reader sees all of the old ones or all of the new ones.

        The files go into a new folder, and `<name>.json`, written last, points to it.
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
        self.remove_superseded(name)

    def remove_superseded(self, name: str) -> None:
        """Remove what `put_folder` stored before its last call, and what a killed process left of it."""
        pointer = self.salvage(f"{name}.json") or {"folder": None}
        for other in self.list(name):
            if other != pointer["folder"]:
                self.remove(f"{name}/{other}")

    def get_folder(self, name: str, local: Path) -> bool:
        """Copy what `put_folder` stored last to a local folder; return False if there is nothing."""
        pointer = self.salvage(f"{name}.json")
        if pointer is None:
            return False
        with _as_os_errors():
            self.fs.get(posixpath.join(self.path, name, pointer["folder"]) + "/", f"{local}/", recursive=True)
        return True

    def at_hand(self, name: str, local: Path) -> Path:
        """Return a local path of a file: its own, or that of a copy in `local`."""
        path = posixpath.join(self.path, name)
        if isinstance(self.fs, LocalFileSystem):
            return Path(path)
        copy = local / posixpath.basename(name)
        with _as_os_errors():
            self.fs.get_file(path, str(copy))
        return copy

    def remove_folder(self, name: str) -> None:
        """Remove what `put_folder` stored."""
        self.remove(f"{name}.json")
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file or sub-folder, if it exists."""
        self.fence()
        with contextlib.suppress(FileNotFoundError), _as_os_errors():
            self.fs.rm(posixpath.join(self.path, name), recursive=True)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn a remote store's errors (botocore's are not OSErrors) into OSErrors, which callers expect."""
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
    """Create a file exclusively; it is whole only once it is closed."""
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def now_ms() -> int:
    """Return the milliseconds since 1970."""
    return time.time_ns() // 1_000_000
