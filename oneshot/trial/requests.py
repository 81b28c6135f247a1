"""What people and early stopping say about a sweep -> files in its folder, which its driver reads.

requests/<time>-<id>.json   stop, retry: written by the command line, removed by the driver when it has heeded them
stops.json                  which trials are stopped, and why: written by the driver alone
"""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from oneshot.plan.plan import Trial
from oneshot.store.store import Folder, now_ms

Verb = Literal["stop", "retry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One thing that somebody asked of a driver."""

    verb: Verb
    cell: dict[str, str] = field(default_factory=dict)
    """Of which trials; empty: of all."""
    now: bool = False
    """stop: without a checkpoint."""


def send_request(folder: Folder, request: Request) -> None:
    """Leaves a request for the sweep's driver."""
    folder.write_json(f"requests/{now_ms():014d}-{uuid.uuid4().hex[:6]}.json", asdict(request))


def pop_requests(folder: Folder) -> list[Request]:
    """Takes the requests that are there, in order."""
    found = []
    for name in folder.list("requests"):
        fields = folder.read_json(f"requests/{name}")
        if fields is not None:
            found.append(Request(**fields))
        folder.remove(f"requests/{name}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """Trials that are not to go on."""

    early: dict[str, str] = field(default_factory=dict)
    """Key of a search trial -> why early stopping ended it."""
    cells: tuple[dict[str, str], ...] = ()
    """Cells that somebody stopped."""

    def reason(self, trial: Trial) -> str | None:
        """Why a trial is stopped; None where it is not. What ended a search trial ends no trial of the grid."""
        if trial.phase == "search" and trial.key in self.early:
            return self.early[trial.key]
        return "stopped by hand" if any(covers(cell, trial) for cell in self.cells) else None


def covers(cell: Mapping[str, str], trial: Trial) -> bool:
    """Whether a trial is of a cell, of which some axes are named; `seed` and `phase` count as axes."""
    facts = facts_of(trial)
    return all(facts.get(axis) == name for axis, name in cell.items())


def facts_of(trial: Trial) -> dict[str, str]:
    """What `--cell` may say of a trial."""
    return {"seed": str(trial.seed), "phase": trial.phase, **trial.cell}


def read_stops(folder: Folder) -> Stops:
    """Which trials of a sweep are stopped."""
    fields = folder.read_json("stops.json") or {}
    return Stops(early=fields.get("early", {}), cells=tuple(fields.get("cells", ())))


def write_stops(folder: Folder, stops: Stops) -> None:
    """Keeps which trials are stopped."""
    folder.write_json("stops.json", {"early": stops.early, "cells": list(stops.cells)})
