"""Names -> hosts on this one machine, each with a network, processes and a /tmp of its own; and servers to run there.

A host is a network namespace and, in it, namespaces of mounts, processes and names under an init of their own. All
hosts hang on one switch, a bridge in a namespace of its own, so that nothing is put into the machine's network. What
they share is the file system outside /tmp: it stands in for a cluster's NFS.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
from conftest import PROJECT

T = TypeVar("T")

PREFIX = "os-"
"""Of all that a run leaves if it is killed: the next one removes it."""
SWITCH = f"{PREFIX}switch"
SUBNET = "10.77.0"
LOCK = Path("/run/lock/oneshot-hosts")
SHARED = Path("/var/tmp")
"""Where folders that all hosts see are made; each has a /tmp of its own."""
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
WAIT_S = 120.0
"""For what takes seconds, on a machine that is busy with other things."""
_CLONE_NEWNET = 0x40000000

KEPT = sorted({str(path) for path in (PROJECT, Path(sys.prefix)) if path.is_relative_to("/tmp")})
"""What hosts need of the machine's own /tmp: a checkout, or its environment."""
_INIT = """
set -e
hostname "$1"
kept=$(dirname "$2")/kept-$1
for at in "${@:3}"; do mkdir -p "$kept$at"; mount --bind "$at" "$kept$at"; done
mount -t tmpfs tmpfs /tmp
for at in "${@:3}"; do mkdir -p "$at"; mount --bind "$kept$at" "$at"; done
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mkdir /tmp/home
touch /tmp/up
sleep infinity &
while :; do wait; done
"""
"""Bash, which buries orphans: `hosts` knows all names, and nobody is asked for others."""


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if importlib.util.find_spec("flask_wtf") is None:
        return "Flask-WTF is not installed (mlflow[auth])"
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv", "runuser") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: iproute2, util-linux)"
    if POSTGRES is None:
        return "PostgreSQL's server is not installed (Debian: postgresql)"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def until(there: Callable[[], T], why: Callable[[], str] | str, *, timeout_s: float = WAIT_S) -> T:
    """Waits for something to be the case, and gives it."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := there()):
        assert time.monotonic() < deadline_s, why if isinstance(why, str) else why()
        time.sleep(0.1)
    return found


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


class Process:
    """What was started in a host."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen, self.log = popen, log

    @property
    def stdout(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def stderr(self) -> str:
        return self.log.with_suffix(".err").read_text()

    @property
    def text(self) -> str:
        """All that it said."""
        return f"{self.stdout}{self.stderr}"

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._popen.poll()

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Its exit code."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.log.name} has not ended: {self.text[-3000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal: nsenter stands between."""
        for child in psutil.Process(self._popen.pid).children():
            child.send_signal(number)


class Host:
    """One host, from its start until its power is cut, and on."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address = name, address
        self._folder = folder
        self._netns = f"{PREFIX}{name}"
        _ip("netns", "add", self._netns)
        _ip("-n", SWITCH, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", self._netns)
        _ip("-n", SWITCH, "link", "set", name, "master", "br0", "up")
        _ip("-n", self._netns, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", self._netns, "link", "set", link, "up")
        self._doors: list[subprocess.Popen[bytes]] = []
        """Of what was started in it: they stand outside, stop where what is inside stops, and bury it."""
        self.boot()

    def boot(self) -> None:
        """Starts its init, with an empty /tmp."""
        enter = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._netns]  # it goes when the tests do
        spaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        init = ["bash", "-c", _INIT, "init", self.name, str(self._folder / "hosts"), *KEPT]
        self._unshare = subprocess.Popen([*enter, *spaces, *init], start_new_session=True)
        own = psutil.Process(self._unshare.pid)
        self._init: int = until(lambda: [child.pid for child in own.children()], f"{self.name} does not start")[0]
        until(self.path("/tmp/up").exists, f"{self.name} does not come up")
        self.fix()

    def path(self, inside: str) -> Path:
        """A path of the host, as it is seen from outside."""
        return Path(f"/proc/{self._init}/root{inside}")

    def _enter(self, arguments: Sequence[str]) -> list[str]:
        spaces = ["nsenter", "--target", str(self._init), "--mount", "--uts", "--net", "--pid"]
        return [*spaces, f"--wdns={self._folder}", "--", *arguments]

    def _environment(self, env: Mapping[str, str]) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        return {**kept, "PATH": path, "HOME": "/tmp/home", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **env}

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = WAIT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs something to its end, in the shared folder."""
        return subprocess.run(
            self._enter(arguments),
            env=self._environment(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,
        )

    def start(self, name: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts something in the shared folder; what it says goes to files `name` of it."""
        log = self._folder / "logs" / f"{self.name}-{name}"
        log.parent.mkdir(exist_ok=True)
        with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
            popen = subprocess.Popen(
                self._enter(arguments),
                env=self._environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._doors.append(popen)
        return Process(popen, log)

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function of this process in a thread that has the host's network."""

        def inside() -> T:
            with open(f"/run/netns/{self._netns}") as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return function()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inside).result()

    def answers(self, port: int) -> bool:
        """Whether something listens there."""

        def connect() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((self.address, port), timeout=1):
                return True
            return False

        return self.call(connect)

    def processes(self) -> list[psutil.Process]:
        """All of the host's, its init first."""
        space = os.readlink(f"/proc/{self._init}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == space:
                    found.append(process)
        return found

    def cut(self) -> None:
        """Pulls its cable out of the switch: packets are lost, nobody is told."""
        _ip("-n", SWITCH, "link", "set", self.name, "down")

    def fix(self) -> None:
        """Puts the cable back."""
        _ip("-n", SWITCH, "link", "set", self.name, "up")

    def freeze(self) -> None:
        """Stops every process where it is, as one that waits for a hard NFS mount."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Lets every process go on."""
        for door in self._doors:
            door.send_signal(signal.SIGCONT)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def kill(self) -> None:
        """Cuts its power: first the cable, for a kernel says goodbye for its processes."""
        self.cut()
        for one in (self._unshare, *self._doors):  # unshare takes the init with it, and the init all others
            one.kill()
            one.wait()
        self._doors.clear()
        until(lambda: not _ip("netns", "pids", self._netns).split(), f"{self.name} does not end")


class Network:
    """A switch and its hosts, by name, and the folder that they share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        _ip("netns", "add", SWITCH)
        _ip("-n", SWITCH, "link", "add", "br0", "type", "bridge")
        _ip("-n", SWITCH, "link", "set", "br0", "up")
        (folder / "hosts").write_text("127.0.0.1 localhost\n")

    def add(self, name: str, *aliases: str) -> Host:
        """Starts a host, which all others know by its name and aliases."""
        address = f"{SUBNET}.{len(self.hosts) + 1}"
        with open(self.folder / "hosts", "a") as hosts:
            hosts.write(f"{address} {' '.join([name, *aliases])}\n")
        self.hosts[name] = Host(name, address, self.folder)
        return self.hosts[name]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network, until it is no longer needed; one at a time on a machine."""
    with open(LOCK, "w") as lock:
        until(lambda: _locked(lock.fileno()), "another run of these tests has the network", timeout_s=600)
        _clear()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHARED))
        folder.chmod(0o755)  # PostgreSQL's server runs as another user
        try:
            yield Network(folder)
        finally:
            _clear()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clear() -> None:
    """Removes every host and folder, ours or those of a run that was killed."""
    names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(PREFIX)]
    for name in names:
        for pid in _ip("netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for name in names:
        until(lambda name=name: not _ip("netns", "pids", name).split(), f"processes of {name} do not end")
        _ip("netns", "del", name)
    for folder in SHARED.glob(f"{PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


# --- what runs there ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What nobody may read anywhere."""

    token: str
    """Ray's."""
    user: str
    password: str
    """A user of MLflow."""
    admin: str
    """The password of MLflow's administrator."""
    database: str
    """PostgreSQL's."""

    @property
    def ray(self) -> dict[str, str]:
        """For every process that is Ray's or speaks to it."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}

    @property
    def mlflow(self) -> dict[str, str]:
        """For every process that speaks to MLflow."""
        return {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}


def start_postgres(host: Host, folder: Path, *, password: str, databases: Sequence[str]) -> Process:
    """A PostgreSQL with empty databases, which asks for a password."""
    assert POSTGRES is not None
    home, secret = folder / "postgres", folder / "password"
    home.mkdir()
    shutil.chown(home, "postgres", "postgres")
    secret.touch(0o600)
    secret.write_text(password)
    shutil.chown(secret, "postgres", "postgres")
    as_user = ["runuser", "-u", "postgres", "--"]
    by_password = ["--username=oneshot", f"--pwfile={secret}", "--auth=scram-sha-256"]
    made = host.run(*as_user, f"{POSTGRES}/initdb", "--no-sync", f"--pgdata={home}", *by_password)
    assert made.returncode == 0, made.stderr
    secret.unlink()
    with open(home / "pg_hba.conf", "a") as rules:
        rules.write(f"host all all {SUBNET}.0/24 scram-sha-256\n")
    settings = ("-c", f"listen_addresses={host.address}", "-c", "unix_socket_directories=/tmp", "-c", "fsync=off")
    server = host.start("postgres", *as_user, f"{POSTGRES}/postgres", "-D", str(home), *settings)
    until(lambda: server.code is not None or host.answers(5432), lambda: server.text)
    for name in databases:
        login = [f"--host={host.address}", "--username=oneshot"]
        made = host.run(f"{POSTGRES}/createdb", *login, name, env={"PGPASSWORD": password})
        assert made.returncode == 0, f"{made.stderr}{server.text}"
    return server


def start_mlflow(host: Host, folder: Path, secrets: Secrets, *, port: int = 5000) -> Process:
    """An MLflow server with users, whose runs and users are in the PostgreSQL of its host."""
    database = f"postgresql+psycopg2://oneshot:{secrets.database}@{host.address}:5432"
    settings = folder / "auth.ini"
    settings.touch(0o600)
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/users\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # else each of a run's hundred requests hashes the password again
    )
    env = {
        "MLFLOW_BACKEND_STORE_URI": f"{database}/runs",  # not on a command line: it has a password in it
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    hosts = ",".join(f"{name},{name}:*" for name in (host.address, host.name))
    arguments = ["--app-name", "basic-auth", "--host", "0.0.0.0", "--port", str(port), "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "mlartifacts"), "--allowed-hosts", hosts]
    return host.start("mlflow", sys.executable, "-m", "mlflow", "server", *arguments, *artifacts, env=env)


RAY = str(Path(sys.executable).parent / "ray")
LEAN = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
"""No worker that nobody has asked for: each takes seconds to start."""
HASTY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that does not answer is dead after ten seconds, not after a minute."""
_STORE = ("--object-store-memory", "80000000")


def start_head(host: Host, env: Mapping[str, str]) -> Process:
    """A Ray cluster's head, where nothing but drivers runs; its port is 6379, its dashboard's 8265."""
    address = ("--node-ip-address", host.address, "--dashboard-host", host.address)
    start = (RAY, "start", "--head", "--block", "--num-cpus", "0", "--port", "6379", *address, *_STORE)
    return host.start("ray", *start, env={**LEAN, **HASTY, **env})


def start_worker(host: Host, head: Host, env: Mapping[str, str]) -> Process:
    """A node with two processors and two GPUs that it says it has; it joins again whenever it was put out."""
    resources = ("--num-cpus", "2", "--num-gpus", "2", *_STORE)
    join = (RAY, "start", "--address", f"{head.address}:6379", "--node-ip-address", host.address, "--block", *resources)
    again = 'while :; do "$@"; echo "ended: $?"; sleep 1; done'
    return host.start("ray", "bash", "-c", again, "supervisor", *join, env={**LEAN, **env})
