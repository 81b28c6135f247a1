"""Ray Jobs: submit, follow and stop a sweep's driver on a cluster's head, and run verbs there, from any machine.

A submission is called `<sweep>-<attempt>`, because Ray accepts an id only once. No secrets are sent, because everybody
with access can read a job's description. The driver's secrets are in the environment of the head's `ray start`.
"""

import asyncio
import contextlib
import logging
import os
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from oneshot.config.contexts import ContextConfig, token_of
from oneshot.errors import OneshotError, UserError
from oneshot.plan.sweep_run import USER, login_name
from oneshot.sweep.cluster.package import COMMIT, Bundle, commit, packed
from oneshot.sweep.events import BEGIN
from oneshot.tasks.foreign import FOLDER

STOP_WAIT_S = 60  # least time from the stop signal to the kill
LOOK_S = 1.0
ASK_S = 0.1  # between two looks at a verb that runs on the head, for which somebody waits
READY_S = 60.0  # A new head accepts jobs only some seconds after it first answers
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Loggers of Ray that report uploads and closed sockets."""
QUIET_S = 60.0  # silence after which the log is requested again
PATIENCE_S = 120.0  # time limit of a verb that runs on the head
RAYS = "Running entrypoint for job"  # Prefix of lines that Ray writes into a job's log
LIVE = (JobStatus.PENDING, JobStatus.RUNNING)

Print = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A driver of a sweep on a cluster."""

    id: str
    sweep: str
    attempt: int
    storage: str
    status: str
    started_ms: int
    message: str
    exit_code: int | None

    @property
    def is_live(self) -> bool:
        """Return whether it runs or will run."""
        return self.status in {str(status.value) for status in LIVE}


