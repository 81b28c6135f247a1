"""Settle on one GPU what a CPU cannot show: `python bench/gpu.py`, or `--cpu` for the same parts at tiny sizes.

Each part (gpu_parts.py) runs in a process of its own with a deadline, because an error on a GPU breaks the whole
process. Its checks are written to a JSON file of `--out` as soon as it ends, and one table comes last. A part without a
GPU's figures says what it ran, so that a missing import is found before the day when a GPU is there.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpu_parts import COMPARISONS, DEADLINES_S, PARTS, Sizes

Check = dict[str, Any]


def run_part(name: str, *, folder: Path, is_cpu: bool) -> list[Check]:
    """Run a part in its own process; return its checks, and a failed one if it did not end well."""
    deadline_s = DEADLINES_S[name] * (5 if is_cpu else 1)  # a busy CPU is slow, and what runs there is no measurement
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder), *(["--cpu"] if is_cpu else [])]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, text=True, start_new_session=True)
        failure = ""
        try:
            if process.wait(timeout=deadline_s) != 0:
                failure = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            failure = f"not done after {deadline_s} s"
        if failure:
            with_children = os.getpgid(process.pid) if process.poll() is None else None
            if with_children is not None:
                os.killpg(with_children, signal.SIGKILL)
                process.wait()
        out.seek(0)
        err.seek(0)
        checks = [json.loads(line) for line in out if line.startswith('{"check"')]  # libraries print, too
        if failure:
            lines = [line.strip() for line in err if line.strip()]
            print("".join(f"    {line}\n" for line in lines[-12:]), file=sys.stderr)
            checks.append(check("the part ends", "yes", f"{failure}: {lines[-1] if lines else ''}"[:200], is_ok=False))
    return checks


def check(name: str, expected: str, measured: str, *, is_ok: bool | None) -> Check:
    """Return one line of the table; `is_ok` is None for a figure without a bar."""
    return {"check": name, "expected": expected, "measured": measured, "ok": is_ok}


def work(name: str, *, folder: Path, is_cpu: bool) -> None:
    """Run a part in this process and print each check as soon as it is known."""
    for row in (PARTS | COMPARISONS)[name](Sizes(is_cpu=is_cpu, folder=folder)):
        print(json.dumps(check(row.name, row.expected, row.measured, is_ok=row.is_ok)), flush=True)


def table(results: dict[str, list[Check]]) -> str:
    """Return all checks as text."""
    verdicts = {True: "ok", False: "FAILED", None: "-"}
    rows = [("part", "check", "expected", "measured", "verdict")]
    rows += [
        (part, row["check"], row["expected"], row["measured"], verdicts[row["ok"]])
        for part, checks in results.items()
        for row in checks
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    """Run all parts, or with `--part` one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run at tiny sizes on the CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"parts to run; default: {','.join(PARTS)}")
    parser.add_argument("--compare", choices=COMPARISONS, help="also time a step of this package, if it is installed")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")), help="folder for results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        work(args.part, folder=args.folder, is_cpu=args.cpu)
        return
    parts = args.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"--parts: unknown: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if args.compare and importlib.util.find_spec(args.compare) is None:
        sys.exit(f"--compare {args.compare}: it is not installed here; run `pip install {args.compare}`")
    parts += [args.compare] if args.compare else []
    args.out.mkdir(parents=True, exist_ok=True)
    # in memory where possible: the model of the speed parts has 3 GB
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="oneshot-gpu-", dir=shared if shared.is_dir() else None))
    results: dict[str, list[Check]] = {}
    try:
        for name in dict.fromkeys(("model", *parts)):
            start_s = time.perf_counter()
            results[name] = run_part(name, folder=folder, is_cpu=args.cpu)
            seconds = time.perf_counter() - start_s
            (args.out / f"{name}.json").write_text(json.dumps({"seconds": seconds, "checks": results[name]}, indent=1))
            print(f"{seconds:6.1f} s  {name}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        text = table(results)
        (args.out / "table.txt").write_text(text + "\n")
        print(text)
    if any(row["ok"] is False for checks in results.values() for row in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
