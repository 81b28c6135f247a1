"""Requests to a sweep's driver, and its stopped trials <-> files in the sweep's folder.

requests/<time>-<id>.json   stop, retry: written by the command line, removed by the driver when it reads them
stops.json                  which trials are stopped, and why: written only by the driver
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from oneshot.plan.trial import Trial
from oneshot.store.folder import Folder, now_ms

DECIDED = "decided at look"
"""How the reason begins of a seed that is not run because a planned look decided the claims."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A user's request to a driver."""

    verb: Literal["stop", "retry"]
    cell: dict[str, str] = field(default_factory=dict)  # axes and names that select trials; empty: all trials
    now: bool = False  # for stop: kill without a checkpoint


def send_request(folder: Folder, request: Request) -> None:
    """Write a request for the sweep's driver."""
    folder.write_json(f"requests/{now_ms():014d}-{uuid.uuid4().hex[:6]}.json", asdict(request))


def pop_requests(folder: Folder) -> list[Request]:
    """Read and remove the requests, in order."""
    names = folder.list("requests")
    requests = _read_requests(folder, names)
    for name in names:
        folder.remove(f"requests/{name}")
    return requests


def _read_requests(folder: Folder, names: Sequence[str]) -> list[Request]:
    records = (folder.read_json(f"requests/{name}") for name in names)
    return [Request(**fields) for fields in records if fields is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """Trials that must not run."""

    early: dict[str, str] = field(default_factory=dict)  # key of a search trial -> why early stopping stopped it
    cells: tuple[dict[str, str], ...] = ()  # cells that a user stopped
    seeds: dict[str, str] = field(default_factory=dict)  # seed of the grid -> why the claims do not need it

    def reason(self, trial: Trial) -> str | None:
        """Return why a trial is stopped, or None. Early stopping of a search trial stops no trial of the grid."""
        if trial.phase == "grid" and str(trial.seed) in self.seeds:
            return self.seeds[str(trial.seed)]
        if trial.phase == "search" and trial.key in self.early:
            return self.early[trial.key]
        return "stopped by hand" if any(covers(cell, trial) for cell in self.cells) else None

    def without(self, cell: Mapping[str, str]) -> "Stops":
        """Return what is still stopped after a retry of a cell, as it was stopped; of all cells if none is named."""
        return replace(self, cells=tuple(stopped for stopped in self.cells if cell and stopped != cell))


def covers(cell: Mapping[str, str], trial: Trial) -> bool:
    """Return whether a trial matches the named axes of a cell; `seed` and `phase` count as axes."""
    axes = axes_of(trial)
    return all(axes.get(axis) == name for axis, name in cell.items())


def axes_of(trial: Trial) -> dict[str, str]:
    """Return the axes that `--cell` can name, with the trial's values."""
    return {"seed": str(trial.seed), "phase": trial.phase, **trial.cell}


def read_stops(folder: Folder) -> Stops:
    """Read which trials of a sweep are stopped."""
    fields = folder.read_json("stops.json") or {}
    early, cells, seeds = fields.get("early", {}), tuple(fields.get("cells", ())), fields.get("seeds", {})
    return Stops(early=early, cells=cells, seeds=seeds)


def requested_stops(folder: Folder) -> Stops:
    """Read which trials are stopped, or will be once the driver reads its requests."""
    stops = read_stops(folder)
    for request in _read_requests(folder, folder.list("requests")):
        if request.verb == "retry":
            stops = stops.without(request.cell)
        elif request.cell:
            stops = replace(stops, cells=(*stops.cells, request.cell))
    return stops


def write_stops(folder: Folder, stops: Stops) -> None:
    """Write which trials of a sweep are stopped."""
    folder.write_json("stops.json", {"early": stops.early, "cells": list(stops.cells), "seeds": stops.seeds})
