"""Gathered runs <-> one small archive for a reviewer, which gives the same verdicts to the last digit.

The archive is a zip of JSON: the sweep file, the frozen claims as written, and the config, metrics, environments and
failure of every run. It has grades by problem for every evaluation that a verdict or the table of selection reads, and
for the first and last step of each trial. It has no weights, logs or host names. A bundle is not trusted: it is read as
data, and its texts are escaped.
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
from pydantic_core import to_jsonable_python

from oneshot.config.claims import ClaimConfig, PublishedConfig
from oneshot.config.paths import SettingError
from oneshot.config.sweep import NAME
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError, first_line
from oneshot.plan.claims import FILE as CLAIMS
from oneshot.plan.claims import comparisons, record_of, thaw
from oneshot.report.completions import chosen, shown_tables
from oneshot.report.runs import CompletionReader, Gathered, Grades, Run, Shown, primary_suite
from oneshot.report.selection import selection_table
from oneshot.report.verdicts import verdicts
from oneshot.trial.state import TrialState

SUFFIX = ".oneshot.zip"
FORMAT = 1
MAX_BYTES = 4 * 2**30  # largest size of an unpacked bundle, because a small zip can unpack to any size
MAX_DIGITS = 20  # most digits of a whole number. No seed, time or count has more.
MAX_NAME = 200  # most characters of a sweep's name. Folder names cannot be much longer.
MAX_MS = 253_402_300_799_000  # end of the year 9999, the last that `datetime` knows


def is_bundle(path: Path) -> bool:
    """Return whether a file is a zip archive."""
    return path.is_file() and zipfile.is_zipfile(path)


# --- writing ---


class _RecordingReader:
    """A reader that keeps all grades that were read."""

    def __init__(self, record: CompletionReader) -> None:
        self._record = record
        self.read: dict[str, Grades] = {}

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Return the grades of one evaluation, and keep them."""
        grades = self._record.grades(run, suite, step)
        if grades is not None:
            self.read[_name(run, suite, step)] = grades
        return grades

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Return completions to show."""
        return self._record.shown(run, suite, step)


def _name(run: Run, suite: str, step: int) -> str:
    run_suite = run.suite(suite)
    assert run_suite is not None, "only a run's own suites are read"
    return f"{run.key}-{run_suite.digest[:16]}-{step}.json"


def write_bundle(gathered: Gathered, path: Path) -> None:
    """Write the archive. An existing file is replaced in one move."""
    record = _RecordingReader(gathered.record)
    verdicts(replace(gathered, record=record))
    if (primary := primary_suite(gathered)) is not None:
        selection_table(replace(gathered, record=record), primary)
    for run in gathered.runs:
        for suite in run.suites:
            for step in {0, run.num_steps} & set(run.measured.get(suite.name, {})):
                record.grades(run, suite.name, step)
    metadata = to_jsonable_python({name: getattr(gathered, name) for name in _Metadata.model_fields})
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, data: Any) -> None:
            archive.writestr(name, json.dumps(data))

        put("bundle.json", {"format": FORMAT, "oneshot": version("oneshot"), **metadata})
        put(CLAIMS, record_of(gathered.frozen))
        archive.writestr("sweep.yaml", gathered.yaml)
        put("runs.json", [asdict(run) for run in gathered.runs])
        put("searched.json", [asdict(run) for run in gathered.searched])
        for name, grades in sorted(record.read.items()):
            put(f"grades/{name}", _as_json(grades))
        for name, lines in _shown_tables(gathered):
            put(f"shown/{name}", [asdict(line) for line in lines])
    temporary.replace(path)


def _as_json(grades: Grades) -> dict[str, Any]:
    arrays = {name: getattr(grades, name).astype(int).tolist() for name in ARRAYS}
    return {"ids": grades.ids, "categories": grades.categories, **arrays}


ARRAYS = ("strict_PK", "lenient_PK", "num_tokens_PK", "boxed_PK")


def _shown_tables(gathered: Gathered) -> list[tuple[str, list[Shown]]]:
    """Return tables with the completions that a page shows. Other completions keep only whether they are right."""
    suite = primary_suite(gathered)
    if suite is None:
        return []
    named_tables = []
    for run, tables in shown_tables(gathered, suite):
        kept = {place for place, _ in chosen(list(tables.values()))}
        for (_, step), table in tables.items():
            hidden = [replace(line, completion="", problem="", answer="") for line in table]
            lines = [line if place in kept else hidden[place] for place, line in enumerate(table)]
            named_tables.append((_name(run, suite, step), lines))
    return named_tables


# --- reading ---


_RUNS = TypeAdapter(tuple[Run, ...])
_SHOWN = TypeAdapter(tuple[Shown, ...])
_UNREADABLE = (ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""Errors of a file in a zip archive that is damaged, encrypted, not JSON, or nested too deep."""