class Cluster:
    """The Ray Jobs client of an address."""

    def __init__(self, context: ContextConfig, *, name: str) -> None:
        self._context, self._name = context, name
        for logger in CHATTY:
            logging.getLogger(logger).setLevel(logging.WARNING)
        token = token_of(context)
        with self._explained():
            self._client = JobSubmissionClient(
                context.address, headers={"Authorization": f"Bearer {token}"} if token else None
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error on the way to the head into one line with a hint."""
        try:
            yield
        except AuthenticationError as error:
            raise FinalError(
                f"--address {self._name}: the cluster requires a token, or rejects this one; set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN_PATH (or the context's token_path) to a file with the token of its head "
                "(`ray get-auth-token` prints it there)"
            ) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise UserError(
                f"--address {self._name}: Ray's dashboard does not answer at {self._context.address}; check that the "
                "head runs, was started with --dashboard-host, and can be reached (`ray dashboard`, kubectl "
                "port-forward)"
            ) from error
        except RuntimeError as error:
            raise OneshotError(f"--address {self._name}: {_line(str(error), -1)}") from error

    def submissions(self, sweep: str | None = None) -> list[Submission]:
        """Return the submissions of a sweep, or of all sweeps, by time."""
        with self._explained():
            jobs = self._client.list_jobs()
        submissions = [made for job in jobs if (made := _submission(job)) is not None]
        chosen = (made for made in submissions if sweep in (None, made.sweep))
        return sorted(chosen, key=lambda made: made.started_ms)

    def last(self, sweep: str, *, storage: str | None = None) -> Submission:
        """Return the latest submission of a sweep, among those with a storage if one is given.

        Raises UserError: there is none.
        """
        matching = [made for made in self.submissions(sweep) if storage in (None, made.storage)]
        if not matching:
            names = ", ".join(sorted({made.sweep for made in self.submissions()})) or "no sweep"
            raise UserError(f"{sweep}: never submitted to {self._name}, which has had {names}; check the name")
        return matching[-1]

    def submit(self, bundle: Bundle, *, sweep: str, storage: str, arguments: Sequence[str], wait_s: int) -> str:
        """Run `oneshot run FILE ...` on the head; return the submission's id.

        Raises UserError: a driver of that sweep is already running.
        """
        earlier = self.submissions(sweep)
        live = [made for made in earlier if made.is_live and made.storage == storage]
        if live:
            raise UserError(
                f"{sweep} is already running as {live[-1].id}; watch it with `oneshot logs {sweep} --address "
                f"{self._name} --follow`, or end it with `oneshot stop {sweep} --address {self._name}`"
            )
        attempt = max((made.attempt for made in earlier), default=0) + 1
        command = ["run", bundle.file.name, "--address", "auto", "--check", "--storage", storage, *arguments]
        with packed(bundle) as folder:
            while True:
                try:
                    return self._start(
                        f"{sweep}-{attempt}",
                        _entrypoint(command),
                        folder,
                        {"sweep": sweep, "attempt": str(attempt), "storage": storage},
                        wait_s=max(STOP_WAIT_S, wait_s),
                        variables={USER: os.environ.get(USER) or login_name()} | ({FOLDER: "."} if bundle.code else {}),
                    )
                except _TakenError:  # another user took it just now, or it was deleted from the list
                    attempt += 1

    def _start(
        self,
        submission_id: str,
        entrypoint: str,
        folder: Path,
        metadata: dict[str, str],
        *,
        wait_s: int = STOP_WAIT_S,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        variables = {
            **variables,
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(wait_s),
            "PYTHONUNBUFFERED": "1",
            **self._context.env,
        }
        if (from_commit := commit()) is not None:
            variables[COMMIT] = from_commit
        deadline_s = time.monotonic() + READY_S
        with self._explained():
            while True:
                try:
                    return str(
                        self._client.submit_job(
                            entrypoint=entrypoint,
                            submission_id=submission_id,
                            runtime_env={"working_dir": str(folder), "env_vars": variables},
                            metadata={f"oneshot.{name}": value for name, value in metadata.items()},
                        )
                    )
                except RuntimeError as error:
                    if "already exists" in str(error):
                        raise _TakenError from error
                    if "No available agent" not in str(error) or time.monotonic() > deadline_s:
                        raise
                time.sleep(LOOK_S)

    def ask(
        self, arguments: Sequence[str], *, bundle: Bundle | None = None, patience_s: float = PATIENCE_S
    ) -> tuple[int, str]:
        """Run a verb on the head, with a sweep file if one is given; return its exit code and its output.

        Raises OneshotError: the head does not answer in time.
        """
        submission_id = f"oneshot-{arguments[0]}-{uuid.uuid4().hex[:8]}"
        with packed(bundle) as folder:
            self._start(submission_id, _entrypoint(arguments), folder, {"verb": arguments[0]})
        deadline_s = time.monotonic() + patience_s
        status = JobStatus.PENDING
        try:
            with self._explained():
                while (status := self._client.get_job_status(submission_id)) in LIVE:
                    if time.monotonic() > deadline_s:
                        raise OneshotError(
                            f"--address {self._name}: the head has not answered within {patience_s:.0f} s"
                        )
                    time.sleep(ASK_S)
                output = "".join(f"{line}\n" for line in own_words(self.logs(submission_id).splitlines()))
                details = self._client.get_job_info(submission_id)
        finally:
            self._forget(submission_id, is_live=status in LIVE)
        if status != JobStatus.SUCCEEDED and details.driver_exit_code is None:
            raise OneshotError(f"--address {self._name}: {_line(details.message or '', 0)}")
        return details.driver_exit_code or 0, output

    def _forget(self, submission_id: str, *, is_live: bool) -> None:
        """Delete a verb's job from the list; one that still runs is stopped, and stays."""
        with contextlib.suppress(OneshotError), self._explained():
            if is_live:
                self._client.stop_job(submission_id)
            else:
                self._client.delete_job(submission_id)

    def stop(self, submission_id: str) -> None:
        """Ask a driver to end; it has at least a minute for its trials' checkpoints."""
        with self._explained():
            self._client.stop_job(submission_id)

    def logs(self, submission_id: str) -> str:
        """Return a driver's log so far."""
        with self._explained():
            return str(self._client.get_job_logs(submission_id))

    def follow(
        self, submission_id: str, say: Print, *, complain: Print, until: str | None = None, num_told: int = 0
    ) -> Submission:
        """Pass a driver's log on, line by line, until it ends or a line contains `until`.

        `num_told` lines have been passed on before, and are left out. If the connection to the head is lost, try again:
        the driver does not need this process.
        """
        tail = _Tail(say, until, num_told)
        is_cut = False
        while True:
            try:
                asyncio.run(self._tail(submission_id, tail))
                job = next((made for made in self.submissions() if made.id == submission_id), None)
                if job is None:
                    raise FinalError(
                        f"{submission_id}: the cluster has no record of it; perhaps its head was restarted. "
                        "`oneshot submit` resumes the sweep"
                    )
                if tail.is_over or not job.is_live:
                    tail.rest(self.logs(submission_id) if not tail.is_over else "")
                    return job
                is_cut = False
            except FinalError:
                raise
            except (aiohttp.ClientError, TimeoutError, RuntimeError, OSError, OneshotError) as error:
                if not is_cut:
                    reason = _line(str(error), 0)
                    complain(f"Lost connection to the head node ({reason}). The sweep keeps running; retrying.")
                is_cut = True
            time.sleep(LOOK_S)

    async def _tail(self, submission_id: str, tail: "_Tail") -> None:
        """Read until the log ends or has been silent for a while, because a lost connection may stay silent."""
        tail.begin()
        words = aiter(self._client.tail_job_logs(submission_id))
        while not tail.is_over:
            try:
                async with asyncio.timeout(QUIET_S):
                    tail.take(await anext(words))
            except (StopAsyncIteration, TimeoutError):
                return


def own_words(lines: Iterable[str]) -> Iterator[str]:
    """Return the driver's own lines of a log, without those of Ray."""
    is_own = _OwnWords()
    return (line for line in lines if is_own(line))


class _OwnWords:
    """Tells the driver's lines from Ray's, taken one after another."""

    def __init__(self) -> None:
        self._has_begun = False

    def __call__(self, line: str) -> bool:
        is_own = self._has_begun and not line.startswith(RAYS)
        self._has_begun = self._has_begun or line == BEGIN
        return is_own


class FinalError(UserError):
    """An error that another try would meet again: the cluster denies access, or has no record of a submission."""


class _TakenError(Exception):
    """A submission id is already taken."""


class _Tail:
    """A log that is read from its start after every interruption, but passed on only once."""

    def __init__(self, say: Print, until: str | None, num_told: int = 0) -> None:
        self._say, self._until, self._num_told = say, until, num_told
        self._num_said = 0
        self._num_seen = 0
        self._line = ""
        self._is_own = _OwnWords()
        self.is_over = False

    def begin(self) -> None:
        self._num_seen = 0

    def take(self, words: str) -> None:
        start = max(0, self._num_said - self._num_seen)
        self._num_seen += len(words)
        fresh = words[start:]
        self._num_said += len(fresh)
        *lines, self._line = (self._line + fresh).split("\n")
        for line in lines:
            self._pass_on(line)

    def rest(self, whole: str) -> None:
        """Pass on what came after the last text passed on."""
        self.begin()
        self.take(whole)
        if self._line:
            self._pass_on(self._line)
            self._line = ""

    def _pass_on(self, line: str) -> None:
        if self._is_own(line) and not self.is_over:
            if self._num_told:
                self._num_told -= 1
                return
            self._say(line)
            self.is_over = self._until is not None and self._until in line


def _submission(job: JobDetails) -> Submission | None:
    """Return a job as a sweep's submission, or None if it is something else."""
    metadata: dict[str, Any] = job.metadata or {}
    if "oneshot.sweep" not in metadata or job.submission_id is None:
        return None
    return Submission(
        id=job.submission_id,
        sweep=metadata["oneshot.sweep"],
        attempt=int(metadata["oneshot.attempt"]),
        storage=metadata["oneshot.storage"],
        status=str(job.status.value),
        started_ms=int(job.start_time or 0),
        message=job.message or "",
        exit_code=job.driver_exit_code,
    )


RAYS_PYTHON = (
    # a head that was started by `/path/bin/ray` may have another Python on PATH; beside Ray's own files is the right
    # one. The shell's parent is Ray's job supervisor, and that one's is the raylet
    "raylet=$(readlink /proc/$(awk '/^PPid/ {print $2}' /proc/$PPID/status)/exe); "
    'python="${raylet%%/lib/python*}/bin/python"; [ -x "$python" ] || python=python; '
)


def _entrypoint(arguments: Sequence[str]) -> str:
    return f"{RAYS_PYTHON}echo '{BEGIN}'; exec \"$python\" -m oneshot {shlex.join(arguments)}"


def _line(text: str, place: int) -> str:
    """Return the first line of a message (place 0), or the last one of a server's traceback (-1)."""
    lines = text.strip().splitlines()
    return re.sub(r"\s+", " ", lines[place]) if lines else "no reason was given"
