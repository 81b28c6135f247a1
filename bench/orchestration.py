"""Measure the orchestrator's overhead: trials that do nothing, with oneshot and with plain Ray Tune, in one run.

    python bench/orchestration.py [--num-few 50] [--num-many 200]

The peer is `tune.Tuner` over a function that reports the same number of metrics, with `MLflowLoggerCallback` into
sqlite, with fresh workers (Tune's default) and with `reuse_actors=True`. Ours are scripted trials on the path of
`oneshot run`, with leases, store and MLflow. Each part runs in a process of its own with a local Ray; `ray.init` is not
counted.

Bars: a trial takes at most a fifth of the time with fresh workers, and no longer than with reused ones. The seconds per
trial grow by less than 1.2 times within the many trials. A plan of 10,000 trials takes 5 s. With 9,999 of them
finished, the first suggestion comes 10 s after process start. The last line is the smallest of (fresh/ours)/5,
reuse/ours, 1.2/growth, 5 s/plan, 10 s/restart.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

NUM_PLANNED = 10_000
NUM_METRICS = 5
SEEDS = 5


def cells_text(num_cells: int) -> str:
    """Return the cells of an axis, each with a learning rate of its own."""
    rates = (f"{(number + 1) * 1e-7:.8f}" for number in range(num_cells))
    return "\n".join(f"    c{number}: {{set: {{optim.lr: {rate}}}}}" for number, rate in enumerate(rates))


def sweep_text(num_trials: int, storage: str) -> str:
    """Return a sweep file of scripted trials of one step, with many cells and a few seeds."""
    seeds = min(SEEDS, num_trials)
    return f"""version: 1
name: bench
question: What does a trial cost that does nothing?
trial:
  script: {{metrics: {NUM_METRICS - 1}}}
  train.num_steps: 1
  checkpoint.keep: none
axes:
  cell:
{cells_text(num_trials // seeds)}
seeds: {list(range(seeds))}
storage: {storage}
"""


def ours(num_trials: int, folder: Path) -> dict[str, Any]:
    """Measure the seconds from an initialised Ray to a complete MLflow."""
    from oneshot.config.file import read
    from oneshot.plan.plan import make_plan
    from oneshot.store.store import Store
    from oneshot.sweep.cluster import tuner
    from oneshot.sweep.cluster.nodes import joined

    sweep = read(sweep_text(num_trials, str(folder / "runs")), name="bench")
    plan, store = make_plan(sweep), Store(sweep.config.storage)
    ended: list[float] = []

    def listen(event: Any) -> None:
        if event.kind == "ended":
            ended.append(time.perf_counter())

    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(None))
        stack.enter_context(mock.patch.object(tuner, "joined", return_value=contextlib.nullcontext()))
        return _timed(sweep, plan, store, num_trials, listen, ended)


def _timed(sweep: Any, plan: Any, store: Any, num_trials: int, listen: Any, ended: list[float]) -> dict[str, Any]:
    """Run the sweep on the running Ray, and measure."""
    from oneshot.plan.pinned import PinnedSweep
    from oneshot.plan.sweep_run import SweepRun
    from oneshot.sweep.cluster import tuner
    from oneshot.sweep.run import run

    calls = count_mlflow_calls()
    start_s = time.perf_counter()

    def launch(agenda: Any, tracking: Any) -> bool:
        return tuner.run_on_ray(
            agenda,
            tracking,
            store=store,
            address=None,
            max_concurrent=None,
            listen=lambda event: None,
            check=False,
            reach=lambda: "",
        )

    summary, _ = run(SweepRun.of(PinnedSweep.of(sweep), plan, store), launch=launch, listen=listen)
    seconds = time.perf_counter() - start_s
    assert summary.finished == num_trials, summary
    assert not summary.tracking_error, summary
    return {"seconds": seconds, "ended": [at_s - start_s for at_s in ended], "calls": sum(calls.values()), **memory()}


def peer(num_trials: int, folder: Path, *, reuse: bool) -> dict[str, Any]:
    """Measure the same number of trials and metrics with plain Tune and its MLflow callback."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def trial(config: dict[str, Any]) -> None:
        tune.report({f"m{number}": config["lr"] for number in range(NUM_METRICS)})

    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=os.cpu_count())
    calls = count_mlflow_calls()
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"lr": tune.grid_search([(number + 1) * 1e-7 for number in range(num_trials)])},
        tune_config=tune.TuneConfig(reuse_actors=reuse),
        run_config=tune.RunConfig(
            name="bench",
            storage_path=str(folder / "results"),
            verbose=0,
            callbacks=[MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="bench")],
        ),
    )
    start_s = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - start_s
    assert len(results) == num_trials
    ray.shutdown()
    return {"seconds": seconds, "calls": sum(calls.values()), **memory()}


