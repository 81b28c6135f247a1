"""`oneshot submit` to a Ray head on this machine, through Ray Jobs with a token, and MLflow over HTTP with passwords.

What a laptop does is done in processes of its own, with a HOME of its own; several hosts are in test_hosts.py.
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from drivers import end
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from scripted import Lab, nothing_lost, runs_of, steps_of, sweep_text

from oneshot.config.file import load
from oneshot.store.lease import holder
from oneshot.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.ray]

T = TypeVar("T")
PROJECT = Path(__file__).parent.parent
WAIT_S = 240.0
"""Servers take up to a minute to start on a machine that is busy."""


def until(there: Callable[[], T], why: str) -> T:
    deadline_s = time.monotonic() + WAIT_S
    while not (found := there()):
        assert time.monotonic() < deadline_s, why
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A head, a tracking server, and what they ask for."""

    folder: Path
    port: int
    mlflow_port: int
    token: str
    password: str

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "runs"))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow)

    def oneshot(self, *arguments: str, code: int = 0, timeout_s: float = WAIT_S) -> str:
        """What a laptop's command says on stdout; it knows the token, and no password of MLflow's."""
        known = ("PATH", "LANG", "TMPDIR")
        env = {name: os.environ[name] for name in known if name in os.environ}
        env |= {"HOME": str(self.folder / "laptop"), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        done = subprocess.run(
            [sys.executable, "-m", "oneshot", *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def submit(self, file: str, *arguments: str) -> str:
        chosen = ["--address", self.address, "--storage", self.store.path, "--mlflow", self.mlflow]
        return self.oneshot("submit", file, *chosen, *arguments)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A server and all that it has started."""
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    pytest.importorskip("flask_wtf", reason="MLflow's basic auth needs Flask-WTF (mlflow[auth])")
    folder = Path(tempfile.mkdtemp(prefix="os", dir="/tmp"))
    for name in ("head", "laptop", "mlflow"):
        (folder / name).mkdir()
    made = Site(
        folder=folder,
        port=free_port(),
        mlflow_port=free_port(),
        token=secrets.token_hex(20),
        password=secrets.token_hex(12),
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += [_start_mlflow(made), _start_head(made)]
        until(lambda: _answers(f"{made.mlflow}/health"), "MLflow does not start")
        until(lambda: _listens(made.port), "Ray's dashboard does not start")
        before = dict(os.environ)
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": made.password}
        yield made
        os.environ.clear()
        os.environ |= before
    finally:
        for process in started:
            end(family(process))
        shutil.rmtree(folder, ignore_errors=True)


def _start_mlflow(site: Site) -> subprocess.Popen[bytes]:
    folder = site.folder / "mlflow"
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\nadmin_username = admin\n"
        f"admin_password = {site.password}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": site.password,
    }
    env["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(16)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    command += ["--host", "127.0.0.1", "--port", str(site.mlflow_port)]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)


def _start_head(site: Site) -> subprocess.Popen[bytes]:
    """As a person does: the secrets are in its environment."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(site.folder / "head"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": site.token,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": site.password,
        "PLANTED_WEBHOOK": f"http://127.0.0.1:9/{site.password}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
    }
    command = ["ray", "start", "--head", "--block", "--num-cpus", "2", "--num-gpus", "2", "--port", str(free_port())]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(site.port)]
    command += ["--temp-dir", str(site.folder / "r"), "--disable-usage-stats"]
    # the agent that takes jobs has a fixed port otherwise, which any other Ray of this machine may have
    command += ["--dashboard-agent-listen-port", str(free_port())]
    with open(site.folder / "head" / "log", "wb") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=site.folder)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def lab_of(site: Site) -> Lab:
    return Lab(folder=site.folder)


# --- a sweep, from afar ---

LONG = {"script": "step_s: 0.4", "trial": "  train.num_steps: 70\n", "seeds": "[0, 1, 2]"}


