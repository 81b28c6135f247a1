"""Name of a set, path, URL or function -> its problems, or the digests of its rows if the file is missing.

Known sets are files that others published. They are not part of this project: `oneshot fetch` downloads them into the
data folder (`ONESHOT_DATA`, else `data`). For the most used sets the sha256 of every row is shipped. A sweep can thus
be planned with its final trial keys without the data, and a file with other contents is refused.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path

from oneshot.errors import DataError
from oneshot.tasks import called_sets, foreign, problems
from oneshot.tasks.problems import Content, Problem
from oneshot.tasks.records import FILE_SUFFIXES, Record, read_records

FACTS = Path(__file__).parent / "facts"
URL_PREFIXES = ("hf://", "http://", "https://", "s3://", "gs://", "memory://")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSet:
    """A published file of problems."""

    file: str  # path in the data folder
    url: str
    num_rows: int
    about: str
    solution: str = ""  # column with the solutions, empty if there is none
    thinking: str = ""  # column with the thinking before each solution
    has_labels: bool = True
    access: str = ""  # what a user has to do before the file can be downloaded


KNOWN = {name: KnownSet(**fields) for name, fields in json.loads((FACTS / "sets.json").read_text()).items()}
PARTS = ("val", "dsr_sub-val")  # subsets of dsr_sub: 200 rows for making choices, and the 1,009 others


def data_folder() -> Path:
    """Return the folder of data files: `ONESHOT_DATA`, else `data` in the working directory."""
    return Path(os.environ.get("ONESHOT_DATA") or "data").expanduser()


def is_url(source: str) -> bool:
    """Return whether a source is a URL, as opposed to a known set or a path."""
    return source.startswith(URL_PREFIXES)


@cache
def parts_of(source: str) -> tuple[str, tuple[int, ...] | None]:
    """Return the set that has a source's rows, and which rows (None: all)."""
    if source not in PARTS:
        return source, None
    others = set(range(KNOWN["dsr_sub"].num_rows)) - set(val_rows())
    return "dsr_sub", val_rows() if source == "val" else tuple(sorted(others))


@cache
def val_rows() -> tuple[int, ...]:
    """Return the rows of dsr_sub that form `val`; make_facts.py drew them."""
    return tuple(json.loads((FACTS / "val.json").read_text())["rows"])


def local_path(source: str) -> Path | None:
    """Return the present or future file of a known set, URL or path; None if the source is none of these."""
    if source in KNOWN:
        name = Path(KNOWN[source].file)
        paths = (data_folder() / name, data_folder() / name.name, data_folder() / "benchmarks" / name.name)
        return next((path for path in paths if path.is_file()), paths[0])
    if is_url(source):
        return data_folder() / "urls" / f"{sha256(source.encode()).hexdigest()[:16]}{Path(source).suffix}"
    return Path(source).expanduser() if source.endswith(FILE_SUFFIXES) else None


def is_called(base: str) -> bool:
    """Return whether a source is a function, as opposed to a known set, a URL or a file."""
    return (
        local_path(base) is None
        and base.partition(":")[0] not in (*KNOWN, *PARTS, "arithmetic")
        and (called_sets.is_called(base))
    )


def is_here(source: str) -> bool:
    """Return whether the rows of a source are on this machine, and no record counts instead of them."""
    base, _ = parts_of(source)
    path = local_path(base)
    return base not in _recorded and ((path is not None and path.is_file()) or is_called(base))


def is_missing(base: str) -> bool:
    """Return whether a known set or URL has not been fetched."""
    path = local_path(base)
    return (base in KNOWN or is_url(base)) and not (path is not None and path.is_file())


Version = tuple[Path, int | str]
"""A set's file and its modification time, or a function's source and its digest."""


def read_version(base: str) -> Version:
    """Return the version of a set; the time is 0 if the file is missing, which reading it will report."""
    if is_called(base):
        code = called_sets.code_of(base)
        return code.path, code.digest
    path = local_path(base)
    assert path is not None, "check_name refuses such a source"
    return path, path.stat().st_mtime_ns if path.is_file() else 0


def check_name(source: str) -> None:
    """Check that a source is a set, path, URL or function. Raises DataError: it is none of these; lists the sets."""
    base, _ = parts_of(source)
    if base in _recorded or is_called(base):
        return
    if base == "arithmetic":
        raise DataError("arithmetic: this set is generated; it has no file")
    if base.startswith("hf://") and "@" not in base:
        raise DataError(f"{source}: has no revision; write hf://datasets/owner/name@COMMIT/path/to/file.parquet")
    if local_path(base) is None or not (base in KNOWN or base.endswith(FILE_SUFFIXES)):
        names = ["arithmetic", *KNOWN, *PARTS, *foreign.registered("sets")]
        raise DataError(
            f"no set {source!r}; use one of {', '.join(names)}, or the path or URL of a .jsonl or .parquet file"
        )


