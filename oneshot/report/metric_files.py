"""Gathered runs -> files for other tools: CSV or Parquet tables, and TensorBoard's event files."""

from collections.abc import Iterator
from pathlib import Path

from tensorboardX.writer import SummaryWriter

from oneshot.report.frames import cells_frame, metrics_frame, results_frame, verdicts_frame
from oneshot.report.runs import Gathered, Run
from oneshot.report.verdicts import verdicts
from oneshot.tasks.measures import category_key


def write_tables(gathered: Gathered, folder: Path, *, suffix: str) -> list[Path]:
    """Write results, metrics, cells and verdicts as `csv` or `parquet` files, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "results": results_frame(gathered),
        "metrics": metrics_frame(gathered),
        "cells": cells_frame(gathered),
        "verdicts": verdicts_frame(verdicts(gathered)),
    }
    paths = []
    for name, table in tables.items():
        path = folder / f"{name}.{suffix}"
        if suffix == "csv":
            table.to_csv(path, index=False)
        else:
            table.to_parquet(path, index=False)
        paths.append(path)
    return paths


def write_tensorboard(gathered: Gathered, folder: Path) -> list[Path]:
    """Write one folder of event files for each trial that has a step or an evaluation, and return their paths."""
    paths = []
    for run in gathered.runs:
        points = list(_points(run))
        if not points:
            continue
        path = folder / "/".join(map(category_key, run.cell.values())) / f"seed_{run.seed}"
        with SummaryWriter(logdir=str(path)) as writer:
            for name, value, step, time_s in points:
                writer.add_scalar(name, value, step, walltime=time_s)
        paths.append(path)
    return paths


def _points(run: Run) -> Iterator[tuple[str, float, int, float | None]]:
    """Yield name, value, step and time of each number of a trial. An evaluation has the time of its step."""
    times = {row.step: row.time_ms / 1000 for row in run.rows}
    for row in run.rows:
        yield from ((name, value, row.step, times[row.step]) for name, value in row.metrics.items())
    for suite, steps in run.measured.items():
        for step, measures in sorted(steps.items()):
            for name, value in measures.items():
                yield f"eval/{suite}/{name}", value, step, times.get(step)
