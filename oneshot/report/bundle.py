"""Gathered runs -> one small archive that a reviewer is sent, and back, to be judged again to the same numbers.

A zip of JSON: the sweep file, the frozen claims as they were written, every run's config, metrics, environments and
failure, and per-problem grades of every evaluation that a verdict reads and of each trial's start and last step. No
weights, no logs, no host names. Nobody's bundle is trusted: it is read as data, and what it shows is escaped.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from oneshot.config.paths import SettingError
from oneshot.config.sweep import NAME, ClaimConfig, PublishedConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.claims import FILE as CLAIMS
from oneshot.plan.claims import comparisons, record_of, thaw
from oneshot.report.cells import ended_cells
from oneshot.report.completions import MAX_CELLS, chosen, shown_steps
from oneshot.report.phenomena import primary_suite
from oneshot.report.runs import CompletionReader, Gathered, Grades, Run, Shown
from oneshot.report.verdicts import verdicts

SUFFIX = ".oneshot.zip"
FORMAT = 1
MAX_BYTES = 4 * 2**30
"""Of a bundle unpacked: a zip can be made to unpack to anything."""
MAX_DIGITS = 20
"""Of a whole number: no seed, time or count has more."""
MAX_NAME = 200
"""Characters of a sweep's name: a folder cannot have many more."""
MAX_MS = 253_402_300_799_000
"""The end of the year 9999, after which there are no dates."""


def is_bundle(path: Path) -> bool:
    """Whether a file is a zip archive."""
    return path.is_file() and zipfile.is_zipfile(path)


# --- out ---


class _Remembering:
    """A record that remembers which grades were read."""

    def __init__(self, record: CompletionReader) -> None:
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
        put("searched.json", [asdict(run) for run in gathered.searched])
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
    ended = [those[0] for those in ended_cells(gathered.runs)]
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

    name: Annotated[str, Field(pattern=NAME, max_length=MAX_NAME)]
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
    frozen_ms: Annotated[int, Field(ge=0, le=MAX_MS)] | None
    seeds: tuple[int, ...] = ()
    num_steps: dict[str, int] = {}


class _Environment(BaseModel):
    """What an attempt noted of where it ran."""

    env_digest: str
    gpu: str
    platform: str
    versions: dict[str, str]