@cache
def shipped_contents(name: str) -> tuple[Content, ...] | None:
    """Return the shipped digests of a known set's rows, or None if none are shipped."""
    path = FACTS / f"{name}.sha256"
    if not path.is_file():
        return None
    return tuple((line[:64], line[65:]) for line in path.read_text().splitlines())


_recorded: dict[str, tuple[tuple[str, ...], ...]] = {}


def remember(recorded: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Take the digests of sets' rows as a sweep's store has them, whatever files are here now; forget earlier ones."""
    _recorded.clear()
    _recorded.update({name: tuple(map(tuple, rows)) for name, rows in recorded.items()})


def recorded(name: str) -> tuple[tuple[str, ...], ...] | None:
    """Return the remembered digests of a set, or of a set's solutions."""
    return _recorded.get(name)


def version(source: str) -> object:
    """Return what changes when a set's digests do."""
    base, _ = parts_of(source)
    path = local_path(base)
    if base not in _recorded and is_called(base):
        return read_version(base)
    return _recorded.get(base) or (path.stat().st_mtime_ns if path is not None and path.is_file() else None)


def unshipped(sources: Iterable[str]) -> dict[str, tuple[Content, ...]]:
    """Return the digests of those sets' rows that are not shipped, as far as their files are here."""
    bases = sorted({parts_of(source)[0] for source in sources})
    known = {base: contents(base) for base in bases if shipped_contents(base) is None}
    return {base: rows for base, rows in known.items() if rows is not None}


def contents(source: str) -> tuple[Content, ...] | None:
    """Return the digests of a set's rows, or None if neither digests are shipped nor the file is there.

    Raises DataError: there is no such set or path.
    """
    check_name(source)
    base, subset = parts_of(source)
    rows = shipped_contents(base)
    if rows is None and base in _recorded:
        rows = tuple((prompt, answer) for prompt, answer in _recorded[base])
    if rows is None:
        if is_missing(base):
            return None
        rows = _contents_of(base, *read_version(base))
    return rows if subset is None else tuple(rows[row] for row in subset)


@cache
def _contents_of(name: str, path: Path, mtime_ns: int | str) -> tuple[Content, ...]:
    return tuple(problem.content for problem in _load(name, path, mtime_ns))


def num_rows(source: str) -> int | None:
    """Return the number of rows of a set, or None if it is unknown before the set is fetched."""
    check_name(source)
    base, subset = parts_of(source)
    if subset is not None:
        return len(subset)
    if base in KNOWN:
        return KNOWN[base].num_rows
    rows = contents(base)
    return None if rows is None else len(rows)


def load(source: str) -> tuple[Problem, ...]:
    """Return every problem of a set, in row order.

    Raises DataError: there is no such set or file, or the file differs from the shipped digests.
    """
    check_name(source)
    base, subset = parts_of(source)
    if is_missing(base):
        raise DataError(f"{source}: not in {data_folder().absolute()}; run `oneshot fetch {base}`")
    rows = _load(base, *read_version(base))
    return rows if subset is None else tuple(rows[row] for row in subset)


@cache
def _load(name: str, path: Path, _mtime_ns: int | str) -> tuple[Problem, ...]:
    if is_called(name):
        loaded = problems.read_problems(called_sets.rows(name), name)
    else:
        loaded = problems.load_file(str(path), needs_labels=has_labels(name))
    rows = tuple(replace(problem, id=f"{name}:{row}") for row, problem in enumerate(loaded))
    check_contents(name, path, rows)
    return rows


def records(base: str) -> list[Record]:
    """Return every row of a set that is here, with all its columns. Raises DataError: there is no such file."""
    if is_called(base):
        return called_sets.rows(base)
    path, mtime_ns = read_version(base)
    if not path.is_file():
        raise DataError(f"{path}: no such file (paths are relative to {Path.cwd()})")
    return _read_records(path, mtime_ns)


@lru_cache(maxsize=2)  # rows with traces are large
def _read_records(path: Path, _mtime_ns: int | str) -> list[Record]:
    return read_records(path)


def has_labels(name: str) -> bool:
    """Return whether every row of a set has a label."""
    return name not in KNOWN or KNOWN[name].has_labels


def check_contents(name: str, path: Path, rows: tuple[Problem, ...]) -> None:
    """Check that a file of a known set is the published one.

    Raises DataError: it is not; names the first row that differs.
    """
    shipped = shipped_contents(name)
    if shipped is not None:
        differing = [row for row, pair in enumerate(zip(shipped, rows, strict=False)) if pair[0] != pair[1].content]
        if differing or len(shipped) != len(rows):
            reason = f"row {differing[0]} differs" if differing else f"it has {len(rows)} rows, not {len(shipped)}"
            raise DataError(
                f"{path}: not {name} as published: {reason} (by sha256); delete it and run `oneshot fetch {name}`, or "
                "use it by its path"
            )
