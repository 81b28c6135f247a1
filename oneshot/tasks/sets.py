"""Name of a set, path or URL -> its problems, or the digests of its rows if the file is missing.

Known sets are files that others published. They are not part of this project: `oneshot fetch` downloads them into the
data folder (`ONESHOT_DATA`, else `data`). For the most used sets the sha256 of every row is shipped. A sweep can thus
be planned with its final trial keys without the data, and a file with other contents is refused.
"""

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path

from oneshot.errors import DataError
from oneshot.tasks import problems
from oneshot.tasks.problems import Content, Problem

FACTS = Path(__file__).parent / "facts"
_RELEASED = "https://raw.githubusercontent.com/ypwang61/One-Shot-RLVR/21ed529"
_EVALUATION = f"{_RELEASED}/Qwen2.5-Eval/evaluation/data"
_ARC = "hf://datasets/allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453"
URL_PREFIXES = ("hf://", "http://", "https://", "s3://", "gs://", "memory://")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSet:
    """A published file of problems."""

    file: str  # path in the data folder
    url: str
    num_rows: int
    about: str


KNOWN = {
    "dsr_sub": KnownSet(
        file="dsr_sub.parquet",
        url=f"{_RELEASED}/data/train/one_shot_rlvr/dsr_sub.parquet",
        num_rows=1209,
        about="DeepScaleR subset of the paper; MIT (DeepScaleR-Preview-Dataset), repository Apache-2.0",
    ),
    "math7500": KnownSet(
        file="math7500.parquet",
        url="hf://datasets/DigitalLearningGmbH/MATH-lighteval@main/data/train-00000-of-00001.parquet",
        num_rows=7500,
        about="MATH's training problems (Hendrycks et al. 2021), MIT",
    ),
    "math500": KnownSet(
        file="benchmarks/math500.jsonl", url=f"{_EVALUATION}/math500/test.jsonl", num_rows=500,
        about="500 of MATH's test problems (Lightman et al. 2023), with subject and level, MIT",
    ),
    "aime24": KnownSet(
        file="benchmarks/aime24.jsonl", url=f"{_EVALUATION}/aime24/test.jsonl", num_rows=30, about="AIME 2024 I and II"
    ),
    "aime25": KnownSet(
        file="benchmarks/aime25.jsonl", url=f"{_EVALUATION}/aime25/test.jsonl", num_rows=30,
        about="AIME 2025 I and II, later than Qwen2.5-Math (September 2024)",
    ),
    "amc23": KnownSet(
        file="benchmarks/amc23.jsonl", url=f"{_EVALUATION}/amc23/test.jsonl", num_rows=40, about="AMC 12 2023 A and B"
    ),
    "minerva": KnownSet(
        file="benchmarks/minerva.jsonl", url=f"{_EVALUATION}/minerva_math/test.jsonl", num_rows=272,
        about="Minerva's OCWCourses (Lewkowycz et al. 2022)",
    ),
    "olympiadbench": KnownSet(
        file="benchmarks/olympiadbench.jsonl", url=f"{_EVALUATION}/olympiadbench/test.jsonl", num_rows=675,
        about="OlympiadBench (He et al. 2024): open-ended, text only, English, mathematics",
    ),
    "gsm8k": KnownSet(
        file="benchmarks/gsm8k.jsonl", url=f"{_EVALUATION}/gsm8k/test.jsonl", num_rows=1319,
        about="GSM8K's test problems (Cobbe et al. 2021), MIT",
    ),
    "arc_easy": KnownSet(
        file="benchmarks/arc_easy.parquet", url=f"{_ARC}/ARC-Easy/test-00000-of-00001.parquet", num_rows=2376,
        about="ARC-Easy's test questions (Clark et al. 2018), CC BY-SA 4.0",
    ),
    "arc_challenge": KnownSet(
        file="benchmarks/arc_challenge.parquet", url=f"{_ARC}/ARC-Challenge/test-00000-of-00001.parquet",
        num_rows=1172, about="ARC-Challenge's test questions (Clark et al. 2018), CC BY-SA 4.0",
    ),
}  # fmt: skip

PARTS = ("val", "dsr_sub-val")  # subsets of dsr_sub: 200 rows for making choices, and the 1,009 others


def data_folder() -> Path:
    """Return the folder of data files: `ONESHOT_DATA`, else `data` in the working directory."""
    return Path(os.environ.get("ONESHOT_DATA") or "data").expanduser()


