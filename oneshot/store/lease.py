"""A folder of the store -> the one process, on any machine, that may write to it.

The process that creates `attempts/<n + 1>.json` holds attempt n + 1; the store lets only one process create it. The
file `lease` is that attempt's heartbeat, rewritten every `BEAT_S`, and says when the holder is done. A holder is dead
if its process is gone from this machine, or if a `Watch` has seen no new heartbeat for `LAPSE_S`. No clocks are
compared between machines.

A holder that is slow but alive may be taken for dead. Therefore each lease is the fence of its folder: before a write
takes effect, the store is asked whether there is a later attempt. A process that pauses for long between that question
and its write can still do harm, but only by one whole file.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil

from oneshot.errors import OneshotError
from oneshot.store.folder import Folder, now_ms, unfenced

BEAT_S = 5.0
LAPSE_S = 30.0
ANY_BEAT = -1  # stands for every heartbeat
LOOK_AGAIN_S = 0.05
BORN_WITHIN_S = 1.5  # two readings of a process's start time may differ by a tick of the machine's clock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that holds an attempt."""

    attempt: int
    sweep: str
    host: str
    host_id: str  # digest of the running machine and its pid namespace, within which a pid is unique
    pid: int
    born: float  # start in seconds since boot, because another process may get the same pid later
    beat: int  # number of heartbeats so far
    time_ms: int  # time of the last heartbeat, by the holder's own clock

    def __str__(self) -> str:
        return f"{self.host}:{self.pid} (sweep {self.sweep}, attempt {self.attempt})"

    def is_process(self, other: "Holder") -> bool:
        """Return whether both are the same attempt of the same process."""
        return all(getattr(self, name) == getattr(other, name) for name in ("attempt", "host_id", "pid", "born"))


class LeaseError(OneshotError):
    """This process may not write."""


class Leased(LeaseError):  # noqa: N818 - named after the state, not the error
    """Another process holds the lease and may be alive."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self.holder = holder

    def __str__(self) -> str:
        return f"held by {self.holder}"


class LeaseLost(LeaseError):  # noqa: N818 - as above
    """Another process took over this lease, so writes no longer count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """The state of a folder's latest attempt."""

    attempt: int
    holder: Holder | None  # none if there is none, it is done, or it began without a lease
    last_beat_ms: int = 0  # time of the last heartbeat, also of a holder that is done; 0 without one


def _turn(folder: Folder) -> _Turn:
    attempt = folder.last_attempt()
    leased, is_released = _lease(folder)
    if leased is not None and leased.attempt >= attempt:
        return _Turn(attempt=leased.attempt, holder=None if is_released else leased, last_beat_ms=leased.time_ms)
    # the attempt has no lease: its holder is between writing the two files, or a former holder wrote late
    begun = (folder.salvage(f"attempts/{attempt}.json") if attempt else None) or {}
    taker = Holder(**_of_holder(begun | {"attempt": attempt, "beat": 0})) if "host_id" in begun else None
    return _Turn(attempt=attempt, holder=taker)


def _lease(folder: Folder) -> tuple[Holder | None, bool]:
    """Return the holder in `lease`, and whether it is done."""
    fields = folder.salvage("lease")
    return (None, False) if fields is None else (Holder(**_of_holder(fields)), fields["released"])


def _of_holder(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in Holder.__slots__}


def holder(folder: Folder) -> Holder | None:
    """Return the holder of the latest attempt, alive or not; None if it is done or there is none."""
    return _turn(folder).holder


def known_dead(holder: Holder) -> Holder:
    """Mark a holder that no driver controls any more, as `stale_holder` for `take`.

    Its process may still send heartbeats, on a host that lost its driver but not the store. Its writes do not count.
    """
    return replace(holder, beat=ANY_BEAT)


def is_here(holder: Holder) -> bool:
    """Return whether the holder's process is on this machine and alive."""
    return holder.host_id == _host_id() and not is_gone(holder)


