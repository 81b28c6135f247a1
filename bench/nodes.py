"""Run a sweep on many small nodes that come and go, on this machine, and measure how busy their GPUs are.

    python bench/nodes.py [--num-nodes 16] [--num-trials 2000] [--trial-s 5] [--every-s 10]

Each node is a raylet of `ray.cluster_utils` with one simulated GPU. Every few seconds one of them is killed and a new
one is added. Trials are scripted and only wait, so that the machine's cores are left to Ray and the driver.

Utilisation is busy GPU-seconds over offered ones, from the first moment when all nodes have had a trial until the last
trial begins: after that there is less work than nodes. A GPU is busy while an attempt holds it, lost attempts too, and
offered from its node's start until it is killed. Bars: utilisation at least 0.95; each trial finished, each step
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


class Nodes:
    """The nodes, and from when to when each was there."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK}
        )
        self.live: list[tuple[Any, float]] = []
        self.gone: list[tuple[float, float]] = []

    def add(self) -> None:
        """Add a node with one GPU."""
        node = self.cluster.add_node(num_cpus=1, num_gpus=1, include_dashboard=False)
        self.live.append((node, time.time()))

    def kill(self, place: int) -> None:
        """Kill a node."""
        node, since_s = self.live.pop(place)
        self.gone.append((since_s, time.time()))
        self.cluster.remove_node(node, allow_graceful=False)

    def offered_s(self, begin_s: float, end_s: float) -> float:
        """Return the GPU-seconds that nodes offered in a window."""
        spans = [*self.gone, *((since_s, end_s) for _, since_s in self.live)]
        return sum(max(0.0, min(end, end_s) - max(begin, begin_s)) for begin, end in spans)


def spans(folder: Path) -> list[tuple[float, float]]:
    """Return begin and end of every attempt of every trial, in seconds."""
    from oneshot.store.store import Store

    store = Store(str(folder / "runs"))
    found = []
    for key in store.trainings():
        trial = store.trial(key)
        starts_s = [attempt["started_ms"] / 1000 for attempt in trial.attempts() if "started_ms" in attempt]
        found += [(start_s, start_s + held.ms / 1000) for start_s, held in zip(starts_s, trial.held(), strict=True)]
    return found


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
        changed_s, peak = time.time(), 0.0
        while driver.poll() is None:
            time.sleep(0.5)
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
    attempts = spans(folder)
    end_s = max(begin for begin, _ in attempts)
    busy_s = sum(max(0.0, min(end, end_s) - max(begin, begin_s)) for begin, end in attempts)
    utilisation = busy_s / nodes.offered_s(begin_s, end_s)
    cpu_s = sum(psutil.cpu_times()[:3])
    print(
        f"{num_trials} trials of {trial_s:g} s in {time.time() - start_s:.0f} s: {len(nodes.gone)} nodes killed, "
        f"{num_lost} attempts lost, nothing lost or doubled; driver {peak:.0f} MiB; utilisation {utilisation:.3f} "
        f"over {end_s - begin_s:.0f} s; {memory_gib():.1f} GiB in use, {cpu_s:.0f} CPU seconds since boot",
        flush=True,
    )
    nodes.cluster.shutdown()
    return utilisation


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
