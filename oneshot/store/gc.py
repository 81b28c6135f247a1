"""A store -> what its sweeps hold, and what nobody needs any more."""

import posixpath
from dataclasses import dataclass

from oneshot.store.lease import Watch
from oneshot.store.store import Folder, Store, now_ms

LEFT_MS = 3_600_000
"""A temporary file of so long ago is nobody's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one sweep holds; a training that several sweeps share counts in each."""

    sweep: str
    num_trainings: int
    num_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """One thing that can go."""

    path: str
    why: str
    num_bytes: int


def holdings(store: Store) -> tuple[list[Holding], list[Waste]]:
    """Disk by sweep, and what can go: trainings that no sweep asks for, copies that no pointer names, torn writes."""
    asked = {name: keys_of(store, name) for name in store.sweeps()}
    by_key = {key: _sizes(store, key) for key in store.trainings()}
    found = [
        Holding(
            sweep=name,
            num_trainings=len(keys & by_key.keys()),
            num_bytes=sum(sum(by_key[key].values()) for key in keys & by_key.keys()),
            checkpoint_bytes=sum(
                size for key in keys & by_key.keys() for path, size in by_key[key].items() if "/checkpoint/" in path
            ),
        )
        for name, keys in asked.items()
    ]
    needed = set().union(*asked.values())
    waste, watch = [], Watch()
    for key, sizes in by_key.items():
        folder = store.trial(key)
        if watch.living(folder) is not None:
            continue
        if key not in needed:
            waste.append(Waste(path=folder.path, why="no sweep asks for it", num_bytes=sum(sizes.values())))
        else:
            waste += _leftovers(store, folder, sizes)
    return found, waste


def remove(store: Store, waste: Waste) -> None:
    """Takes it off the disk."""
    parent, name = posixpath.split(waste.path)
    Folder(store.fs, parent).remove(name)


def keys_of(store: Store, sweep: str) -> set[str]:
    """The trainings that a sweep asked for when it was run last."""
    plan = store.sweep(sweep).read_json("plan.json") or {"trials": []}
    return {trial["key"] for trial in plan["trials"] if trial["key"]}


def _sizes(store: Store, key: str) -> dict[str, int]:
    """Bytes of each file of a training."""
    files = store.fs.find(store.trial(key).path, detail=True)
    return {path: int(facts["size"]) for path, facts in files.items()}


def _leftovers(store: Store, folder: Folder, sizes: dict[str, int]) -> list[Waste]:
    """What a kill in the middle of a write leaves."""
    found = []
    said = folder.read_json("checkpoint.json")
    for copy in folder.list("checkpoint"):
        if said is None or copy != said["folder"]:
            path = posixpath.join(folder.path, "checkpoint", copy)
            size = sum(size for file, size in sizes.items() if file.startswith(f"{path}/"))
            found.append(Waste(path=path, why="a checkpoint that was cut short", num_bytes=size))
    for path, size in sizes.items():
        if path.endswith(".tmp") and now_ms() - 1000 * store.fs.modified(path).timestamp() > LEFT_MS:
            found.append(Waste(path=path, why="a write that was cut short", num_bytes=size))
    return found