_ENVIRONMENTS = TypeAdapter(tuple[_Environment, ...])


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
            ValueError: there are others, or none.
        """
        found = {name: np.array(getattr(self, name), dtype=np.float64) for name in ARRAYS}
        shape = (len(self.ids), *found["strict_PK"].shape[1:])
        if len(self.categories) != len(self.ids) or any(array.shape != shape for array in found.values()):
            raise ValueError("grades of as many problems and completions in every column are wanted")
        if len(shape) != 2 or 0 in shape:
            raise ValueError("grades of at least one problem and one completion are wanted")
        if any(not np.isin(found[name], (0, 1)).all() for name in ARRAYS if name != "num_tokens_PK"):
            raise ValueError("a grade is 0 or 1")
        return found


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


class _Archive:
    """The record of a bundle; its file is opened once, and shut with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Grades | None] = {}

    @cached_property
    def _file(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def num_bytes(self) -> int:
        """Of all files, unpacked, as the archive says: no more of one is read."""
        return sum(info.file_size for info in self._file.infolist())

    def text(self, name: str) -> str | None:
        """A file; None where there is none."""
        try:
            return self._file.read(name).decode()
        except KeyError:
            return None

    def data(self, name: str) -> Any:
        """A file's JSON; None where there is none."""
        try:
            text = self.text(name)
            found = None if text is None else json.loads(text, parse_int=_int)
            if text is not None and re.search(r"\\u[dD][89a-fA-F]", text):
                json.dumps(found, ensure_ascii=False).encode()  # half a pair can be read, and never be written
            return found
        except _UNREADABLE as error:
            raise _broken(self._path, error) from error

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Of one evaluation."""
        if run.suite(suite) is None:
            return None
        name = _name(run, suite, step)
        if name not in self._known:
            self._known[name] = self._grades(name)
        return self._known[name]

    def _grades(self, name: str) -> Grades | None:
        if (found := self.data(f"grades/{name}")) is None:
            return None
        try:
            grades = _Grades.model_validate(found)
            return Grades(ids=grades.ids, categories=grades.categories, **grades.arrays())
        except (ValueError, OverflowError) as error:
            raise _broken(self._path, error) from error

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Completions to look at."""
        found = self.data(f"shown/{_name(run, suite, step)}") if run.suite(suite) is not None else None
        try:
            return _SHOWN.validate_python(found or ())
        except ValueError as error:
            raise _broken(self._path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, ValidationError):
        what = _finding(error)
    elif isinstance(error, _OddError):
        what = str(error)
    return UserError(f"{path}: a broken bundle: {what}".splitlines()[0])


def _finding(error: ValidationError) -> str:
    finding = error.errors()[0]
    return f"{'.'.join(map(str, finding['loc']))}: {finding['msg']}"


def read_bundle(path: Path) -> Gathered:
    """What was gathered when the bundle was written; its numbers are what they were, to the last bit.

    Raises:
        UserError: it is no bundle, or of a version that this one cannot read.
    """
    archive = _Archive(path)
    try:
        num_bytes = archive.num_bytes()
        yaml = archive.text("sweep.yaml") if num_bytes <= MAX_BYTES else ""
    except _UNREADABLE as error:
        raise UserError(f"{path}: no bundle: {error}; `oneshot report NAME --bundle` makes one") from error
    if yaml is None:
        raise UserError(f"{path}: no bundle: it has no sweep.yaml; `oneshot report NAME --bundle` makes one")
    if num_bytes > MAX_BYTES:
        raise UserError(f"{path}: unpacks to more than {MAX_BYTES // 2**30} GiB: no bundle of oneshot's")
    names = ("bundle.json", CLAIMS, "runs.json", "searched.json")
    facts, claims, runs, searched = (archive.data(name) for name in names)
    if isinstance(facts, dict) and facts.get("format") != FORMAT:
        made_by = f"format {facts.get('format')}, by oneshot {facts.get('oneshot')}"
        raise UserError(f"{path}: a bundle of {made_by}; this one reads {FORMAT}")
    try:
        found = Gathered(
            **dict(_Facts.model_validate(facts)),
            yaml=yaml,
            runs=_of_one_grid(_checked(_RUNS.validate_python(runs))),
            searched=_checked(_RUNS.validate_python(searched or ())),
            frozen=thaw(_Claims.model_validate(claims).model_dump()),
            record=archive,
        )
        comparisons((*found.frozen.claims, *found.amended), found.cells)
    except (ValueError, SettingError) as error:
        raise _broken(path, error) from error
    return found


class _OddError(ValueError):
    """What types cannot say of runs; names the run."""


def _checked(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Runs with what a report reads of them.

    Raises:
        ValueError: they have it not.
    """
    for place, run in enumerate(runs):
        shares = [numbers.get("pass_at_1", 0.0) for steps in run.measured.values() for numbers in steps.values()]
        if any(share < 0 or share > 1 for share in shares):
            raise _OddError(f"runs.json: {place}.measured: a share that is not between 0 and 1")
        names = [run.key or "", *(suite.digest for suite in run.suites)]
        if odd := [name for name in names if not re.fullmatch(r"[A-Za-z0-9]*", name)]:
            raise _OddError(f"runs.json: {place}: {odd[0]!r} is no key of a trial and no digest of a suite")
        try:
            TrialConfig.model_validate(run.config)
            _ENVIRONMENTS.validate_python(run.environments)
        except ValidationError as error:
            raise _OddError(f"runs.json: {place}: {_finding(error)}") from error
    return runs


def _of_one_grid(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Runs of which each is another cell or seed, all with the same axes.

    Raises:
        ValueError: they are not.
    """
    if any(list(run.cell) != list(runs[0].cell) for run in runs):
        raise _OddError("runs.json: a cell has other axes than that of the first run")
    if len({(*run.cell.values(), run.seed) for run in runs}) < len(runs):
        raise _OddError("runs.json: two runs of one cell with one seed")
    return runs