class _Metadata(BaseModel):
    """Content of bundle.json in this format."""

    name: Annotated[str, Field(pattern=NAME, max_length=MAX_NAME)]
    question: str
    reproduces: str | None
    seeds: tuple[int, ...]
    amended: tuple[ClaimConfig, ...]
    published: tuple[PublishedConfig, ...]
    selects_on_test: bool
    warnings: tuple[str, ...]


class _Claims(BaseModel):
    """Content of claims.json."""

    claims: list[dict[str, Any]]
    digest: str
    frozen_ms: Annotated[int, Field(ge=0, le=MAX_MS)] | None
    seeds: tuple[int, ...] = ()
    num_steps: dict[str, int] = {}


class _Environment(BaseModel):
    """Versions and device of one attempt."""

    env_digest: str
    gpu: str
    platform: str
    versions: dict[str, str]


_ENVIRONMENTS = TypeAdapter(tuple[_Environment, ...])


class _Grades(BaseModel):
    """Content of one grades/*.json."""

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    strict_PK: list[list[int]]
    lenient_PK: list[list[int]]
    num_tokens_PK: list[list[int]]
    boxed_PK: list[list[int]]

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays by name, each [problems, completions].

        Raises ValueError: an array is empty, or has another shape.
        """
        arrays = {name: np.array(getattr(self, name), dtype=np.float64) for name in ARRAYS}
        shape = (len(self.ids), *arrays["strict_PK"].shape[1:])
        if len(self.categories) != len(self.ids) or any(array.shape != shape for array in arrays.values()):
            raise ValueError("the columns of grades have different numbers of problems or completions")
        if len(shape) != 2 or 0 in shape:
            raise ValueError("grades need at least one problem and one completion")
        if any(not np.isin(arrays[name], (0, 1)).all() for name in ARRAYS if name != "num_tokens_PK"):
            raise ValueError("a grade must be 0 or 1")
        return arrays


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {MAX_DIGITS} are allowed")
    return int(text)


class _Archive:
    """The completions of a bundle, whose file is opened once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grades_by_name: dict[str, Grades | None] = {}

    @cached_property
    def _file(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def num_bytes(self) -> int:
        """Return the unpacked size of all files as the archive states it. Reading a file never exceeds it."""
        return sum(info.file_size for info in self._file.infolist())

    def text(self, name: str) -> str | None:
        """Return a file's text, or None if there is no such file."""
        try:
            return self._file.read(name).decode()
        except KeyError:
            return None

    def data(self, name: str) -> Any:
        """Return a file's JSON, or None if there is no such file."""
        try:
            text = self.text(name)
            data = None if text is None else json.loads(text, parse_int=_int)
            if text is not None and re.search(r"\\u[dD][89a-fA-F]", text):
                # half of a surrogate pair can be read but not written: it fails here, not later
                json.dumps(data, ensure_ascii=False).encode()
            return data
        except _UNREADABLE as error:
            raise _broken(self._path, error) from error

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        """Return the grades of one evaluation, or None if the bundle has none."""
        if run.suite(suite) is None:
            return None
        name = _name(run, suite, step)
        if name not in self._grades_by_name:
            self._grades_by_name[name] = self._grades(name)
        return self._grades_by_name[name]

    def _grades(self, name: str) -> Grades | None:
        if (data := self.data(f"grades/{name}")) is None:
            return None
        try:
            grades = _Grades.model_validate(data)
            return Grades(ids=grades.ids, categories=grades.categories, **grades.arrays())
        except (ValueError, OverflowError) as error:
            raise _broken(self._path, error) from error

    def shown(self, run: Run, suite: str, step: int) -> Sequence[Shown]:
        """Return completions to show."""
        data = self.data(f"shown/{_name(run, suite, step)}") if run.suite(suite) is not None else None
        try:
            return _SHOWN.validate_python(data or ())
        except ValueError as error:
            raise _broken(self._path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    reason = str(error) if isinstance(error, _InvalidRunError) else first_line(error)
    if isinstance(error, ValidationError):
        reason = _finding(error)
    return UserError(f"{path}: the bundle is damaged: {reason}".splitlines()[0])


def _finding(error: ValidationError) -> str:
    finding = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, finding["loc"])), finding["msg"])))


