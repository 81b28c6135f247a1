"""Ray Jobs: a sweep's driver on a cluster's head -> submitted, followed, stopped, asked, from any machine.

A submission is called `<sweep>-<attempt>`: Ray takes an id once. Nothing secret goes along, for a job's description
is shown to whoever may ask; what the driver needs of that kind is in the environment of the head's `ray start`.
"""

import asyncio
import contextlib
import logging
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from oneshot.config.contexts import ContextConfig, token_of
from oneshot.errors import OneshotError, UserError
from oneshot.sweep.cluster.package import COMMIT, Bundle, commit, packed
from oneshot.sweep.events import BEGIN

STOP_WAIT_S = 60
"""From the signal to stop to the kill, at least."""
LOOK_S = 1.0
READY_S = 60.0
"""A head that has just been started takes jobs some seconds after it answers."""
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that tell what is uploaded, and how a socket was closed."""
QUIET_S = 60.0
"""Without a word, after which the log is asked for anew."""
PATIENCE_S = 120.0
"""For a verb that is run on the head."""
RAYS = "Running entrypoint for job"
"""How a line begins that Ray writes into a job's log."""
LIVE = (JobStatus.PENDING, JobStatus.RUNNING)

Print = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One driver of a sweep, on a cluster."""

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
        """Whether it runs, or will."""
        return self.status in {str(status.value) for status in LIVE}


class Cluster:
    """Ray Jobs at an address."""

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
        """Whatever goes wrong on the way to the head -> one line with its mend."""
        try:
            yield
        except AuthenticationError as error:
            raise TokenError(
                f"--address {self._name}: the cluster asks for a token, or for another one than this: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or the context's token_path) to a file with that of its "
                "head, where `ray get-auth-token` prints it"
            ) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise UserError(
                f"--address {self._name}: Ray's dashboard does not answer at {self._context.address}; is the head up, "
                "started with --dashboard-host, and is there a way to it (`ray dashboard`, kubectl port-forward)?"
            ) from error
        except RuntimeError as error:
            raise OneshotError(f"--address {self._name}: {_last_line(str(error))}") from error

    def submissions(self, sweep: str | None = None) -> list[Submission]:
        """Every submission of a sweep, or of all, by time."""
        with self._explained():
            jobs = self._client.list_jobs()
        found = [one for job in jobs if (one := _submission(job)) is not None and sweep in (None, one.sweep)]
        return sorted(found, key=lambda one: one.started_ms)

    def last(self, sweep: str, *, storage: str | None = None) -> Submission:
        """The latest submission of a sweep, of those with a storage if one is given.

        Raises:
            UserError: there is none.
        """
        found = [one for one in self.submissions(sweep) if storage in (None, one.storage)]
        if not found:
            there = sorted({one.sweep for one in self.submissions()})
            has = f"it has had {', '.join(there)}" if there else "it has had none"
            raise UserError(f"{sweep}: never submitted to {self._name}; {has}")
        return found[-1]

    def submit(self, bundle: Bundle, *, sweep: str, storage: str, arguments: Sequence[str], wait_s: int) -> str:
        """Has the head run `oneshot run FILE ...`; returns the submission's id.

        Raises:
            UserError: a driver of that sweep is at it.
        """
        known = self.submissions(sweep)
        live = [one for one in known if one.is_live and one.storage == storage]
        if live:
            raise UserError(
                f"{sweep} is being run as {live[-1].id}: `oneshot logs {sweep} --address {self._name} --follow` shows "
                f"it, `oneshot stop {sweep} --address {self._name}` ends it"
            )
        attempt = max((one.attempt for one in known), default=0) + 1
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
                    )
                except _TakenError:  # somebody else's, just now, or one that was deleted from the list
                    attempt += 1

    def _start(
        self, submission_id: str, entrypoint: str, folder: Path, facts: dict[str, str], *, wait_s: int = STOP_WAIT_S
    ) -> str:
        variables = {
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
                            metadata={f"oneshot.{name}": value for name, value in facts.items()},
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
        """Has the head run a verb, with a sweep file at hand, and waits; returns its exit code and what it said.

        Raises:
            OneshotError: the head does not say anything in time.
        """
        submission_id = f"oneshot-{arguments[0]}-{uuid.uuid4().hex[:8]}"
        with packed(bundle) as folder:
            self._start(submission_id, _entrypoint(arguments), folder, {"verb": arguments[0]})
        deadline_s = time.monotonic() + patience_s
        status = JobStatus.PENDING
        try:
            while (status := self._status(submission_id)) in LIVE:
                if time.monotonic() > deadline_s:
                    raise OneshotError(f"--address {self._name}: the head has not answered within {patience_s:.0f} s")
                time.sleep(LOOK_S)
            said = "".join(f"{line}\n" for line in own_words(self.logs(submission_id).splitlines()))
            with self._explained():
                details = self._client.get_job_info(submission_id)
        finally:
            self._forget(submission_id, is_live=status in LIVE)
        if status != JobStatus.SUCCEEDED and details.driver_exit_code is None:
            raise OneshotError(f"--address {self._name}: {_first_line(details.message or '')}")
        return details.driver_exit_code or 0, said

    def _forget(self, submission_id: str, *, is_live: bool) -> None:
        """Takes a verb's job off the list; one that still runs is stopped, and stays there."""
        with contextlib.suppress(OneshotError), self._explained():
            if is_live:
                self._client.stop_job(submission_id)
            else:
                self._client.delete_job(submission_id)

    def _status(self, submission_id: str) -> JobStatus:
        with self._explained():
            return self._client.get_job_status(submission_id)

    def stop(self, submission_id: str) -> None:
        """Asks a driver to end: it has a minute or more for its trials' checkpoints."""
        with self._explained():
            self._client.stop_job(submission_id)

    def logs(self, submission_id: str) -> str:
        """What a driver has said so far."""
        with self._explained():
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, say: Print, *, complain: Print, until: str | None = None) -> Submission:
        """Passes a driver's words on, line by line, until it ends, or has said `until`.

        Where the way to the head is cut, it is tried again: the driver does not need us.
        """
        tail = _Tail(say, until)
        is_cut = False
        while True:
            try:
                asyncio.run(self._tail(submission_id, tail))
                found = next((one for one in self.submissions() if one.id == submission_id), None)
                if found is None:
                    raise ForgottenError(
                        f"{submission_id}: the cluster knows it no more: was its head started anew? `oneshot submit` "
                        "goes on where the sweep stands"
                    )
                if tail.is_over or not found.is_live:
                    tail.rest(self.logs(submission_id) if not tail.is_over else "")
                    return found
                is_cut = False
            except (TokenError, ForgottenError):
                raise
            except (aiohttp.ClientError, TimeoutError, RuntimeError, OSError, OneshotError) as error:
                if not is_cut:
                    complain(f"lost the way to the head ({_first_line(str(error))}); the sweep goes on, and so do we")
                is_cut = True
            time.sleep(LOOK_S)

    async def _tail(self, submission_id: str, tail: "_Tail") -> None:
        """Reads on until the log ends, or nothing has come for a while: a way that is cut may say nothing at all."""
        tail.begin()
        words = aiter(self._client.tail_job_logs(submission_id))
        while not tail.is_over:
            try:
                async with asyncio.timeout(QUIET_S):
                    tail.take(await anext(words))
            except (StopAsyncIteration, TimeoutError):
                return