def test_a_submitted_sweep_is_watched_stopped_and_resumed_from_the_laptop(site: Site) -> None:
    site_lab = lab_of(site)
    site_lab.write(sweep_text(name="far", rest="resources: {gpus: 1}\n", **LONG), "far.yaml")
    assert site.submit("far.yaml") == "far-1\n"
    assert "far is already running as far-1" in site.oneshot(
        "submit", "far.yaml", "--address", site.address, "--storage", site.store.path, code=2
    )
    folders = list(site_lab.trainings("far").values())
    until(lambda: sum(len(folder.rows()) >= 3 for folder in folders) == 2, "two trials do not begin")
    told = json.loads(site.oneshot("status", "far", "--address", site.address, "--json"))
    assert (told["counts"]["running"], told["counts"]["pending"]) == (2, 1)
    gauges = until(lambda: _gauges(site) if _gauges(site).get("running") else None, "no gauge shows a running trial")
    assert (gauges["running"], gauges["pending"], gauges["finished"]) == (2, 1, 0)

    site.oneshot("stop", "far.yaml", "--address", site.address)
    until(lambda: "STOPPED" in site.oneshot("status", "--address", site.address), "the driver does not end")
    assert sum(folder.read("checkpoint.json") is not None for folder in folders) >= 2
    assert "far-1: Job was intentionally stopped." in _stderr_of_logs(site, "far")

    said = site.submit("far.yaml", "--follow")
    assert said.startswith("far-2\n")
    assert "3 finished, 0 failed, 0 missing" in said
    assert "preflight: passed" not in said  # it was shown while the cluster was checked
    nothing_lost(site_lab, "far", client=site.client)
    made = [sorted(step for steps in steps_of(folder).values() for step in steps) for folder in folders]
    assert made == [list(range(1, 71))] * 3, "an interrupt leaves a checkpoint of the last whole step"


def _stderr_of_logs(site: Site, name: str) -> str:
    return site.oneshot("logs", name, "--address", site.address, "--follow", code=130)


def _gauges(site: Site) -> dict[str, float]:
    """State -> trials of the sweep `far`, as Prometheus reads them."""
    found = {}
    for target in json.loads((site.folder / "r" / "prom_metrics_service_discovery.json").read_text())[0]["targets"]:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as response:
                text = response.read().decode()
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("ray_oneshot_trials{") and 'sweep="far"' in line:
                state = re.search(r'state="(\w+)"', line)
                assert state is not None
                found[state.group(1)] = float(line.rpartition(" ")[2])
    return found


def test_a_cell_is_stopped_from_afar(site: Site) -> None:
    axes = "  pace: {slow: {set: {script: {step_s: 0.41}}}, quick: {set: {script: {step_s: 0.4}}}}\n"
    text = sweep_text(name="cut", trial="  train.num_steps: 40\n", axes=axes)
    lab_of(site).write(text, "cut.yaml")
    site.submit("cut.yaml")
    assert "sent to" in site.oneshot("stop", "cut", "--cell", "pace=slow", "--address", site.address)
    told = site.oneshot("logs", "cut", "--address", site.address, "--follow", code=0)
    assert "1 finished, 0 failed, 1 stopped, 0 missing" in told


def test_data_files_beside_the_sweep_go_along(site: Site) -> None:
    (site.folder / "own").mkdir()
    shutil.copy(PROJECT / "tests" / "cases" / "two.jsonl", site.folder / "own")
    text = "version: 1\nname: own\nquestion: Does it find its data?\ntrial:\n  model.path: tiny:qwen2\n"
    text += "  prompt: {template: plain, train_suffix: ''}\n  train.num_steps: 0\n  rollout.max_tokens: 4\n"
    text += "  eval: {suites: {two: {source: own/two.jsonl}}}\nseeds: [0]\n"
    (site.folder / "own.yaml").write_text(text)
    assert "1 finished, 0 failed, 0 missing" in site.submit("own.yaml", "--follow")


# --- what is refused before a trial begins ---

BAD = """\
version: 1
name: bad
question: Is it refused?
trial: {model.path: MODEL, examples: ["arithmetic:47+38"], train.num_steps: 1, rollout.max_tokens: 8}
seeds: [0]
resources: {gpus: 8}
"""


def test_a_preflight_tells_of_everything_at_once_and_nothing_begins(site: Site) -> None:
    (site.folder / "bad.yaml").write_text(BAD.replace("MODEL", "/nowhere/model"))
    wrong = ["--address", site.address, "--storage", site.store.path, "--mlflow", "http://127.0.0.1:9"]
    said = site.oneshot("submit", "bad.yaml", *wrong, code=2)
    assert "oneshot: can only be planned on the cluster: bad.yaml:4: trial.model.path" in said
    assert "oneshot: bad.yaml:4: trial.model.path: model.path: /nowhere/model: no such folder" in said  # nor there
    (site.folder / "bad.yaml").write_text(BAD.replace("MODEL", "tiny:qwen2"))
    for said in (
        site.oneshot("submit", "bad.yaml", *wrong, code=2),
        site.oneshot("doctor", "bad.yaml", *wrong, code=2),
    ):
        assert "trial seed 0 needs 1 CPU, 8 GPU on one node; the largest node has 2 CPU, 2 GPU" in said
        assert "http://127.0.0.1:9 does not answer" in said
    assert all(site.store.trial(key).attempt(1).get("sweep") != "bad" for key in site.store.trainings())


