"""Run a sweep of many scripted trials on this machine, and measure what grows with their number.

    python bench/scale.py [--num-trials 1000 3000 10000] [--folder DIR]

All goes through the command line, as a person runs it: `run` on an embedded Ray, `plan`, `status`, `report`, `gc`,
`run` over a half-finished store, and `run` over all that is finished. Trials do nothing, so all that is measured is the
orchestrator.

Bars at the largest number: seconds a trial at most 1.15 times those of the smallest number; the driver below 700 MiB,
growing by less than 20 MiB per 1,000 trials; `run` over all finished below 15 s; `report` below 30 s.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from orchestration import cells_text

SEEDS = 10
LOOK_S = 1.0
MIB = 2**20
ENDED = re.compile(r"\[(\d+) of \d+ ended")


def sweep_text(num_trials: int) -> str:
    """Return a sweep file of scripted trials of one step: many cells and ten seeds."""
    return f"""version: 1
name: scale
question: What does a trial cost that does nothing?
trial:
  script: {{metrics: 4, bowl: {{optim.lr: 1e-6}}, noise: 0.1}}
  train.num_steps: 1
  checkpoint.keep: none
axes:
  cell:
{cells_text(num_trials // SEEDS)}
seeds: {{planned: {SEEDS}}}
storage: runs
"""


@dataclass(slots=True, kw_only=True)
class Commanded:
    """One command: its seconds and memory, and for `run` how both developed."""

    seconds: float
    peak_mib: float
    lines: int
    output: str = field(repr=False)
    progress: list[tuple[float, int, float]] = field(default_factory=list, repr=False)  # seconds, trials, MiB


def command(folder: Path, *arguments: str, until_ended: int | None = None) -> Commanded:
    """Run `oneshot` in a folder; with `until_ended`, interrupt it after so many trials."""
    environment = {**os.environ, "HOME": str(folder), "ONESHOT_LOG": ""}
    log = folder / "output.txt"
    start_s = time.monotonic()
    progress, peak, is_stopped = [], 0.0, False
    with tempfile.TemporaryDirectory(prefix="ob", dir="/tmp") as scratch, log.open("w") as file:
        environment["RAY_TMPDIR"] = scratch  # Ray's sockets need a short path
        process = subprocess.Popen(
            [sys.executable, "-m", "oneshot", *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(LOOK_S if arguments[0] == "run" else 0.05)
            try:
                mib = driver.memory_info().rss / MIB
            except psutil.NoSuchProcess:
                break
            peak = max(peak, mib)
            if arguments[0] != "run" or not mib:  # a process that has just ended has no memory
                continue
            ended = num_ended(log)
            progress.append((time.monotonic() - start_s, ended, mib))
            if until_ended is not None and ended >= until_ended and not is_stopped:
                is_stopped = True
                process.terminate()
        process.wait()
    progress = until_last(progress)
    output = log.read_text()
    if process.returncode and not is_stopped:
        raise SystemExit(f"oneshot {' '.join(arguments)}: exit code {process.returncode}\n{output[-3000:]}")
    return Commanded(
        seconds=time.monotonic() - start_s, peak_mib=peak, lines=output.count("\n"), output=output, progress=progress
    )


def until_last(progress: list[tuple[float, int, float]]) -> list[tuple[float, int, float]]:
    """Return the looks up to the first one that saw the last trial end."""
    last = max((ended for _, ended, _ in progress), default=0)
    number = next((place for place, (_, ended, _) in enumerate(progress) if ended == last), -1)
    return progress[: number + 1]


def num_ended(log: Path) -> int:
    """Return how many trials have ended, as the driver's last lines say."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        counts = ENDED.findall(file.read().decode(errors="replace"))
    return int(counts[-1]) if counts else 0


def rate(progress: list[tuple[float, int, float]], first: float, last: float) -> float:
    """Return the seconds a trial between two shares of all trials."""
    total = progress[-1][1]
    part = [(at_s, ended) for at_s, ended, _ in progress if first * total <= ended <= last * total and ended]
    return (part[-1][0] - part[0][0]) / max(1, part[-1][1] - part[0][1])


def memory_slope(progress: list[tuple[float, int, float]]) -> float:
    """Return the growth of the driver's memory in MiB per 1,000 trials, from the first tenth on."""
    (_, begin, low), (_, end, high) = next(each for each in progress if each[1] >= progress[-1][1] / 10), progress[-1]
    return (high - low) / max(1, end - begin) * 1000


def measure(num_trials: int, folder: Path) -> dict[str, Any]:
    """Run everything on one number of trials."""
    file = folder / "scale.yaml"
    file.write_text(sweep_text(num_trials))
    found: dict[str, Any] = {"trials": num_trials}

    def take(name: str, *arguments: str, until_ended: int | None = None) -> Commanded:
        done = command(folder, *arguments, until_ended=until_ended)
        found[name] = {key: round(value, 2) for key, value in asdict(done).items() if isinstance(value, float)}
        found[name]["lines"] = done.lines
        print(
            f"{num_trials:6} {name:20} {done.seconds:8.1f} s {done.peak_mib:6.0f} MiB {done.lines:6} lines", flush=True
        )
        return done

    take("plan", "plan", "scale.yaml")
    half = take("run: first half", "run", "scale.yaml", until_ended=num_trials // 2)
    rest = take("run: second half", "run", "scale.yaml")
    first_s = next((at_s for at_s, ended, _ in rest.progress if ended), 0.0)
    found["restart_s"] = round(first_s, 1)
    found["s_per_trial"] = {
        "first half": round(rate(half.progress, 0.2, 1.0), 4),
        "second half": round(rate(rest.progress, 0.2, 1.0), 4),
        "last tenth": round(rate(rest.progress, 0.8, 1.0), 4),
    }
    found["mib_per_1000"] = round(memory_slope(half.progress), 1)
    # until the process has ended: MLflow, the summary and the report
    found["after_last_trial_s"] = round(rest.seconds - rest.progress[-1][0], 1)
    runs = folder / "runs"
    files = [path for path in (runs / "trials").rglob("*") if path.is_file()]
    found["files"] = round(len(files) / num_trials, 2)
    found["kib"] = round(sum(path.stat().st_size for path in files) / 1024 / num_trials, 2)
    found["mlflow_kib"] = round((runs / "mlflow.db").stat().st_size / 1024 / num_trials, 2)
    found["mlflow_rows"] = round(rows_of(runs / "mlflow.db") / num_trials, 1)
    take("run: all finished", "run", "scale.yaml")
    take("status", "status", "scale")
    take("report", "report", "scale")
    take("gc", "gc")
    found["page_mib"] = round((runs / "sweeps" / "scale" / "report" / "report.html").stat().st_size / MIB, 2)
    return found


def rows_of(database: Path) -> int:
    """Return the number of rows in MLflow's tables."""
    connection = sqlite3.connect(database)
    try:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in names)
    finally:
        connection.close()


def main() -> None:
    """Measure each number of trials; print the ratios to the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-trials", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--folder", type=Path, help="keep stores and results here")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in ("ray", "mlflow", "oneshot-lab")), flush=True)
    results = []
    for number in arguments.num_trials:
        folder = arguments.folder / str(number) if arguments.folder else Path(tempfile.mkdtemp(prefix="scale"))
        folder.mkdir(parents=True, exist_ok=True)
        results.append(measure(number, folder))
        print(json.dumps(results[-1], indent=1), flush=True)
        if arguments.folder is None:
            shutil.rmtree(folder)
    small, large = results[0], results[-1]
    ratios = {
        "1.15 / growth of s a trial": 1.15 * small["s_per_trial"]["second half"] / large["s_per_trial"]["last tenth"],
        "700 MiB / driver": 700 / large["run: second half"]["peak_mib"],
        "20 MiB / growth per 1,000": 20 / max(0.1, large["mib_per_1000"]),
        "15 s / run over all finished": 15 / large["run: all finished"]["seconds"],
        "30 s / report": 30 / large["report"]["seconds"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(f"{min(ratios.values()):.2f}")


if __name__ == "__main__":
    main()
