"""Requests of people and decisions of early stopping -> files in a sweep's folder, which its driver reads.

requests/<time>-<id>.json   stop or retry: written by the command line, removed by the driver when it has acted on it
stops.json                  which trials are stopped, and why: written by the driver alone
"""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from oneshot.plan.trial import Trial
from oneshot.store.folder import Folder, now_ms

Verb = Literal["stop", "retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to a sweep's driver."""

    verb: Verb
    cell: dict[str, str] = field(default_factory=dict)
    """The cells that it concerns, by axis; empty for all."""
    now: bool = False
    """For stop: kill without a checkpoint."""


def send_request(folder: Folder, request: Request) -> None:
    """Write a request for the sweep's driver."""
    folder.write_json(f"requests/{now_ms():014d}-{uuid.uuid4().hex[:6]}.json", asdict(request))


def pop_requests(folder: Folder) -> list[Request]:
    """Remove the waiting requests and return them in order."""
    requests = []
    for name in folder.list("requests"):
        fields = folder.read_json(f"requests/{name}")
        if fields is not None:
            requests.append(Request(**fields))
        folder.remove(f"requests/{name}")
    return requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """The stopped trials of a sweep."""

    early: dict[str, str] = field(default_factory=dict)
    """Key of a search trial -> why early stopping ended it."""
    cells: tuple[dict[str, str], ...] = ()
    """Cells that a person stopped."""

    def reason(self, trial: Trial) -> str | None:
        """Return why a trial is stopped, or None. Early stopping of a search trial never stops a trial of the grid."""
        if trial.phase == "search" and trial.key in self.early:
            return self.early[trial.key]
        return "stopped by hand" if any(covers(cell, trial) for cell in self.cells) else None


def covers(cell: Mapping[str, str], trial: Trial) -> bool:
    """Return whether a trial matches all of the named axes; `seed` and `phase` count as axes."""
    axes = axes_of(trial)
    return all(axes.get(axis) == name for axis, name in cell.items())


def axes_of(trial: Trial) -> dict[str, str]:
    """Return everything that `--cell` may name of a trial."""
    return {"seed": str(trial.seed), "phase": trial.phase, **trial.cell}


def read_stops(folder: Folder) -> Stops:
    """Read which trials of a sweep are stopped."""
    fields = folder.read_json("stops.json") or {}
    return Stops(early=fields.get("early", {}), cells=tuple(fields.get("cells", ())))


def write_stops(folder: Folder, stops: Stops) -> None:
    """Record which trials are stopped."""
    folder.write_json("stops.json", {"early": stops.early, "cells": list(stops.cells)})