def load(folder: Path) -> dict[str, Any]:
    """Run 8 trials at a time with 20 metrics per second each; measure the steps' delay and MLflow's lag."""
    from oneshot.config.file import read
    from oneshot.plan.pinned import PinnedSweep
    from oneshot.plan.plan import make_plan
    from oneshot.plan.sweep_run import SweepRun
    from oneshot.store.store import Store
    from oneshot.sweep.cluster import tuner
    from oneshot.sweep.run import run

    text = sweep_text(8, str(folder / "runs")).replace(f"{{metrics: {NUM_METRICS - 1}}}", "{step_s: 1.0, metrics: 18}")
    text = text.replace("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5, 6, 7]").replace(
        "num_steps: 1", "num_steps: 60"
    )
    sweep = read(text + "resources: {cpus: 0.25}\n", name="bench")
    made, store = make_plan(sweep), Store(sweep.config.storage)
    ended: list[float] = []

    def launch(agenda: Any, tracking: Any) -> bool:
        quiet: Any = lambda event: None  # noqa: E731
        done = tuner.run_on_ray(
            agenda, tracking, store=store, address=None, max_concurrent=8, listen=quiet, check=False, reach=lambda: ""
        )
        ended.append(time.perf_counter())
        return done

    summary, _ = run(SweepRun.of(PinnedSweep.of(sweep), made, store), launch=launch, listen=lambda event: None)
    lag_s = time.perf_counter() - ended[0]
    assert summary.finished == 8, summary
    rows = [store.trial(trial.key).rows() for trial in made.trials if trial.key]
    late = sorted((b.time_ms - a.time_ms) / 1000 - 1 for trial_rows in rows for a, b in pairwise(trial_rows))
    return {"median_late_s": late[len(late) // 2], "max_late_s": late[-1], "lag_s": lag_s}


def plan(folder: Path) -> dict[str, Any]:
    """Measure the seconds from a sweep file of 10,000 trials to its plan."""
    from oneshot.config.file import load
    from oneshot.plan.plan import make_plan

    file = folder / "big.yaml"
    file.write_text(sweep_text(NUM_PLANNED, str(folder / "runs")))
    start_s = time.perf_counter()
    made = make_plan(load(file))
    assert len(made.trials) == NUM_PLANNED
    return {"seconds": time.perf_counter() - start_s}


def finish_most(folder: Path) -> dict[str, Any]:
    """Write a store in which all trials but one are finished."""
    from oneshot.config.file import load
    from oneshot.plan.plan import make_plan
    from oneshot.store.records import Row
    from oneshot.store.store import Store

    file = folder / "big.yaml"
    file.write_text(sweep_text(NUM_PLANNED, str(folder / "runs")))
    sweep = load(file)
    made, store = make_plan(sweep), Store(sweep.config.storage)
    for trial in made.trials[:-1]:
        assert trial.key is not None
        record = store.trial(trial.key)
        record.write_json("attempts/1.json", {"sweep": "bench", "started_ms": 0, "gpu": "", "env_digest": ""})
        record.write_segment(1, [Row(step=1, time_ms=1, metrics={"script/chain": 1.0})])
        record.end_attempt(1, "finished")
    store.sweep("bench").write("sweep.yaml", sweep.source.text)
    return {}


def restart(folder: Path) -> dict[str, Any]:
    """Measure the seconds from process start to the first suggestion, on the command line's path, without Ray."""
    from oneshot.cli.options import load_sweep
    from oneshot.plan.edits import check_edits
    from oneshot.plan.loader import pin_all
    from oneshot.store.store import Store
    from oneshot.sweep.run import run

    sweep = load_sweep(folder / "big.yaml", None)
    store = Store(sweep.config.storage)
    planned = pin_all(sweep, store)
    check_edits(planned)

    def launch(agenda: Any, tracking: Any) -> bool:
        from oneshot.sweep.cluster import tuner

        assert tuner.run_on_ray
        assignment = agenda.next()
        seconds = time.time() - psutil.Process().create_time()
        assert assignment.training.key == planned.plan.trials[-1].key
        print(json.dumps({"seconds": seconds, **memory()}), flush=True)
        os._exit(0)

    run(planned, launch=launch, listen=lambda event: None)
    raise AssertionError("nothing was suggested")


def count_mlflow_calls() -> Counter[str]:
    """Count the calls of MLflow's store from now on."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    calls: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return call(*args, **kwargs)

        return wrapper

    for name in dir(SqlAlchemyStore):
        if name.startswith(("log_", "set_", "create_", "update_", "get_", "search_", "delete_", "record_")):
            setattr(SqlAlchemyStore, name, counted(name, getattr(SqlAlchemyStore, name)))
    return calls


def memory() -> dict[str, float]:
    """Return the driver's peak memory."""
    return {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def part(name: str, *arguments: str, folder: Path) -> dict[str, Any]:
    """Run one part in a process of its own, with its own home and Ray."""
    environment = {**os.environ, "HOME": str(folder), "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as scratch:
        environment["RAY_TMPDIR"] = scratch  # Ray's sockets need a short path
        command = [sys.executable, __file__, "--part", name, str(folder), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {' '.join(arguments)}:\n{done.stderr[-3000:]}")
    last: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return last


def run_part(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run one part in this process."""
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "ours": lambda: ours(int(arguments[0]), folder),
        "fresh": lambda: peer(int(arguments[0]), folder, reuse=False),
        "reuse": lambda: peer(int(arguments[0]), folder, reuse=True),
        "load": lambda: load(folder),
        "plan": lambda: plan(folder),
        "finish": lambda: finish_most(folder),
        "restart": lambda: restart(folder),
    }
    return parts[name]()


def measure_trials(few: int, many: int) -> dict[str, float]:
    """Measure and print the seconds per trial of each side; return the ratios."""
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for name, num_trials in (("ours", few), ("reuse", few), ("fresh", few), ("ours", many), ("reuse", many)):
        with tempfile.TemporaryDirectory() as folder:
            result = results[name, num_trials] = part(name, str(num_trials), folder=Path(folder))
        print(
            f"{name:6} {num_trials:4} trials: {result['seconds'] / num_trials:.3f} s a trial, driver "
            f"{result['peak_mib']:.0f} MiB, {result['calls'] / num_trials:.1f} MLflow calls a trial",
            flush=True,
        )
    ended = results["ours", many]["ended"]
    half = few // 2
    early = (ended[half + few] - ended[half]) / few
    late = (ended[-1] - ended[-1 - few]) / few
    growth = late / early
    print(f"ours: {early:.3f} s a trial after the first {half}, {late:.3f} s over the last {few}: growth {growth:.2f}")
    our_s = results["ours", few]["seconds"] / few
    return {
        "(fresh/ours)/5": results["fresh", few]["seconds"] / few / our_s / 5,
        f"reuse/ours at {few}": results["reuse", few]["seconds"] / few / our_s,
        f"reuse/ours at {many}": results["reuse", many]["seconds"] / results["ours", many]["seconds"],
        "1.2/growth": 1.2 / growth,
    }


def measure_load() -> None:
    """Measure and print how late steps are under load, and how far behind MLflow is."""
    with tempfile.TemporaryDirectory() as name:
        loaded = part("load", folder=Path(name))
    print(
        f"8 trials at a time, 20 metrics a second each, 60 s: steps late by {loaded['median_late_s'] * 1000:.0f} ms "
        f"(median), {loaded['max_late_s'] * 1000:.0f} ms (most); MLflow complete {loaded['lag_s']:.1f} s after it",
        flush=True,
    )


def measure_restart() -> dict[str, float]:
    """Measure and print planning and restarting a large sweep; return the ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan_s = part("plan", folder=folder)["seconds"]
        print(f"plan of {NUM_PLANNED:,} trials: {plan_s:.2f} s", flush=True)
        part("finish", folder=folder)
        restarted = part("restart", folder=folder)
    print(
        f"restart over {NUM_PLANNED - 1:,} finished trials: first suggestion {restarted['seconds']:.2f} s after "
        f"process start, driver {restarted['peak_mib']:.0f} MiB"
    )
    return {"5 s/plan": 5 / plan_s, "10 s/restart": 10 / restarted["seconds"]}


def main() -> None:
    """Run all parts one after the other, or the one that `--part` names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-few", type=int, default=50)
    parser.add_argument("--num-many", type=int, default=200)
    parser.add_argument("--part", nargs="+")
    options = parser.parse_args()
    if options.part:
        name, folder, *arguments = options.part
        print(json.dumps(run_part(name, Path(folder), *arguments)))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("ray", "mlflow", "oneshot"))
    )
    ratios = measure_trials(options.num_few, options.num_many)
    measure_load()
    ratios |= measure_restart()
    for name, value in ratios.items():
        print(f"{name:20} {value:.2f}")
    print(f"ratio: {min(ratios.values()):.2f}")


if __name__ == "__main__":
    main()
