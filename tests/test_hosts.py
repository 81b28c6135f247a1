"""A cluster of several hosts: what is spread over them, cut off and put out, is done once; and nothing secret is said.

The hosts are namespaces of this machine (hosts.py): a head, two workers, one with PostgreSQL and MLflow, and a laptop.
"""

import base64
import contextlib
import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hosts import (
    Host,
    Network,
    Process,
    Secrets,
    network,
    start_head,
    start_mlflow,
    start_postgres,
    start_worker,
    until,
    why_not,
)
from mlflow import MlflowClient
from mlflow.entities import Run
from scripted import Lab, nothing_lost, runs_of, steps_of, sweep_text

from oneshot.store.records import Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

SECRETS = Secrets(
    token="planted-ray-token-0123456789abcdef",
    user="lab",
    password="planted-mlflow-password",
    admin="planted-admin-password",
    database="planted-database-password",
)
HOOK = "http://laptop:9000/planted-webhook-token"
ENVIRONMENT = {**SECRETS.ray, **SECRETS.mlflow, "HOOK": HOOK}
"""Of `ray start`, and so of drivers and workers."""
ONESHOT = (sys.executable, "-m", "oneshot")


class Watch:
    """Command lines of all processes, as anyone may read them, for as long as it lasts."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The hosts, what runs there, and the folder that they share."""

    net: Network
    lab: Lab
    head: Host
    workers: tuple[Host, Host]
    tracking: Host
    laptop: Host
    rays: dict[str, Process]
    watch: Watch

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:8265"

    @property
    def mlflow(self) -> str:
        return f"http://{self.tracking.address}:5000"

    def text(self, name: str, **parts: str) -> str:
        """A sweep file of scripted trials with a simulated GPU each."""
        rest = (
            f"resources: {{gpus: 1, cpus: 1, max_concurrent: 4}}\nstorage: {self.lab.folder}/runs\n"
            f"mlflow: {{tracking_uri: '{self.mlflow}'}}\nfaults: {{stall_s: 120}}\n"
        )
        return sweep_text(name=name, rest=parts.pop("rest", "") + rest, **parts)

    def ask(self, path: str) -> Any:
        """What Ray's dashboard answers."""
        request = urllib.request.Request(
            f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {SECRETS.token}"}
        )

        def answer() -> bytes:
            with urllib.request.urlopen(request, timeout=10) as response:
                return bytes(response.read())

        return json.loads(self.head.call(answer))

    def alive(self) -> set[str]:
        """Hosts with a living node."""
        with contextlib.suppress(OSError):
            nodes = self.ask("/nodes?view=summary")["data"]["summary"]
            # of a node that has just joined, the dashboard knows no name yet
            return {node.get("hostname", "") for node in nodes if node["raylet"].get("state") == "ALIVE"}
        return set()

    def check(self, name: str) -> dict[str, Run]:
        """Every training was done once, and MLflow says so."""
        return self.laptop.call(lambda: nothing_lost(self.lab, name, client=MlflowClient(self.mlflow)))

    def submit(self, text: str, name: str) -> "Driver":
        """Has the laptop submit a sweep, which has passed its preflight then."""
        file = self.lab.write(text, f"{name}.yaml")
        said = self.laptop.run(*ONESHOT, "submit", str(file), "--address", self.dashboard, env=SECRETS.ray)
        assert said.returncode == 0, said.stderr
        return Driver(site=self, sweep=name, id=said.stdout.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A sweep's driver on the head."""

    site: Site
    sweep: str
    id: str

    @property
    def said(self) -> str:
        return str(self.site.ask(f"/api/jobs/{self.id}/logs")["logs"])

    @property
    def status(self) -> str:
        return str(self.site.ask(f"/api/jobs/{self.id}")["status"])

    def is_live(self) -> bool:
        return self.status in ("PENDING", "RUNNING")

    def wait(self) -> None:
        """Until all of it is done."""
        until(lambda: not self.is_live(), lambda: self.said[-3000:], timeout_s=240)
        assert self.status == "SUCCEEDED", self.said


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Watch() as watch, network() as net, pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.mlflow.items():
            patch.setenv(name, value)
        tracking = net.add("mlflow", "foreign")
        head, laptop = net.add("head"), net.add("laptop")
        workers = net.add("worker-1"), net.add("worker-2")
        start_postgres(tracking, net.folder, password=SECRETS.database, databases=["runs", "users"])
        server = start_mlflow(tracking, net.folder, SECRETS)
        rays = {"head": start_head(head, ENVIRONMENT)}
        until(lambda: rays["head"].code is not None or head.answers(6379), lambda: rays["head"].text)
        rays |= {worker.name: start_worker(worker, head, ENVIRONMENT) for worker in workers}
        (net.folder / "lab" / "runs").mkdir(parents=True)
        made = Site(
            net=net,
            lab=Lab(folder=net.folder / "lab"),
            head=head,
            workers=workers,
            tracking=tracking,
            laptop=laptop,
            rays=rays,
            watch=watch,
        )
        until(lambda: server.code is not None or _answers(made), lambda: server.text)
        _add_user(made)
        until(lambda: made.alive() >= {"worker-1", "worker-2"}, lambda: "".join(ray.text for ray in rays.values()))
        yield made


def _answers(site: Site) -> bool:
    with contextlib.suppress(OSError):
        return bool(site.laptop.call(lambda: urllib.request.urlopen(f"{site.mlflow}/health", timeout=2).status == 200))
    return False


def _add_user(site: Site) -> None:
    """A user of MLflow who is no administrator."""
    admin = base64.b64encode(f"admin:{SECRETS.admin}".encode()).decode()
    request = urllib.request.Request(
        f"{site.mlflow}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": SECRETS.user, "password": SECRETS.password}).encode(),
        headers={"Authorization": f"Basic {admin}", "Content-Type": "application/json"},
    )
    site.laptop.call(lambda: urllib.request.urlopen(request, timeout=30).close())


