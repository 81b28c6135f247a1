"""A store -> what each of its sweeps holds, and what no sweep needs."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from oneshot.logs import counted
from oneshot.store.folder import Folder, now_ms
from oneshot.store.lease import Watch
from oneshot.store.store import Store
from oneshot.store.trial_folder import COMPLETIONS, TrialFolder

WEIGHTS = ("checkpoint", "best")  # sub-folders of a training with weights
STARTS = "starts.json"
"""File in a sweep's folder with the trainings of other sweeps that its trials begin from (plan/starts.py)."""
OTHER = "other"
KINDS = {"checkpoints": WEIGHTS, "completions": (COMPLETIONS,), "metrics": ("metrics", "evaluations"), "logs": ("log",)}
"""Kind of data -> the sub-folders of a training that have it; all else is `OTHER`."""
DAY_MS = 86_400_000
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
    names: tuple[str, ...] = ()  # only these files of the folder; none: all of it
    ended_ms: int | None = None  # of waste by age: the end of its training, which may begin again


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long gc keeps what is large of a training that is finished for all its sweeps."""

    checkpoint_days: float | None  # days from its end; None: for ever
    completion_days: float | None
    needed_tables: frozenset[str] = frozenset()  # names of tables of completions that stay, whatever their age


def find_waste(
    store: Store, *, without: str | None = None, retentions: Mapping[str, Retention] = MappingProxyType({})
) -> tuple[list[Holding], list[Waste]]:
    """Return disk space by sweep, and what no sweep needs: orphaned trainings, incomplete checkpoints and writes.

    With `without`, that sweep is waste, too, and so are the trainings that no other sweep has. `retentions` has the
    rules of trainings, by key (report/retention.py), whose old weights and tables are waste, too.
    """
    keys_by_sweep = {name: keys_of(store, name) for name in store.sweeps()}
    sizes_by_key = {key: _sizes(store, key) for key in store.trainings()}
    kinds_by_key = {key: bytes_by_kind(store.trial(key).path, sizes) for key, sizes in sizes_by_key.items()}
    holdings = [_holding(name, keys & kinds_by_key.keys(), kinds_by_key) for name, keys in keys_by_sweep.items()]
    others = [name for name in keys_by_sweep if name != without]
    first_stages = set().union(*(_first_stages(store, name) for name in others))
    needed = first_stages.union(*(keys_by_sweep[name] for name in others))
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
            old = _old(folder, sizes, retentions[key], is_start=key in first_stages) if key in retentions else []
            places = tuple(f"{item.path}/" for item in old if not item.names)
            waste += [*old, *(item for item in _leftovers(store, folder, sizes) if not item.path.startswith(places))]
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


def kinds_of(store: Store, key: str) -> dict[str, int]:
    """Return the bytes of each kind of data in a training's folder."""
    return bytes_by_kind(store.trial(key).path, _sizes(store, key))


def remove_waste(store: Store, waste: Waste) -> None:
    """Remove a file or folder from the store, unless it is waste by age and its training has begun again since."""
    parent, name = posixpath.split(waste.path)
    if waste.ended_ms is not None:
        result = TrialFolder(store.fs, parent).current_result()
        if result is None or result.ended_ms != waste.ended_ms:
            return
    if waste.names:
        for file in waste.names:
            Folder(store.fs, waste.path).remove(file)
    elif name in WEIGHTS:  # with the pointer to them
        Folder(store.fs, parent).remove_folder(name)
    else:
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


def _old(folder: TrialFolder, sizes: Mapping[str, int], rule: Retention, *, is_start: bool) -> list[Waste]:
    """Return the weights and tables of completions that are older than a training's rule allows."""
    result, waste = folder.result(), []
    ended_ms = None if result is None else result.ended_ms
    age_days = 0.0 if ended_ms is None else (now_ms() - ended_ms) / DAY_MS
    ended = f"of a training that ended {age_days:,.0f} days ago"
    if rule.checkpoint_days is not None and age_days > rule.checkpoint_days and not is_start:
        for name in WEIGHTS:
            path = posixpath.join(folder.path, name)
            if size := sum(size for file, size in sizes.items() if file.startswith(f"{path}/")):
                why = f"weights {ended} (keep.checkpoint_days: {rule.checkpoint_days:g})"
                waste.append(Waste(path=path, why=why, num_bytes=size, ended_ms=ended_ms))
    if rule.completion_days is not None and age_days > rule.completion_days:
        path = posixpath.join(folder.path, COMPLETIONS)
        files = {posixpath.basename(file): size for file, size in sizes.items() if file.startswith(f"{path}/")}
        tables = {name: size for name, size in files.items() if not name.endswith(".tmp")}
        old = {name: size for name, size in tables.items() if name.partition(".")[0] not in rule.needed_tables}
        if old:
            why = (
                f"{counted(len(old), 'table')} of completions {ended} (keep.completion_days: {rule.completion_days:g})"
            )
            why += f"; {len(tables) - len(old)} by which claims are judged stay" if len(old) < len(tables) else ""
            waste.append(
                Waste(path=path, why=why, num_bytes=sum(old.values()), names=tuple(sorted(old)), ended_ms=ended_ms)
            )
    return waste


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
