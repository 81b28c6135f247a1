"""Gathered runs -> one small archive that a reviewer is sent, and back, to be judged again to the same numbers.

A zip of JSON: the sweep file, the frozen claims as they were written, every run's config, metrics, environments and
failure, and per-problem grades of every evaluation that a verdict reads and of each trial's start and last step. No
weights, no logs, no host names. Nobody's bundle is trusted: it is read as data, and what it shows is escaped.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from oneshot.claims import FILE as CLAIMS
from oneshot.claims import comparisons, record_of, thaw
from oneshot.errors import UserError
from oneshot.report.cells import by_cell, finished
from oneshot.report.completions import MAX_CELLS, chosen, shown_steps
from oneshot.report.phenomena import primary_suite
from oneshot.report.runs import Gathered, Grades, Record, Run, Shown
from oneshot.report.verdicts import verdicts
from oneshot.settings import SettingError
from oneshot.sweepconfig import ClaimConfig, PublishedConfig

SUFFIX = ".oneshot.zip"
FORMAT = 1
MAX_BYTES = 4 * 2**30
"""Of a bundle unpacked: a zip can be made to unpack to anything."""


def is_bundle(path: Path) -> bool:
    """Whether a file is a zip archive."""
    return path.is_file() and zipfile.is_zipfile(path)


# --- out ---


class _Remembering:
    """A record that remembers which grades were read."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.read: dict[str, Grades] = {}

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Of one evaluation."""
        found = self._record.grades(run, suite, step)
        if found is not None:
            self.read[_name(run, suite, step)] = found
        return found

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Completions to look at."""
        return self._record.shown(run, suite, step)


def _name(run: Run, suite: str, step: int) -> str:
    facts = run.suite(suite)
    assert facts is not None, "only a run's own suites are read"
    return f"{run.key}-{facts.digest[:16]}-{step}.json"


def write_bundle(gathered: Gathered, path: Path) -> None:
    """Writes the archive; a file that is there is replaced whole."""
    record = _Remembering(gathered.record)
    verdicts(replace(gathered, record=record))
    for run in gathered.runs:
        for suite in run.suites:
            for step in {0, run.num_steps} & set(run.measured.get(suite.name, {})):
                record.grades(run, suite.name, step)
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, data: Any) -> None:
            archive.writestr(name, json.dumps(data))

        put("bundle.json", {"format": FORMAT, "oneshot": version("oneshot"), **_facts(gathered)})
        put(CLAIMS, record_of(gathered.frozen))
        archive.writestr("sweep.yaml", gathered.yaml)
        put("runs.json", [asdict(run) for run in gathered.runs])
        for name, grades in sorted(record.read.items()):
            put(f"grades/{name}", _as_json(grades))
        for name, lines in _to_show(gathered):
            put(f"shown/{name}", [asdict(line) for line in lines])
    temporary.replace(path)


def _facts(gathered: Gathered) -> dict[str, Any]:
    return {
        "name": gathered.name,
        "question": gathered.question,
        "reproduces": gathered.reproduces,
        "seeds": gathered.seeds,
        "amended": [claim.model_dump(mode="json") for claim in gathered.amended],
        "published": [one.model_dump(mode="json") for one in gathered.published],
        "selects_on_test": gathered.selects_on_test,
        "warnings": gathered.warnings,
    }


def _as_json(grades: Grades) -> dict[str, Any]:
    arrays = {name: getattr(grades, name).astype(int).tolist() for name in ARRAYS}
    return {"ids": grades.ids, "categories": grades.categories, **arrays}


ARRAYS = ("strict_PK", "lenient_PK", "num_tokens_PK", "boxed_PK")


def _to_show(gathered: Gathered) -> list[tuple[str, list[Shown]]]:
    """The completions that a page shows; of the others, whether they are right."""
    suite = primary_suite(gathered)
    found = []
    ended = [those[0] for each in by_cell(gathered.runs) if (those := finished(each))]
    for run in ended[:MAX_CELLS] if suite is not None else ():
        assert suite is not None, "the loop is empty without one"
        steps = [step for _, step in shown_steps(run, suite)]
        tables = [gathered.record.shown(run, suite, step) for step in steps]
        if not all(tables):
            continue
        kept = {place for place, _ in chosen(tables)}
        for step, table in zip(steps, tables, strict=True):
            lines = [
                line if place in kept else replace(line, completion="", problem="", answer="")
                for place, line in enumerate(table)
            ]
            found.append((_name(run, suite, step), lines))
    return found