def read_bundle(path: Path) -> Gathered:
    """Return what was gathered when the bundle was written, with the same numbers to the last bit.

    Raises UserError: the file is not a bundle, or has a format that this version cannot read.
    """
    archive = _Archive(path)
    try:
        num_bytes = archive.num_bytes()
        yaml = archive.text("sweep.yaml") if num_bytes <= MAX_BYTES else ""
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a bundle: {error}; make one with `oneshot report NAME --bundle`") from error
    if yaml is None:
        raise UserError(f"{path}: not a bundle: it has no sweep.yaml; make one with `oneshot report NAME --bundle`")
    if num_bytes > MAX_BYTES:
        raise UserError(f"{path}: not a bundle: it unpacks to more than {MAX_BYTES // 2**30} GiB")
    names = ("bundle.json", CLAIMS, "runs.json", "searched.json")
    metadata, claims, runs, searched = (archive.data(name) for name in names)
    if isinstance(metadata, dict) and metadata.get("format") != FORMAT:
        written_by = f"oneshot {metadata.get('oneshot')}"
        raise UserError(
            f"{path}: written by {written_by} in format {metadata.get('format')}; this version reads only {FORMAT}"
        )
    try:
        gathered = Gathered(
            **dict(_Metadata.model_validate(metadata)),
            yaml=yaml,
            runs=_of_one_grid(_checked(_RUNS.validate_python(runs))),
            searched=_checked(_RUNS.validate_python(searched or ())),
            frozen=thaw(_Claims.model_validate(claims).model_dump()),
            record=archive,
        )
        comparisons((*gathered.frozen.claims, *gathered.amended), gathered.cells)
    except (ValueError, SettingError) as error:
        raise _broken(path, error) from error
    return gathered


class _InvalidRunError(ValueError):
    """A run that has the right types and wrong values. The message names the run."""


def _checked(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs unchanged if a report can use them.

    Raises ValueError: a run has a wrong share, key, digest, config or environment.
    """
    for place, run in enumerate(runs):
        shares = [numbers.get("pass_at_1", 0.0) for steps in run.measured.values() for numbers in steps.values()]
        if any(share < 0 or share > 1 for share in shares):
            raise _InvalidRunError(f"runs.json: {place}.measured: a share is not between 0 and 1")
        if run.state in (TrialState.RUNNING, TrialState.PENDING):
            raise _InvalidRunError(f"runs.json: {place}.state: {str(run.state)!r} is not a state of a reported run")
        names = [run.key or "", *(suite.digest for suite in run.suites)]
        if invalid := [name for name in names if not re.fullmatch(r"[A-Za-z0-9]*", name)]:
            raise _InvalidRunError(f"runs.json: {place}: {invalid[0]!r} is not a key of a trial or a digest of a suite")
        try:
            TrialConfig.model_validate(run.config)
            _ENVIRONMENTS.validate_python(run.environments)
        except ValidationError as error:
            raise _InvalidRunError(f"runs.json: {place}: {_finding(error)}") from error
    return runs


def _of_one_grid(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs unchanged if they have the same axes and no two have the same cell and seed.

    Raises ValueError: they do not fit together.
    """
    if any(list(run.cell) != list(runs[0].cell) for run in runs):
        raise _InvalidRunError("runs.json: the axes of a cell differ from those of the first run")
    if len({(*run.cell.values(), run.seed) for run in runs}) < len(runs):
        raise _InvalidRunError("runs.json: two runs have the same cell and seed")
    return runs
