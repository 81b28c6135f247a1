"""Run a sweep on many small nodes that come and go, on this machine, and measure how busy their GPUs are.

    python bench/nodes.py [--num-nodes 16] [--num-trials 2000] [--trial-s 5] [--every-s 10]

Each node is a raylet of `ray.cluster_utils` with one simulated GPU. Every few seconds one of them is killed and a new
one is added. Trials are scripted and only wait, so that the machine's cores are left to Ray and the driver.

Utilisation is busy GPU-seconds over offered ones, from the first moment when all nodes have had a trial until the last
trial begins: after that there is less work than nodes. A GPU is offered from its node's start until it is killed, and
busy while an attempt holds it, also one that is lost. Bars: utilisation at least 0.95; each trial finished, each step
recorded once. The last line is utilisation / 0.95.
"""

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
FULL_S = 120.0  # longest wait until every node has a trial


def sweep_text(num_trials: int, trial_s: float) -> str:
    """Return a sweep file of scripted trials of two steps; lost nodes are never the end of a trial."""
    return f"""version: 1
name: nodes
question: How busy are nodes that come and go?
trial:
  script: {{step_s: {trial_s / 2}}}
  train.num_steps: 2
  checkpoint: {{keep: none, every_steps: 1}}
seeds: {{planned: {num_trials}}}
resources: {{gpus: 1, cpus: 0.01}}
faults: {{node_retries: 100, retries: 0}}
storage: runs
"""


Span = tuple[float, float]  # begin and end in seconds since the epoch


class Nodes:
    """The nodes, and from when to when each was there."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
        )
        self.live: list[tuple[Any, float]] = []
        self.gone: dict[str, Span] = {}

    def add(self) -> None:
        """Add a node with one GPU."""
        node = self.cluster.add_node(num_cpus=1, num_gpus=1, include_dashboard=False)
        self.live.append((node, time.time()))

    def kill(self, place: int) -> None:
        """Kill a node."""
        node, since_s = self.live.pop(place)
        self.gone[node.node_id] = (since_s, time.time())
        self.cluster.remove_node(node, allow_graceful=False)

    def spans(self, end_s: float) -> dict[str, Span]:
        """Return from when to when each node was there."""
        return {**self.gone, **{node.node_id: (since_s, end_s) for node, since_s in self.live}}


def attempts_by_node(folder: Path, nodes: Mapping[str, Span], gone: Mapping[str, Span]) -> dict[str, list[Span]]:
    """Return begin and end of every attempt on each node; a lost one ends with its node, which was killed."""
    from oneshot.store.store import Store

    store = Store(str(folder / "runs"))
    found: dict[str, list[Span]] = {node_id: [] for node_id in nodes}
    for key in store.trainings():
        trial = store.trial(key)
        result = trial.result()
        assert result is not None
        for number, attempt in enumerate(trial.attempts(), 1):
            if "node" in attempt:  # it began
                end_s = result.ended_ms / 1000 if number == result.attempt else gone[attempt["node"]][1]
                found[attempt["node"]].append((attempt["started_ms"] / 1000, end_s))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What nodes did in a window, in GPU-seconds."""

    offered_s: float
    busy_s: float
    first_s: float  # from a node's start until its first attempt begins

    def __str__(self) -> str:
        idle_s = self.offered_s - self.busy_s
        return (
            f"utilisation {self.busy_s / self.offered_s:.3f}; idle {self.first_s / self.offered_s:.3f} until a node's "
            f"first trial, {(idle_s - self.first_s) / self.offered_s:.3f} later"
        )


def use(nodes: Mapping[str, Span], attempts: Mapping[str, list[Span]], window: Span) -> Use:
    """Return what nodes did in a window."""

    def inside(span: Span) -> float:
        return max(0.0, min(span[1], window[1]) - max(span[0], window[0]))

    first_s = sum(
        inside((since_s, min([until_s, *(begin for begin, _ in attempts[node])])))
        for node, (since_s, until_s) in nodes.items()
    )
    busy_s = sum(inside(span) for spans in attempts.values() for span in spans)
    return Use(offered_s=sum(map(inside, nodes.values())), busy_s=busy_s, first_s=first_s)