# --- and back ---


_RUNS = TypeAdapter(tuple[Run, ...])
_SHOWN = TypeAdapter(tuple[Shown, ...])
_UNREADABLE = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What a file of a zip archive may fail with: damaged, encrypted, no JSON, nested too deep."""


class _Facts(BaseModel):
    """bundle.json, of this format."""

    name: str
    question: str
    reproduces: str | None
    seeds: tuple[int, ...]
    amended: tuple[ClaimConfig, ...]
    published: tuple[PublishedConfig, ...]
    selects_on_test: bool
    warnings: tuple[str, ...]


class _Claims(BaseModel):
    """claims.json."""

    claims: list[dict[str, Any]]
    digest: str
    frozen_ms: int | None


class _Grades(BaseModel):
    """grades/*.json."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    strict_PK: list[list[int]]
    lenient_PK: list[list[int]]
    num_tokens_PK: list[list[int]]
    boxed_PK: list[list[int]]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """By name; as many rows as there are problems, as many columns as completions of each.

        Raises:
            ValueError: there are others.
        """
        found = {name: np.array(getattr(self, name), dtype=np.float64) for name in ARRAYS}
        shape = (len(self.ids), *found["strict_PK"].shape[1:])
        if len(self.categories) != len(self.ids) or any(array.shape != shape for array in found.values()):
            raise ValueError("grades of as many problems and completions in every column are wanted")
        return found


@dataclass(frozen=True, slots=True)
class _Archive:
    """The record of a bundle."""

    path: Path

    def _read(self, name: str) -> Any:
        """A file's JSON; None where there is none."""
        with zipfile.ZipFile(self.path) as archive:
            try:
                return json.loads(archive.read(name))
            except KeyError:
                return None
            except _UNREADABLE as error:
                raise _broken(self.path, error) from error

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Of one evaluation."""
        found = self._read(f"grades/{_name(run, suite, step)}") if run.suite(suite) is not None else None
        if found is None:
            return None
        try:
            grades = _Grades.model_validate(found)
            return Grades(ids=grades.ids, categories=grades.categories, **grades.arrays())
        except ValueError as error:
            raise _broken(self.path, error) from error

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Completions to look at."""
        found = self._read(f"shown/{_name(run, suite, step)}") if run.suite(suite) is not None else None
        try:
            return _SHOWN.validate_python(found or ())
        except ValueError as error:
            raise _broken(self.path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        finding = error.errors()[0]
        what = f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"
    return UserError(f"{path}: a broken bundle: {what}".splitlines()[0])


def read_bundle(path: Path) -> Gathered:
    """What was gathered when the bundle was written; its numbers are what they were, to the last bit.

    Raises:
        UserError: it is no bundle, or of a version that this one cannot read.
    """
    archive = _Archive(path)
    try:
        with zipfile.ZipFile(path) as file:
            num_bytes = sum(info.file_size for info in file.infolist())
            yaml = file.read("sweep.yaml").decode() if num_bytes <= MAX_BYTES else ""
    except KeyError as error:
        raise UserError(f"{path}: no bundle: it has no sweep.yaml; `oneshot report NAME --bundle` makes one") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: no bundle: {error}; `oneshot report NAME --bundle` makes one") from error
    if num_bytes > MAX_BYTES:
        raise UserError(f"{path}: unpacks to more than {MAX_BYTES // 2**30} GiB: no bundle of oneshot's")
    facts, claims, runs = (archive._read(name) for name in ("bundle.json", CLAIMS, "runs.json"))
    if isinstance(facts, dict) and facts.get("format") != FORMAT:
        made_by = f"format {facts.get('format')}, by oneshot {facts.get('oneshot')}"
        raise UserError(f"{path}: a bundle of {made_by}; this one reads {FORMAT}")
    try:
        found = Gathered(
            **dict(_Facts.model_validate(facts)),
            yaml=yaml,
            runs=_RUNS.validate_python(runs),
            frozen=thaw(_Claims.model_validate(claims).model_dump()),
            record=archive,
        )
        comparisons((*found.frozen.claims, *found.amended), found.cells)
    except (ValueError, SettingError) as error:
        raise _broken(path, error) from error
    return found