# --- what trainings say ---


def hosts_of(folder: TrialFolder) -> list[str]:
    """Where each attempt ran."""
    return [folder.attempt(number).get("host", "?") for number in range(1, folder.last_attempt() + 1)]


def at(site: Site, name: str, host: Host) -> dict[str, TrialFolder]:
    """Trainings that a host is at, and that have made steps since."""
    with contextlib.suppress(Exception):
        found = site.lab.trainings(name)
        return {
            label: folder
            for label, folder in found.items()
            if folder.result() is None and hosts_of(folder)[-1:] == [host.name] and steps_of(folder)
        }
    return {}


def failures(site: Site, name: str) -> dict[str, dict[str, int]]:
    """Trainings that were begun more than once -> what their attempts failed of."""
    found = {label: folder.result() for label, folder in site.lab.trainings(name).items()}
    return {label: result.failures for label, result in found.items() if result is not None and result.failures}


def metrics_of(folder: TrialFolder, attempt: int) -> set[str]:
    return {name for name in folder.list("metrics") if int(name.split("-")[0]) == attempt}


_seeds = count(0, 100)


def seeds(number: int) -> str:
    """Those of no other sweep: they share a store, where a training that is done is not done again."""
    first = next(_seeds)
    return str(list(range(first, first + number)))


# --- the tests ---


@pytest.fixture(scope="module")
def spread(site: Site) -> Driver:
    """A sweep of six trials that is through, and has told so at a webhook where nobody answers."""
    rest = "notify: {webhook_env: HOOK}\n"
    driver = site.submit(site.text("spread", script="step_s: 0.3", seeds=seeds(6), rest=rest), "spread")
    driver.wait()
    return driver


