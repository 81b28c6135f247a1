"""A store -> what each of its sweeps holds, and what no sweep needs."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from oneshot.store.folder import Folder, now_ms
from oneshot.store.lease import Watch
from oneshot.store.store import Store
from oneshot.store.trial_folder import COMPLETIONS

WEIGHTS = ("checkpoint", "best")  # sub-folders of a training with weights
STARTS = "starts.json"
"""File in a sweep's folder with the trainings of other sweeps that its trials begin from (plan/starts.py)."""
OTHER = "other"
KINDS = {"checkpoints": WEIGHTS, "completions": (COMPLETIONS,), "metrics": ("metrics", "evaluations"), "logs": ("log",)}
"""Kind of data -> the sub-folders of a training that have it; all else is `OTHER`."""
LEFT_MS = 3_600_000  # age after which a temporary file is taken for abandoned


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The disk space of one sweep; a training that several sweeps share counts in each."""

    sweep: str
    num_trainings: int
    num_bytes: int
    bytes_by_kind: dict[str, int]  # of `KINDS` and `OTHER`; their sum is `num_bytes`


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """A file or folder that can be removed."""

    path: str
    why: str
    num_bytes: int


def find_waste(store: Store, *, without: str | None = None) -> tuple[list[Holding], list[Waste]]:
    """Return disk space by sweep, and what no sweep needs: orphaned trainings, incomplete checkpoints and writes.

    With `without`, that sweep is waste, too, and so are the trainings that no other sweep has.
    """
    keys_by_sweep = {name: keys_of(store, name) for name in store.sweeps()}
    sizes_by_key = {key: _sizes(store, key) for key in store.trainings()}
    kinds_by_key = {key: bytes_by_kind(store.trial(key).path, sizes) for key, sizes in sizes_by_key.items()}
    holdings = [_holding(name, keys & kinds_by_key.keys(), kinds_by_key) for name, keys in keys_by_sweep.items()]
    others = [name for name in keys_by_sweep if name != without]
    needed = set().union(*(keys_by_sweep[name] | _first_stages(store, name) for name in others))
    waste, watch = [], Watch()
    if without is not None:
        sizes = store.fs.du(store.sweep(without).path, total=True)
        waste.append(Waste(path=store.sweep(without).path, why="the sweep's own records", num_bytes=int(sizes)))
    for key, sizes in sizes_by_key.items():
        folder = store.trial(key)
        if watch.living(folder) is not None:
            continue
        if key not in needed:
            why = "belongs to no other sweep" if without is not None else "belongs to no sweep"
            waste.append(Waste(path=folder.path, why=why, num_bytes=sum(sizes.values())))
        else:
            waste += _leftovers(store, folder, sizes)
    return holdings, waste


def _holding(name: str, keys: set[str], kinds_by_key: dict[str, dict[str, int]]) -> Holding:
    total = {kind: sum(kinds_by_key[key][kind] for key in keys) for kind in (*KINDS, OTHER)}
    return Holding(sweep=name, num_trainings=len(keys), num_bytes=sum(total.values()), bytes_by_kind=total)


def bytes_by_kind(path: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of each kind of data in a training's folder, given the sizes of its files by path."""
    kind_of = {folder: kind for kind, folders in KINDS.items() for folder in folders}
    total = dict.fromkeys((*KINDS, OTHER), 0)
    for file, size in sizes.items():
        folder, slash, _ = file.removeprefix(f"{path}/").partition("/")
        total[kind_of.get(folder, OTHER) if slash else OTHER] += size
    return total


def remove_waste(store: Store, waste: Waste) -> None:
    """Remove a file or folder from the store."""
    parent, name = posixpath.split(waste.path)
    Folder(store.fs, parent).remove(name)


def keys_of(store: Store, sweep: str) -> set[str]:
    """Return the keys of the trainings that a sweep asked for when it last ran."""
    plan = store.sweep(sweep).read_json("plan.json") or {"trials": []}
    return {trial["key"] for trial in plan["trials"] if trial["key"]}


def _first_stages(store: Store, sweep: str) -> set[str]:
    """Return the keys of the trainings of other sweeps whose weights a sweep begins from."""
    recorded = store.sweep(sweep).read_json(STARTS) or []
    return {start.partition("@")[0] for each in recorded for start in each["starts"].values()}


def _sizes(store: Store, key: str) -> dict[str, int]:
    files = store.fs.find(store.trial(key).path, detail=True)
    return {path: int(info["size"]) for path, info in files.items()}


def _leftovers(store: Store, folder: Folder, sizes: dict[str, int]) -> list[Waste]:
    """Return what processes that were killed while writing left behind."""
    waste = []
    for name in WEIGHTS:
        pointer = folder.read_json(f"{name}.json")
        for copy in folder.list(name):
            if pointer is None or copy != pointer["folder"]:
                path = posixpath.join(folder.path, name, copy)
                size = sum(size for file, size in sizes.items() if file.startswith(f"{path}/"))
                waste.append(Waste(path=path, why="an incomplete checkpoint", num_bytes=size))
    for path, size in sizes.items():
        if path.endswith(".tmp") and now_ms() - 1000 * store.fs.modified(path).timestamp() > LEFT_MS:
            waste.append(Waste(path=path, why="an incomplete write", num_bytes=size))
    return waste