def own_words(lines: Iterable[str]) -> Iterator[str]:
    """What a driver said, of a log in which Ray speaks first, and now and then between."""
    is_own = _OwnWords()
    return (line for line in lines if is_own(line))


class _OwnWords:
    """Tells the driver's lines of a log from Ray's, taken one after another."""

    def __init__(self) -> None:
        self._has_begun = False

    def __call__(self, line: str) -> bool:
        is_own = self._has_begun and not line.startswith(RAYS)
        self._has_begun = self._has_begun or line == BEGIN
        return is_own


class TokenError(UserError):
    """The cluster does not let us in."""


class ForgottenError(UserError):
    """The cluster has lost what was submitted to it."""


class _TakenError(Exception):
    """An id was used before."""


class _Tail:
    """A log that is read from its start again after every interruption; the driver's words are passed on once."""

    def __init__(self, say: Print, until: str | None) -> None:
        self._say, self._until = say, until
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
        """What came after the last word that was passed on."""
        self.begin()
        self.take(whole)
        if self._line:
            self._pass_on(self._line)
            self._line = ""

    def _pass_on(self, line: str) -> None:
        if self._is_own(line) and not self.is_over:
            self._say(line)
            self.is_over = self._until is not None and self._until in line


def _submission(job: JobDetails) -> Submission | None:
    """A job as a sweep's; None where it is something else."""
    facts: dict[str, Any] = job.metadata or {}
    if "oneshot.sweep" not in facts or job.submission_id is None:
        return None
    return Submission(
        id=job.submission_id,
        sweep=facts["oneshot.sweep"],
        attempt=int(facts["oneshot.attempt"]),
        storage=facts["oneshot.storage"],
        status=str(job.status.value),
        started_ms=int(job.start_time or 0),
        message=job.message or "",
        exit_code=job.driver_exit_code,
    )


def _entrypoint(arguments: Sequence[str]) -> str:
    return f"echo '{BEGIN}'; exec python -m oneshot {shlex.join(arguments)}"


def _last_line(text: str) -> str:
    """Of a server's traceback, what it was about."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return re.sub(r"\s+", " ", lines[-1]) if lines else "no reason was given"


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    return re.sub(r"\s+", " ", line)