def test_a_sweep_spreads_over_the_hosts_and_all_of_it_is_in_mlflow(site: Site, spread: Driver) -> None:
    assert spread.id == "spread-1"
    assert len(site.check("spread")) == 6
    used = [hosts_of(folder) for folder in site.lab.trainings("spread").values()]
    assert {host for hosts in used for host in hosts} == {"worker-1", "worker-2"}
    assert failures(site, "spread") == {}
    assert "Traceback" not in spread.said


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("cut off", marks=pytest.mark.soak),
        "cut off and frozen",
        pytest.param("without power", marks=pytest.mark.soak),
    ],
)
def test_what_a_lost_host_was_at_is_done_elsewhere(site: Site, how: str) -> None:
    name = how.replace(" ", "-")
    every = "  checkpoint.every_steps: 1\n  train.num_steps: 10\n"
    # enough trials that some are left when the host is back
    driver = site.submit(site.text(name, script="step_s: 1.0", seeds=seeds(14), trial=every), name)
    first, second = site.workers
    until(lambda: len(at(site, name, first)) == 2 and at(site, name, second), lambda: driver.said)
    if how == "without power":
        first.kill()
    else:
        first.cut()
        if how == "cut off and frozen":
            first.freeze()
    lost = at(site, name, first)
    assert len(lost) == 2
    until(lambda: first.name not in site.alive(), "Ray takes the node for dead")
    if how != "without power":  # while it is away, and though it may go on beating
        until(lambda: all(len(hosts_of(folder)) > 1 for folder in lost.values()), "they are taken over")
    if how == "cut off and frozen":
        written = {label: metrics_of(folder, 1) for label, folder in lost.items()}
        first.thaw()
    if how == "without power":
        first.boot()
        site.rays[first.name] = start_worker(first, site.head, ENVIRONMENT)
    first.fix()
    until(lambda: first.name in site.alive(), lambda: site.rays[first.name].text[-2000:])
    begun = {label: len(hosts_of(folder)) for label, folder in site.lab.trainings(name).items()}
    driver.wait()
    site.check(name)
    assert failures(site, name) == {label: {"node": 1} for label in lost}
    later = {host for label, folder in site.lab.trainings(name).items() for host in hosts_of(folder)[begun[label] :]}
    assert first.name in later, "it is used again"
    if how == "cut off and frozen":
        assert written == {label: metrics_of(folder, 1) for label, folder in lost.items()}


GRPO = """\
version: 1
name: grpo
question: Is anything lost?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  examples: ["arithmetic:47+38"]
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  loss: {kl_coef: 0.001, entropy_coef: 0.001}
  optim: {lr: 1e-4, weight_decay: 0.0}
  train.num_steps: 16
  checkpoint.every_steps: 4
  eval.suites: {arithmetic: {num_problems: 4, temperature: 1.0}}
seeds: [0, 1]
resources: {gpus: 2, cpus: 1}
"""
"""A training for each host."""


def test_a_model_that_was_trained_on_two_hosts_is_that_of_one(site: Site) -> None:
    text = f"{GRPO}storage: {site.lab.folder}/runs\nmlflow: {{tracking_uri: '{site.mlflow}'}}\n"
    driver = site.submit(text, "grpo")
    first, _ = site.workers

    def kept() -> dict[str, TrialFolder]:
        found = at(site, "grpo", first)
        return {label: folder for label, folder in found.items() if folder.read_json("checkpoint.json") is not None}

    until(kept, lambda: driver.said)
    first.cut()
    first.freeze()
    ((label, folder),) = at(site, "grpo", first).items()
    until(lambda: first.name not in site.alive(), "Ray takes the node for dead")
    until(lambda: len(hosts_of(folder)) > 1, "it is taken over")
    first.thaw()
    first.fix()
    driver.wait()
    assert failures(site, "grpo") == {label: {"node": 1}}
    assert hosts_of(folder) == ["worker-1", "worker-2"]
    runs = site.laptop.call(lambda: runs_of(MlflowClient(site.mlflow), "grpo"))
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    seed = label.removeprefix("trial seed ")
    alone = ("trial", f"{site.lab.folder}/grpo.yaml", "--seed", seed, "--out", f"{site.lab.folder}/alone")
    said = site.laptop.run(*ONESHOT, *alone)
    assert said.returncode == 0, said.stderr
    rows, expected = folder.rows(), Store(f"{site.lab.folder}/alone").trial(Path(folder.path).name).rows()
    assert [row.step for row in rows] == [row.step for row in expected] == list(range(17))
    assert [measured(row) for row in rows] == [measured(row) for row in expected]


