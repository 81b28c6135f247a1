"""A folder of the store -> whose turn it is to write in it: one process at a time, on whatever machine.

Attempt n + 1 is whoever creates `attempts/<n + 1>.json`: the store lets one process do so. `lease` is that attempt's
beat, written anew every `BEAT_S`; once its holder is done, it says so. A holder is dead if its process is gone from the
machine that we are on, or if a `Watch` has seen no new beat for `LAPSE_S`. No clocks are compared between machines.

A holder that is slow but alive may be taken for dead. So each lease is its folder's fence: before anything is made to
count, the store is asked whether there is a later attempt. A process that stops for long between that question and the
write that follows can still do harm: one file of its own, whole.
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
from oneshot.store.store import Folder, now_ms, unfenced

BEAT_S = 5.0
LAPSE_S = 30.0
ANY_BEAT = -1
"""In place of a beat: whatever it beats."""
LOOK_AGAIN_S = 0.05
BORN_WITHIN_S = 1.5
"""Two readings of one process's age may differ by a tick of the machine's clock."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process whose turn it is."""

    attempt: int
    sweep: str
    host: str
    host_id: str
    """Digest of the running machine and its process ids' namespace: within it a pid means something."""
    pid: int
    born: float
    """Seconds after its machine's start; another process may get the pid later."""
    beat: int
    """0 until the attempt's first beat."""
    time_ms: int
    """When it beat last, by its own clock."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid} (sweep {self.sweep}, attempt {self.attempt})"

    def is_process(self, other: "Holder") -> bool:
        """Whether both are the same attempt of the same process."""
        return self._process == other._process

    @property
    def _process(self) -> tuple[int, str, int, float]:
        return self.attempt, self.host_id, self.pid, self.born


class LeaseError(OneshotError):
    """It is not this process's turn."""


class Leased(LeaseError):  # noqa: N818 - it reads as what is the case
    """Another process holds the lease, and may be alive."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(holder)
        self.holder = holder

    def __str__(self) -> str:
        return f"held by {self.holder}"


class LeaseLost(LeaseError):  # noqa: N818 - as above
    """Our lease was taken over: nothing that we write may count any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """What a folder says about its latest attempt."""

    attempt: int
    holder: Holder | None
    """None where there was none, it is done, or it was begun without a lease."""
    last_beat_ms: int = 0
    """Of the attempt's lease, also where it is done; 0 where it never beat."""


def _turn(folder: Folder) -> _Turn:
    attempt = folder.last_attempt()
    leased, is_released = _lease(folder)
    if leased is not None and leased.attempt >= attempt:
        return _Turn(attempt=leased.attempt, holder=None if is_released else leased, last_beat_ms=leased.time_ms)
    # no lease of this attempt: its taker is between the two files, or somebody who had lost the folder wrote late
    facts = (folder.salvage(f"attempts/{attempt}.json") if attempt else None) or {}
    taker = Holder(**_of_holder(facts | {"attempt": attempt, "beat": 0})) if "host_id" in facts else None
    return _Turn(attempt=attempt, holder=taker)


def _lease(folder: Folder) -> tuple[Holder | None, bool]:
    """What `lease` says, and whether its holder is done."""
    said = folder.salvage("lease")
    return (None, False) if said is None else (Holder(**_of_holder(said)), said["released"])


def _of_holder(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in Holder.__slots__}


def holder(folder: Folder) -> Holder | None:
    """Who took the latest attempt and is not done with it, alive or not; None where nobody is."""
    return _turn(folder).holder


def known_dead(holder: Holder) -> Holder:
    """A holder that nobody drives any more, as `stale_holder` for `take`.

    Its process may go on beating, on a host that is cut off from its driver and not from the store; what it still
    writes does not count.
    """
    return replace(holder, beat=ANY_BEAT)


def is_here(holder: Holder) -> bool:
    """Whether the holder's process is on the machine that we are on, and alive."""
    return holder.host_id == _host_id() and not is_gone(holder)


