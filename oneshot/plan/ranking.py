"""Axis cells with `from_rank` -> their examples, ranked by the history of a finished sweep or of a file.

The sweep's folder records the ranked examples with scores and a digest when the sweep first runs. Later changes of the
history do not change the sweep.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from oneshot.config.file import SweepFile
from oneshot.config.paths import Where
from oneshot.config.ranking import FromRankConfig
from oneshot.errors import UserError
from oneshot.plan.pinned import Chosen, PinnedSweep
from oneshot.plan.rank_rules import History, check_rule, choose, rank, ranking_digest, read_history, set_order
from oneshot.store.folder import Folder
from oneshot.store.store import Store

FILE = "rankings.json"


def frozen_rankings(sweep: SweepFile, folder: Folder) -> PinnedSweep:
    """Return the sweep with the examples that were chosen when it first ran.

    Raises UserError: the `from_rank` of a cell has changed since then.
    """
    recorded = folder.read_json(FILE) or {}
    rankings = {}
    for where, name, wanted in _wanted(sweep):
        frozen = recorded.get("/".join(name))
        if frozen is None:
            continue
        if frozen["from_rank"] != wanted.model_dump(mode="json"):
            why = "the ranking was edited after the sweep began; undo the edit, or give the sweep a new name"
            raise sweep.source.error(where, why)
        rankings[name] = {end: Chosen(**ranked) for end, ranked in frozen["chosen"].items()}
    return replace(PinnedSweep.of(sweep), rankings=rankings)


def known_rankings(sweep: SweepFile, store: Store) -> tuple[PinnedSweep, dict[str, Any]]:
    """Return the sweep with every ranking that is recorded or can be made now, and the new ones to be recorded."""
    frozen = frozen_rankings(sweep, store.sweep(sweep.config.name))
    made, rankings = {}, dict(frozen.rankings)
    for where, name, wanted in _wanted(sweep):
        if name in rankings:
            continue
        low, high = wanted.band
        try:
            check_rule(wanted.by)
        except UserError as error:
            raise sweep.source.error((*where, "by"), str(error)) from error
        try:
            histories = _histories(wanted, store)
            if not histories:
                continue
            entropies = first_entropies(store, wanted.history, by=wanted.by)
            ranked = rank(histories, by=wanted.by, seed=wanted.seed, band=(low, high), entropies=entropies)
            chosen = choose(ranked, top=wanted.top, bottom=wanted.bottom, random_=wanted.random, seed=wanted.seed)
        except UserError as error:
            raise sweep.source.error(where, str(error)) from error
        rankings[name] = {end: Chosen(example=each.example, score=each.score) for end, each in chosen.items()}
        made["/".join(name)] = {
            "from_rank": wanted.model_dump(mode="json"),
            "digest": ranking_digest(ranked),
            "chosen": {end: asdict(each) for end, each in rankings[name].items()},
        }
    return replace(frozen, rankings=rankings), made


def pin_rankings(sweep: SweepFile, store: Store) -> PinnedSweep:
    """Return the sweep with all its rankings, and record the new ones in its folder.

    Raises UserError: a history is missing; says what to run first.
    """
    ranked, made = known_rankings(sweep, store)
    for where, name, wanted in _wanted(sweep):
        if name not in ranked.rankings:
            path = Path(sweep.source.name).parent / f"{wanted.history}.yaml"
            hint = f"run `oneshot run {path}`" if path.is_file() else "run that sweep"
            same = "" if path.is_file() else ", with the same storage"
            why = f"{store.root} has no finished history of {wanted.history!r}; {hint} first{same}"
            raise sweep.source.error((*where, "history"), why)
    if made:
        folder = store.sweep(sweep.config.name)
        folder.write_json(FILE, {**(folder.read_json(FILE) or {}), **made})
    return ranked


def sweep_histories(
    store: Store, name: str, *, of: Literal["accuracies", "entropies of answers"] = "accuracies"
) -> list[History]:
    """Return the history of each trial of a sweep, or an empty list if some trials have not finished.

    Entropies of answers are recorded at first visits only, in nats.

    Raises UserError: the sweep has several cells, and a history is of one.
    """
    plan = store.sweep(name).read_json("plan.json")
    if plan is None or not plan["trials"]:
        return []
    if any(trial["cell"] != plan["trials"][0]["cell"] for trial in plan["trials"]):
        raise UserError(f"{name}: the sweep has several cells; a history needs one cell that trains on a whole set")
    histories: list[History] = []
    for trial in plan["trials"]:
        folder = store.trial(trial["key"]) if trial["key"] else None
        result = folder.result() if folder is not None else None
        # another sweep may have trained for more steps, which do not belong to this history
        if folder is None or result is None or result.steps_done < trial["num_steps"]:
            return []
        visits: dict[str, list[float]] = {}
        for row in (row for row in folder.rows() if row.step <= trial["num_steps"]):
            for example, value in (row.visits if of == "accuracies" else row.answer_entropies).items():
                visits.setdefault(example, []).append(value)
        histories.append(dict(sorted(visits.items(), key=lambda item: set_order(item[0]))))
    return histories


def first_entropies(store: Store, history: str, *, by: str) -> list[dict[str, float]]:
    """Return each example's entropy of answers at its first visit, for each trial of a sweep.

    The list is empty if the rule does not need them, and for a file of accuracies (`.json`), which has none.
    """
    if by != "answer_entropy" or history.endswith(".json"):
        return []
    histories = sweep_histories(store, history, of="entropies of answers")
    return [{example: values[0] for example, values in entropies.items()} for entropies in histories]


def _histories(wanted: FromRankConfig, store: Store) -> list[History]:
    if wanted.history.endswith(".json"):
        return [read_history(Path(wanted.history).expanduser(), of=wanted.set)]
    return sweep_histories(store, wanted.history)


def _wanted(sweep: SweepFile) -> Iterator[tuple[Where, tuple[str, str], FromRankConfig]]:
    """Yield the place, the axis with the cell's name, and the content of each `from_rank`."""
    for axis, name, cell in sweep.config.named_cells():
        if cell.from_rank is not None:
            yield ("axes", axis, name, "from_rank"), (axis, name), cell.from_rank