def is_url(source: str) -> bool:
    """Return whether a source is a URL, as opposed to a known set or a path."""
    return source.startswith(URL_PREFIXES)


def parts_of(source: str) -> tuple[str, tuple[int, ...] | None]:
    """Return the set that has a source's rows, and which rows (None: all)."""
    if source not in PARTS:
        return source, None
    return "dsr_sub", val_rows() if source == "val" else _other_rows()


@cache
def val_rows() -> tuple[int, ...]:
    """Return the rows of dsr_sub that form `val`; make_facts.py drew them."""
    return tuple(json.loads((FACTS / "val.json").read_text())["rows"])


@cache
def _other_rows() -> tuple[int, ...]:
    return tuple(sorted(set(range(KNOWN["dsr_sub"].num_rows)) - set(val_rows())))


def local_path(source: str) -> Path | None:
    """Return the present or future file of a known set, URL or path; None if the source is none of these."""
    if source in KNOWN:
        name = Path(KNOWN[source].file)
        paths = (data_folder() / name, data_folder() / name.name, data_folder() / "benchmarks" / name.name)
        return next((path for path in paths if path.is_file()), paths[0])
    if is_url(source):
        return data_folder() / "urls" / f"{sha256(source.encode()).hexdigest()[:16]}{Path(source).suffix}"
    return Path(source).expanduser() if source.endswith(problems.FILE_SUFFIXES) else None


def is_missing(base: str) -> bool:
    """Return whether a known set or URL has not been fetched."""
    path = local_path(base)
    return (base in KNOWN or is_url(base)) and not (path is not None and path.is_file())


def _version(base: str) -> tuple[Path, int]:
    """Return a set's file and its modification time; 0 if it is missing, which reading it will report."""
    path = local_path(base)
    assert path is not None, "check_name refuses such a source"
    return path, path.stat().st_mtime_ns if path.is_file() else 0


def check_name(source: str) -> None:
    """Check that a source is a set, path or URL.

    Raises:
        DataError: it is none of these; lists the sets.
    """
    base, _ = parts_of(source)
    if base == "arithmetic":
        raise DataError("arithmetic: this set is generated; it has no file")
    if base.startswith("hf://") and "@" not in base:
        raise DataError(f"{source}: has no revision; write hf://datasets/owner/name@COMMIT/path/to/file.parquet")
    if local_path(base) is None or not (base in KNOWN or base.endswith(problems.FILE_SUFFIXES)):
        raise DataError(
            f"no set {source!r}; use one of {', '.join(['arithmetic', *KNOWN, *PARTS])}, or the path or URL of a "
            ".jsonl or .parquet file"
        )


@cache
def shipped_contents(name: str) -> tuple[Content, ...] | None:
    """Return the shipped digests of a known set's rows, or None if none are shipped."""
    path = FACTS / f"{name}.sha256"
    if not path.is_file():
        return None
    return tuple((line[:64], line[65:]) for line in path.read_text().splitlines())


def contents(source: str) -> tuple[Content, ...] | None:
    """Return the digests of a set's rows, or None if neither digests are shipped nor the file is there.

    Raises:
        DataError: there is no such set or path.
    """
    check_name(source)
    base, subset = parts_of(source)
    rows = shipped_contents(base)
    if rows is None:
        if is_missing(base):
            return None
        rows = _contents_of(base, *_version(base))
    return rows if subset is None else tuple(rows[row] for row in subset)


@cache
def _contents_of(name: str, path: Path, mtime_ns: int) -> tuple[Content, ...]:
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

    Raises:
        DataError: there is no such set or file, or the file differs from the shipped digests.
    """
    check_name(source)
    base, subset = parts_of(source)
    if is_missing(base):
        raise DataError(f"{source}: not in {data_folder().absolute()}; run `oneshot fetch {base}`")
    rows = _load(base, *_version(base))
    return rows if subset is None else tuple(rows[row] for row in subset)


@cache
def _load(name: str, path: Path, _mtime_ns: int) -> tuple[Problem, ...]:
    rows = tuple(replace(problem, id=f"{name}:{row}") for row, problem in enumerate(problems.load_file(str(path))))
    check_contents(name, path, rows)
    return rows


def check_contents(name: str, path: Path, rows: tuple[Problem, ...]) -> None:
    """Check that a file of a known set is the published one.

    Raises:
        DataError: it is not; names the first row that differs.
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