def is_gone(holder: Holder) -> bool:
    """Whether the holder is known to be dead at once: its process is not on this machine, where it was."""
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
    """Whether it is another user's process on a machine that shows nobody else's (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


class Watch:
    """Which holders still beat, by this process's own clock: when each beat was seen first."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def living(self, folder: Folder) -> Holder | None:
        """The holder that may still be alive; None where nobody holds, or a dead one does."""
        found, is_dead = self._look(folder)
        return None if is_dead else found

    def lapsed(self, folder: Folder) -> Holder | None:
        """The holder that is dead, for `take` to pass over; None where nobody holds, or a living one does."""
        found, is_dead = self._look(folder)
        return found if is_dead else None

    def _look(self, folder: Folder) -> tuple[Holder | None, bool]:
        found = holder(folder)
        if found is None:
            self._seen.pop(folder.path, None)
            return None, False
        now_s = time.monotonic()
        seen = self._seen.get(folder.path)
        if seen is None or not (seen.holder.is_process(found) and seen.holder.beat == found.beat):
            seen = _Seen(holder=found, looked_s=now_s)
        # after a long time without a look, the store may have been cut off from the holder as it was from us
        unchanged_s = seen.unchanged_s + min(now_s - seen.looked_s, LAPSE_S / 3)
        self._seen[folder.path] = replace(seen, looked_s=now_s, unchanged_s=unchanged_s)
        return found, unchanged_s >= LAPSE_S or is_gone(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    holder: Holder
    looked_s: float
    unchanged_s: float = 0.0


def take(folder: Folder, *, sweep: str, facts: Mapping[str, Any], stale_holder: Holder | None = None) -> "Lease":
    """Takes the folder's next attempt: records `facts` as its own, begins to beat, and fences the folder.

    `stale_holder` is a holder that a `Watch` found dead, in this process or in another: it is passed over unless it
    has beaten since (`known_dead`: even then). One whose process is gone from this machine is passed over anyway.

    Raises:
        Leased: somebody holds the lease and may be alive.
    """
    while True:
        turn = _turn(folder)
        if turn.holder is not None and not is_gone(turn.holder) and not _is_still(stale_holder, turn.holder):
            raise Leased(turn.holder)
        own = _myself(attempt=turn.attempt + 1, sweep=sweep)
        if _create_attempt(folder, own, {"started_ms": own.time_ms, **facts, "last_beat_ms": turn.last_beat_ms}):
            return Lease(folder, own)
        # somebody was faster: a later look says whether they are still at it; NFS may show their file a minute late
        time.sleep(LOOK_AGAIN_S)


def _is_still(stale_holder: Holder | None, found: Holder) -> bool:
    return stale_holder is not None and stale_holder.is_process(found) and stale_holder.beat in (ANY_BEAT, found.beat)


def _create_attempt(folder: Folder, own: Holder, facts: Mapping[str, Any]) -> bool:
    known = {name: value for name, value in asdict(own).items() if name not in ("attempt", "beat")}
    token = uuid.uuid4().hex
    name = f"attempts/{own.attempt}.json"
    if folder.create(name, json.dumps({**facts, **known, "token": token}, indent=2, sort_keys=True)):
        return True
    # a creation whose answer was lost on the way is sent again by the store's client, and then finds itself
    return (folder.salvage(name) or {}).get("token") == token


class Lease:
    """Our turn in a folder, kept by a beat until it is released or lost."""

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
        """The attempt's number, from 1."""
        return self.holder.attempt

    def check(self) -> None:
        """Asks the store whether the folder is still ours.

        Raises:
            LeaseLost: it is another process's, or the lease was removed.
        """
        if not self._is_lost and self._is_others():
            self._is_lost = True
        if self._is_lost:
            raise LeaseLost(f"{self.folder.path}: {self.holder}: was taken for dead, and its place is taken")

    def _is_others(self) -> bool:
        found, _ = _lease(self._unfenced)
        if found is None:
            return True
        # the lease of an earlier attempt was written late, by somebody who had lost the folder
        if found.attempt >= self.attempt and not found.is_process(self.holder):
            return True
        # between a taker's two files the attempts say more; NFS may show a folder's new files late, a new lease at once
        return self._unfenced.last_attempt() != self.attempt

    def beat(self) -> None:
        """Shows that we live; a store that does not answer is asked again at the next beat."""
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
                    logger.warning("%s: the lease cannot be renewed, goes on trying: %s", self.folder.path, error)
                self._is_cut_off = True
            else:
                self._is_cut_off = False

    def release(self) -> None:
        """Stops beating and lets the next one take the folder; of a lost lease the fence stays."""
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
    """One thread that beats for every lease of this process."""

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
    # since the machine's start: what the clock is set to meanwhile changes nothing
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