def measured(row: Row) -> dict[str, float]:
    """What a step gave, but for its times and its process."""
    return {name: value for name, value in row.metrics.items() if not name.startswith(("perf/", "system/"))}


def test_a_sweep_runs_on_when_the_laptop_is_cut_off(site: Site) -> None:
    file = site.lab.write(site.text("follow", script="step_s: 0.8", seeds=seeds(6)), "follow.yaml")
    at_head = ("--address", site.dashboard)
    follower = site.laptop.start("follow", *ONESHOT, "submit", str(file), *at_head, "--follow", env=SECRETS.ray)
    until(lambda: follower.code is not None or "trainings to run" in follower.text, lambda: follower.text)
    site.laptop.cut()
    driver = Driver(site=site, sweep="follow", id="follow-1")
    driver.wait()
    assert follower.code is None
    site.laptop.fix()
    site.check("follow")
    said = site.laptop.run(*ONESHOT, "logs", "follow", *at_head, env=SECRETS.ray)
    assert (said.returncode, said.stderr) == (0, "")
    assert "6 finished, 0 failed, 0 missing" in said.stdout
    said = site.laptop.run(*ONESHOT, "status", "follow", *at_head, "--json", env=SECRETS.ray)
    assert said.returncode == 0, said.stderr
    assert follower.wait() == 0, follower.text


def test_a_wrong_token_is_told_in_one_line(site: Site) -> None:
    file = site.lab.write(site.text("token", seeds=seeds(1)), "token.yaml")
    for verb in ("submit", "doctor"):
        for env in ({}, {**SECRETS.ray, "RAY_AUTH_TOKEN": "another"}):
            said = site.laptop.run(*ONESHOT, verb, str(file), "--address", site.dashboard, env=env)
            assert said.returncode == 2, said.stderr
            assert said.stdout == ""
            assert "RAY_AUTH_MODE" in said.stderr
            assert len(said.stderr.splitlines()) == 1, said.stderr
    assert not site.lab.store.sweep("token").list("attempts")


def test_an_mlflow_that_refuses_is_told_before_any_trial_begins(site: Site) -> None:
    text = site.text("refused", seeds=seeds(1))
    file = site.lab.write(text, "refused.yaml")
    foreign = "http://foreign:5000"
    said = site.laptop.run(
        *ONESHOT, "submit", str(file), "--address", site.dashboard, "--mlflow", foreign, env=SECRETS.ray
    )
    assert said.returncode == 2, said.stderr
    assert "--allowed-hosts" in said.stderr
    wrong = {**SECRETS.ray, **SECRETS.mlflow, "MLFLOW_TRACKING_PASSWORD": "another"}
    address = f"{site.head.address}:6379"
    said = site.head.run(*ONESHOT, "run", str(file), "--address", address, "--check", env=wrong)
    assert said.returncode == 2, said.stderr
    assert "MLFLOW_TRACKING_PASSWORD" in said.stderr
    assert [folder.last_attempt() for folder in site.lab.trainings("refused").values()] == [0]


def test_secrets_are_nowhere_to_be_read(site: Site, spread: Driver) -> None:
    runs = site.laptop.call(lambda: runs_of(MlflowClient(site.mlflow), "spread"))
    places = {
        "the store": texts(site.lab.folder),
        "what processes said": texts(site.net.folder / "logs"),
        "MLflow's artifacts": texts(site.net.folder / "mlartifacts"),
        "MLflow's runs": [json.dumps(run.to_dictionary()) for run in runs],
        "Ray's logs": [text for host in (site.head, *site.workers) for text in texts(host.path("/tmp/ray"))],
        "Ray Jobs": [json.dumps(site.ask(path)) for path in ("/api/jobs/", f"/api/jobs/{spread.id}/logs")],
        "command lines": list(site.watch.seen),
    }
    assert [where for where, said in places.items() if not any("spread" in text for text in said)] == []
    found = {
        where: [text[max(0, at - 100) :][:200] for text in said if (at := text.find("planted-")) >= 0]
        for where, said in places.items()
    }
    assert {where: said for where, said in found.items() if said} == {}


def texts(folder: Path) -> list[str]:
    """Every file below a folder."""
    return [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
