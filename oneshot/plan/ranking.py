"""Axis cells with `from_rank` -> the examples that they stand for: from a finished sweep's own history, or from a file.

What a ranking named when a sweep first ran is kept in the sweep's folder, with scores and digest: a later attempt of
the sweep that made the history changes nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from oneshot.config.file import SweepFile
from oneshot.config.sweep import FromRankConfig
from oneshot.errors import UserError
from oneshot.plan.pinned import Chosen, PinnedSweep
from oneshot.plan.rank_rules import History, choose, rank, ranking_digest, read_history, set_order
from oneshot.store.folder import Folder
from oneshot.store.store import Store

FILE = "rankings.json"


def frozen_rankings(sweep: SweepFile, folder: Folder) -> PinnedSweep:
    """The sweep with the examples that were chosen when it first ran.

    Raises:
        UserError: a cell asks for another ranking than then.
    """
    known = folder.read_json(FILE) or {}
    rankings = {}
    for axis, cell, wanted in _wanted(sweep):
        frozen = known.get(f"{axis}/{cell}")
        if frozen is None:
            continue
        if frozen["from_rank"] != wanted.model_dump(mode="json"):
            raise sweep.source.error(
                ("axes", axis, cell, "from_rank"),
                "another ranking than the sweep began with, which froze its examples; give the sweep a new name",
            )
        rankings[axis, cell] = {
            end: Chosen(example=one["example"], score=one["score"]) for end, one in frozen["chosen"].items()
        }
    return replace(PinnedSweep.of(sweep), rankings=rankings)


def known_rankings(sweep: SweepFile, store: Store) -> tuple[PinnedSweep, dict[str, Any]]:
    """The sweep with every ranking that is frozen or can be made now; and what is to be frozen of those made."""
    frozen = frozen_rankings(sweep, store.sweep(sweep.config.name))
    made, rankings = {}, dict(frozen.rankings)
    for axis, cell, wanted in _wanted(sweep):
        if (axis, cell) in rankings:
            continue
        low, high = wanted.band
        try:
            histories = _histories(wanted, store)
            if not histories:
                continue
            ranked = rank(histories, by=wanted.by, seed=wanted.seed, band=(low, high))
            found = choose(ranked, top=wanted.top, bottom=wanted.bottom, random_=wanted.random, seed=wanted.seed)
        except UserError as error:
            raise sweep.source.error(("axes", axis, cell, "from_rank"), str(error)) from error
        rankings[axis, cell] = {end: Chosen(example=one.example, score=one.score) for end, one in found.items()}
        made[f"{axis}/{cell}"] = {
            "from_rank": wanted.model_dump(mode="json"),
            "digest": ranking_digest(ranked),
            "chosen": {end: {"example": one.example, "score": one.score} for end, one in found.items()},
        }
    return replace(frozen, rankings=rankings), made


def pin_rankings(sweep: SweepFile, store: Store) -> PinnedSweep:
    """The sweep with every ranking known, and frozen in its folder.

    Raises:
        UserError: a history is not there yet; says what to run first.
    """
    known, made = known_rankings(sweep, store)
    for axis, cell, wanted in _wanted(sweep):
        if (axis, cell) not in known.rankings:
            near = Path(sweep.source.name).parent / f"{wanted.history}.yaml"
            mend = f"`oneshot run {near}` first" if near.is_file() else "run that sweep first, with the same storage"
            raise sweep.source.error(
                ("axes", axis, cell, "from_rank", "history"),
                f"{store.root} has no finished history of {wanted.history!r}; {mend}",
            )
    if made:
        folder = store.sweep(sweep.config.name)
        folder.write_json(FILE, {**(folder.read_json(FILE) or {}), **made})
    return known


def sweep_histories(store: Store, name: str) -> list[History]:
    """The history of each finished trial of a sweep; none where not all of them have finished.

    Raises:
        UserError: the sweep's trials are of several cells, so that there is no one history.
    """
    plan = store.sweep(name).read_json("plan.json")
    if plan is None or not plan["trials"]:
        return []
    if any(trial["cell"] != plan["trials"][0]["cell"] for trial in plan["trials"]):
        raise UserError(f"{name}: its trials are of several cells; a history is of one, on a whole set")
    histories: list[History] = []
    for trial in plan["trials"]:
        folder = store.trial(trial["key"]) if trial["key"] else None
        result = folder.result() if folder is not None else None
        # another sweep may have trained on: this one's history ends with its own steps
        if folder is None or result is None or result.steps_done < trial["num_steps"]:
            return []
        visits: dict[str, list[float]] = {}
        for row in (row for row in folder.rows() if row.step <= trial["num_steps"]):
            for example, accuracy in row.visits.items():
                visits.setdefault(example, []).append(accuracy)
        histories.append(dict(sorted(visits.items(), key=lambda item: set_order(item[0]))))
    return histories


def _histories(wanted: FromRankConfig, store: Store) -> list[History]:
    if wanted.history.endswith(".json"):
        return [read_history(Path(wanted.history).expanduser(), of=wanted.set)]
    return sweep_histories(store, wanted.history)


def _wanted(sweep: SweepFile) -> Iterator[tuple[str, str, FromRankConfig]]:
    for axis, name, cell in sweep.config.named_cells():
        if cell.from_rank is not None:
            yield axis, name, cell.from_rank