def test_mlflows_refusals_are_explained(site: Site) -> None:
    from oneshot.sweep.tracking.server import why_not

    assert why_not(site.mlflow) == ""
    kept = os.environ["MLFLOW_TRACKING_PASSWORD"]
    os.environ["MLFLOW_TRACKING_PASSWORD"] = "another"
    try:
        assert "rejects the user name and password, or their absence; set MLFLOW_TRACKING_USERNAME" in why_not(
            site.mlflow
        )
        with pytest.raises(MlflowException):
            site.client.search_experiments()
    finally:
        os.environ["MLFLOW_TRACKING_PASSWORD"] = kept


# --- the shipped quickstart, with real models ---


def test_the_quickstart_runs_through_jobs_and_no_secret_is_anywhere(site: Site) -> None:
    """Its own file and cells, with one seed and 4 of the 32 steps; test_quickstart.py runs all of it."""
    text = (PROJECT / "sweeps" / "quickstart.yaml").read_text()
    (site.folder / "quickstart.yaml").write_text(text.replace("seeds: [0, 1, 2]", "seeds: [0]"))
    lines: list[str] = []
    short = ["--set", "train.num_steps=4", "--set", "eval.every_steps=4"]
    site.submit("quickstart.yaml", *short)
    driver = site.store.sweep("quickstart")
    while holder(driver) is not None:
        lines += _command_lines()
        time.sleep(0.5)
    logs = ("logs", "quickstart", "--address", site.address)
    until(lambda: "report: " in site.oneshot(*logs), "the driver makes no report")
    said = site.oneshot(*logs)
    assert "6 finished, 0 failed, 0 missing" in said
    assert "holds on both models" in said
    assert "holds on both models" in site.oneshot("report", "quickstart", "--address", site.address)
    runs = runs_of(site.client, "quickstart")
    assert len(runs) == 7
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["attempt"] for run in runs if run.data.tags["phase"] == "grid"} == {"1"}
    commits = {run.data.tags.get("mlflow.source.git.commit") for run in runs}
    assert None not in commits or not (PROJECT / ".git").exists()
    name = load(PROJECT / "sweeps" / "quickstart.yaml").config.name
    _no_secret(site, lines, [str(run.to_dictionary()) for run in runs], name)


def _command_lines() -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        found.append(" ".join(process.info["cmdline"] or []))
    return found


def _no_secret(site: Site, command_lines: list[str], runs: list[str], name: str) -> None:
    """Neither MLflow's password nor the cluster's token."""
    places = {
        "command lines": command_lines,
        "MLflow": runs,
        "the store": _texts(site.folder / "runs"),
        "MLflow's artifacts": _texts(site.folder / "mlflow" / "artifacts"),
        "Ray's logs": _texts(site.folder / "r"),
        "the driver's log": [site.oneshot("logs", name, "--address", site.address)],
        "Jobs": [_jobs(site)],
    }
    assert len(places["the store"]) > 6
    assert len(places["Ray's logs"]) > 10
    assert "quickstart-1" in places["Jobs"][0]
    for place, texts in places.items():
        for what, secret in (("password", site.password), ("token", site.token)):
            assert not any(secret in text for text in texts), f"{what} in {place}"


def _texts(folder: Path) -> list[str]:
    return [path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file()]


def _jobs(site: Site) -> str:
    request = urllib.request.Request(f"{site.address}/api/jobs/", headers={"Authorization": f"Bearer {site.token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())


def test_without_the_token_nothing_is_told(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{site.address}/api/jobs/", timeout=10)
    assert refused.value.code == 401
    other = Site(folder=site.folder, port=site.port, mlflow_port=1, token="wrong" * 8, password="")
    said = other.oneshot("status", "--address", site.address, code=2)
    assert "the cluster requires a token, or rejects this one" in said
    assert "RAY_AUTH_MODE=token" in said
    assert said.count("\n") == 1


def heeding() -> None:
    """Undoes what a shell does to programs in the background: there Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupting_what_follows_leaves_the_sweep_alone(site: Site) -> None:
    lab_of(site).write(sweep_text(name="alone", script="step_s: 0.5", trial="  train.num_steps: 16\n"), "alone.yaml")
    site.submit("alone.yaml")
    env = {**os.environ, "HOME": str(site.folder / "laptop"), "RAY_AUTH_TOKEN": site.token}
    command = [sys.executable, "-m", "oneshot", "logs", "alone", "--address", site.address, "--follow"]
    following = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    assert following.stdout is not None
    following.stdout.readline()
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=30)
    assert following.returncode == 130
    assert "alone-1 keeps running; to stop it, use `oneshot stop alone" in said
    assert "1 finished" in site.oneshot("logs", "alone", "--address", site.address, "--follow")
    nothing_lost(lab_of(site), "alone", client=site.client)