def is_gone(holder: Holder) -> bool:
    """Return whether the holder ran on this machine and its process is gone."""
    if holder.host_id != _host_id():
        return False
    try:
        process = psutil.Process(holder.pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(_born(process) - holder.born) > BORN_WITHIN_S
    except psutil.AccessDenied:
        return False
    except psutil.NoSuchProcess:
        return not _is_hidden(holder.pid)


def _is_hidden(pid: int) -> bool:
    """Return whether it is another user's process on a machine that hides these (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


class Watch:
    """Observes which holders still send heartbeats, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def living(self, folder: Folder) -> Holder | None:
        """Return the holder if it may be alive, else None."""
        current, is_dead = self._look(folder)
        return None if is_dead else current

    def lapsed(self, folder: Folder) -> Holder | None:
        """Return the holder if it is dead, for `take` to pass over, else None."""
        current, is_dead = self._look(folder)
        return current if is_dead else None

    def _look(self, folder: Folder) -> tuple[Holder | None, bool]:
        current = holder(folder)
        if current is None:
            self._seen.pop(folder.path, None)
            return None, False
        now_s = time.monotonic()
        seen = self._seen.get(folder.path)
        if seen is None or not (seen.holder.is_process(current) and seen.holder.beat == current.beat):
            seen = _Seen(holder=current, looked_s=now_s)
        # if we have not looked for long, perhaps the store could not be reached by anybody: do not count that time
        unchanged_s = seen.unchanged_s + min(now_s - seen.looked_s, LAPSE_S / 3)
        self._seen[folder.path] = replace(seen, looked_s=now_s, unchanged_s=unchanged_s)
        return current, unchanged_s >= LAPSE_S or is_gone(current)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    holder: Holder
    looked_s: float
    unchanged_s: float = 0.0


def take(folder: Folder, *, sweep: str, metadata: Mapping[str, Any], stale_holder: Holder | None = None) -> "Lease":
    """Take the folder's next attempt: record it with `metadata`, start its heartbeat, and fence the folder.

    `stale_holder` is a holder that a `Watch` found dead, in this process or in another. It is passed over unless it has
    sent a heartbeat since (if marked by `known_dead`: even then). A holder whose process is gone from this machine is
    always passed over.

    Raises Leased: another process holds the lease and may be alive.
    """
    while True:
        turn = _turn(folder)
        if turn.holder is not None and not is_gone(turn.holder) and not _is_still(stale_holder, turn.holder):
            raise Leased(turn.holder)
        own = _myself(attempt=turn.attempt + 1, sweep=sweep)
        if _create_attempt(folder, own, {"started_ms": own.time_ms, **metadata, "last_beat_ms": turn.last_beat_ms}):
            return Lease(folder, own)
        # another process was faster; NFS may show its file a minute late, so look again
        time.sleep(LOOK_AGAIN_S)


def _is_still(stale_holder: Holder | None, current: Holder) -> bool:
    if stale_holder is None or not stale_holder.is_process(current):
        return False
    return stale_holder.beat in (ANY_BEAT, current.beat)


def _create_attempt(folder: Folder, own: Holder, metadata: Mapping[str, Any]) -> bool:
    fields = {name: value for name, value in asdict(own).items() if name not in ("attempt", "beat")}
    token = uuid.uuid4().hex
    name = f"attempts/{own.attempt}.json"
    if folder.create(name, json.dumps({**metadata, **fields, "token": token}, indent=2, sort_keys=True)):
        return True
    # if the answer was lost, the store's client sends the creation again, which then finds its own file
    return (folder.salvage(name) or {}).get("token") == token


class Lease:
    """This process's hold on a folder, kept by a heartbeat until it is released or lost."""

    def __init__(self, folder: Folder, holder: Holder) -> None:
        self.folder = folder
        self.holder = holder
        self._unfenced = Folder(folder.fs, folder.path)
        self._lock = threading.Lock()
        self._is_over = False
        self._is_lost = False
        self._is_cut_off = False
        self._write(holder, released=False)
        folder.fence = self.check
        _heart.add(self)

    @property
    def attempt(self) -> int:
        """Return the attempt's number, from 1."""
        return self.holder.attempt

    def check(self) -> None:
        """Ask the store whether this lease still holds the folder.

        Raises LeaseLost: another process holds it, or the lease was removed.
        """
        if not self._is_lost and self._is_others():
            self._is_lost = True
        if self._is_lost:
            raise LeaseLost(f"{self.folder.path}: {self.holder} was taken for dead, and another process took over")

    def _is_others(self) -> bool:
        current, _ = _lease(self._unfenced)
        if current is None:
            return True
        # a lease of an earlier attempt was written late, by a process that had lost the folder
        if current.attempt >= self.attempt and not current.is_process(self.holder):
            return True
        # a new holder may have written only its attempt so far; NFS may show new files late, but a new lease at once
        return self._unfenced.last_attempt() != self.attempt

    def beat(self) -> None:
        """Send a heartbeat; if the store does not answer, try again at the next one."""
        with self._lock:
            if self._is_over or self._is_lost:
                return
            try:
                self._is_lost = self._is_others()
                if self._is_lost:
                    logger.error("%s: the lease of %s is lost", self.folder.path, self.holder)
                    return
                self.holder = replace(self.holder, beat=self.holder.beat + 1, time_ms=now_ms())
                self._write(self.holder, released=False)
            except OSError as error:
                if not self._is_cut_off:
                    logger.warning("%s: cannot renew the lease; retrying: %s", self.folder.path, error)
                self._is_cut_off = True
            else:
                self._is_cut_off = False

    def release(self) -> None:
        """Stop the heartbeat and free the folder; the fence of a lost lease stays."""
        _heart.remove(self)
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._is_lost = self._is_lost or self._is_others()
            if not self._is_lost:
                self._write(replace(self.holder, time_ms=now_ms()), released=True)
                self.folder.fence = unfenced

    def _write(self, holder: Holder, *, released: bool) -> None:
        self._unfenced.write_json("lease", {**asdict(holder), "released": released})


class _Heart:
    """One thread that sends the heartbeats of every lease of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: list[Lease] = []
        self._thread: threading.Thread | None = None
        self._is_new = threading.Event()

    def add(self, lease: Lease) -> None:
        with self._lock:
            self._leases.append(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
                self._thread.start()
        self._is_new.set()

    def remove(self, lease: Lease) -> None:
        with self._lock:
            if lease in self._leases:
                self._leases.remove(lease)

    def _run(self) -> None:
        while True:
            self._is_new.wait(BEAT_S)
            self._is_new.clear()
            with self._lock:
                leases = list(self._leases)
            for lease in leases:
                lease.beat()


_heart = _Heart()


def _myself(*, attempt: int, sweep: str) -> Holder:
    return Holder(
        attempt=attempt,
        sweep=sweep,
        host=socket.gethostname(),
        host_id=_host_id(),
        pid=os.getpid(),
        born=_born(psutil.Process()),
        beat=0,
        time_ms=now_ms(),
    )


def _born(process: psutil.Process) -> float:
    # counted from boot, so that setting the clock changes nothing
    born: float = process.create_time() - psutil.boot_time()
    return round(born, 2)


@cache
def _host_id() -> str:
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and pids.is_symlink():
        machine = f"{boot.read_text().strip()} {os.readlink(pids)}"
    else:
        machine = f"{uuid.getnode():x}"
    return sha256(f"{socket.gethostname()} {machine}".encode()).hexdigest()[:16]