def check(folder: Path, num_trials: int) -> int:
    """Check that every trial finished with each step once; return the number of attempts that were lost."""
    from oneshot.store.store import Store

    store = Store(str(folder / "runs"))
    keys = store.trainings()
    assert len(keys) == num_trials, len(keys)
    num_lost = 0
    for key in keys:
        trial = store.trial(key)
        result = trial.result()
        assert result is not None and result.outcome == "finished", key
        assert [row.step for row in trial.rows()] == [1, 2], key
        num_lost += trial.last_attempt() - 1
    return num_lost


def measure(num_nodes: int, num_trials: int, trial_s: float, every_s: float, folder: Path) -> float:
    """Run the sweep; print what was measured, and return the utilisation."""
    (folder / "nodes.yaml").write_text(sweep_text(num_trials, trial_s))
    nodes = Nodes()
    for _ in range(num_nodes):
        nodes.add()
    print(f"{num_nodes} nodes are up: {memory_gib():.1f} GiB", flush=True)
    draw = random.Random(0)
    command = [sys.executable, "-m", "oneshot", "run", "nodes.yaml", "--address", nodes.cluster.address, "--no-check"]
    with (folder / "output.txt").open("w") as output:
        driver = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        begin_s, start_s = None, time.time()
        changed_s, peak, most_gib = time.time(), 0.0, 0.0
        while driver.poll() is None:
            time.sleep(0.5)
            most_gib = max(most_gib, memory_gib())
            if begin_s is None:
                num_begun = len(list((folder / "runs" / "trials").glob("*")))
                if num_begun >= num_nodes or time.time() - start_s > FULL_S:
                    begin_s = changed_s = time.time()
                continue
            peak = max(peak, psutil.Process(driver.pid).memory_info().rss / 2**20)
            if time.time() - changed_s > every_s:
                changed_s = time.time()
                nodes.kill(draw.randrange(len(nodes.live)))
                nodes.add()
    assert driver.returncode == 0, (folder / "output.txt").read_text()[-3000:]
    assert begin_s is not None, "the sweep began"
    num_lost = check(folder, num_trials)
    spans = nodes.spans(time.time())
    attempts = attempts_by_node(folder, spans, nodes.gone)
    end_s = max(begin for each in attempts.values() for begin, _ in each)
    used = use(spans, attempts, (begin_s, end_s))
    print(
        f"{num_trials} trials of {trial_s:g} s in {time.time() - start_s:.0f} s: {len(nodes.gone)} nodes killed, "
        f"{num_lost} attempts lost, nothing lost or doubled; driver {peak:.0f} MiB, the machine "
        f"{most_gib:.1f} GiB; over {end_s - begin_s:.0f} s {used}",
        flush=True,
    )
    nodes.cluster.shutdown()
    return used.busy_s / used.offered_s


def memory_gib() -> float:
    """Return the memory that this machine uses."""
    return float(psutil.virtual_memory().used / 2**30)


def main() -> None:
    """Measure, and print the ratio to the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-nodes", type=int, default=16)
    parser.add_argument("--num-trials", type=int, default=2000)
    parser.add_argument("--trial-s", type=float, default=5.0)
    parser.add_argument("--every-s", type=float, default=10.0)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ray {version('ray')}")
    with tempfile.TemporaryDirectory(prefix="on", dir="/tmp") as name:
        folder = Path(name)
        os.environ |= {**SETTINGS, "RAY_TMPDIR": name, "HOME": name}
        found = measure(arguments.num_nodes, arguments.num_trials, arguments.trial_s, arguments.every_s, folder)
    print(f"{found / 0.95:.2f}")


if __name__ == "__main__":
    main()
