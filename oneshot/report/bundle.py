"""Gathered runs <-> one small archive for a reviewer, which gives the same verdicts to the last digit.

The archive is a zip of JSON: the sweep file, the frozen record as written, and the config, metrics, environments and
failure of every run. It has grades by problem for every evaluation that a verdict or the table of selection reads, and
for the first and last step of each trial, and the page. It has no weights, logs or host names. Its manifest has the
sha256 of every file (manifest.py). A bundle is not trusted: it is read as data, and its texts are escaped.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from oneshot.config.paths import SettingError
from oneshot.errors import UserError, first_line
from oneshot.plan.claims import comparisons
from oneshot.plan.frozen import FILE as CLAIMS
from oneshot.plan.frozen import thaw
from oneshot.report.bundle_content import (
    ARRAYS,
    ClaimsFile,
    GradesFile,
    InvalidRunError,
    Metadata,
    checked_runs,
    finding,
    of_one_grid,
)
from oneshot.report.completions import chosen, shown_tables
from oneshot.report.manifest import FILE as MANIFEST
from oneshot.report.manifest import SIGNATURE, check_manifest, manifest_of, sign, signer
from oneshot.report.page import PAGE, make_report
from oneshot.report.runs import CompletionReader, Gathered, Grades, Run, Shown, primary_suite
from oneshot.report.selection import selection_table
from oneshot.report.verdicts import verdicts
from oneshot.version import __version__

SUFFIX = ".oneshot.zip"
FORMAT = 3
OLDER = (1, 2)  # 1 had no manifest; in both each file of grades had its problems
UNCHECKED = 1
README = """\
# {name}

{question}

This is a bundle of oneshot {version}: the results of a sweep with everything that its verdicts need.

- `report.html` is the report. Open it in a browser; it needs no network.
- `sweep.yaml` is the sweep file. `claims.json` is the record that was frozen before the sweep began, with its digest.
- `runs.json` and `searched.json` have the settings and metrics of each trial, `grades/` the grade of each completion
  of the problems in `problems/`.
- `manifest.json` has the sha256 of every other file.

To judge it again, install oneshot {version} and run `oneshot report {name}.oneshot.zip`. This needs neither a GPU nor
torch, refuses a file that does not fit the manifest, and says who signed it.

To check the signature without oneshot, if there is a `manifest.json.sig`, unpack the bundle and run
`ssh-keygen -Y check-novalidate -n oneshot -s manifest.json.sig < manifest.json`.
"""
MAX_BYTES = 4 * 2**30  # largest size of an unpacked bundle, because a small zip can unpack to any size
MAX_DIGITS = 20  # most digits of a whole number. No seed, time or count has more.


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


def write_bundle(gathered: Gathered, path: Path, *, key: Path | None = None) -> None:
    """Write the archive, signed if there is a private key of SSH. An existing file is replaced in one move.

    Raises UserError: it cannot be signed.
    """
    files = {name: text.encode() for name, text in _files(gathered).items()}
    manifest = json.dumps(manifest_of(files), indent=1).encode()
    files[MANIFEST] = manifest
    if key is not None:
        files[SIGNATURE] = sign(manifest, key)
    temporary = path.with_name(path.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    temporary.replace(path)


def _files(gathered: Gathered) -> dict[str, str]:
    """Return the text of each file of a bundle but the manifest."""
    record = _RecordingReader(gathered.record)
    verdicts(replace(gathered, record=record))
    if (primary := primary_suite(gathered)) is not None:
        selection_table(replace(gathered, record=record), primary)
    for run in gathered.runs:
        for suite in run.suites:
            for step in {0, run.num_steps} & set(run.measured.get(suite.name, {})):
                record.grades(run, suite.name, step)
    metadata = to_jsonable_python({name: getattr(gathered, name) for name in Metadata.model_fields})
    oneshot = __version__
    data = {
        "bundle.json": {"format": FORMAT, "oneshot": oneshot, **metadata},
        CLAIMS: gathered.frozen.written,
        "runs.json": [asdict(run) for run in gathered.runs],
        "searched.json": [asdict(run) for run in gathered.searched],
        **_graded(record.read),
        **{f"shown/{name}": [asdict(line) for line in lines] for name, lines in _shown_tables(gathered)},
    }
    return {
        "README.md": README.format(name=gathered.name, question=gathered.question, version=oneshot),
        PAGE: make_report(gathered).files[PAGE],
        "sweep.yaml": gathered.yaml,
        **{name: json.dumps(content) for name, content in data.items()},
    }


def _graded(read: Mapping[str, Grades]) -> dict[str, Any]:
    """Return the files of grades, and one for each suite with the problems that its first file of grades is about."""
    files: dict[str, Any] = {}
    for name, grades in sorted(read.items()):
        problems = {"ids": grades.ids, "categories": grades.categories, "families": grades.families}
        is_alike = files.setdefault(_problems_of(name), problems) == problems
        arrays = {array: getattr(grades, array).astype(int).tolist() for array in ARRAYS}
        files[f"grades/{name}"] = arrays if is_alike else {**problems, **arrays}
    return files


def _problems_of(name: str) -> str:
    """Return the file with the problems of KEY-SUITE-STEP.json."""
    return f"problems/{name.split('-')[1]}.json"


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


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {MAX_DIGITS} are allowed")
    return int(text)


class _Archive:
    """The completions of a bundle, whose file is opened once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._grades_by_name: dict[str, Grades | None] = {}
        self._problems_by_file: dict[str, Any] = {}

    @cached_property
    def _file(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self._path)

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        return name in self._file.namelist()

    def check(self) -> None:
        """Check every file against the manifest. Raises UserError: one does not fit."""
        try:
            check_manifest(self._path, self._file)
        except _UNREADABLE as error:
            raise _broken(self._path, error) from error

    def signer(self, signers: Path | None) -> str:
        """Return who signed the manifest; empty if nobody did. Raises UserError: the signature is bad, or missing."""
        manifest, signature = (self._file.read(name) if self.has(name) else None for name in (MANIFEST, SIGNATURE))
        return signer(self._path, manifest or b"", signature, signers=signers)

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
            if isinstance(data, dict) and "ids" not in data:
                file = _problems_of(name)
                if file not in self._problems_by_file:
                    self._problems_by_file[file] = self.data(file)
                data = {**(self._problems_by_file[file] or {}), **data}
            grades = GradesFile.model_validate(data)
            arrays: dict[str, Any] = grades.arrays()
            return Grades(ids=grades.ids, categories=grades.categories, families=grades.families, **arrays)
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
    reason = str(error) if isinstance(error, InvalidRunError) else first_line(error)
    if isinstance(error, ValidationError):
        reason = finding(error)
    return UserError(f"{path}: the bundle is damaged: {reason}".splitlines()[0])


def read_bundle(path: Path, *, signers: Path | None = None) -> Gathered:
    """Return what was gathered when the bundle was written, with the same numbers to the last bit.

    `signers` is a file of allowed signers (ssh-keygen(1)), one of which must have signed the bundle.

    Raises UserError: the file is not a bundle, was changed, is not signed as it must be, or has a format that this
    version cannot read.
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
    metadata = archive.data("bundle.json")
    format_ = metadata.get("format") if isinstance(metadata, dict) else FORMAT
    if format_ not in (*OLDER, FORMAT):
        written_by = f"oneshot {metadata.get('oneshot')}"
        raise UserError(f"{path}: written by {written_by} in format {format_}; this version reads only up to {FORMAT}")
    if format_ != UNCHECKED or archive.has(MANIFEST):
        archive.check()
    signed_by = archive.signer(signers)
    claims, runs, searched = (archive.data(name) for name in (CLAIMS, "runs.json", "searched.json"))
    try:
        ClaimsFile.model_validate(claims)
        gathered = Gathered(
            **dict(Metadata.model_validate(metadata)),
            yaml=yaml,
            runs=of_one_grid(checked_runs(_RUNS.validate_python(runs))),
            searched=checked_runs(_RUNS.validate_python(searched or ())),
            frozen=thaw(claims),
            record=archive,
            signed_by=signed_by,
        )
        comparisons((*gathered.frozen.claims, *gathered.amended), gathered.cells)
    except (ValueError, SettingError) as error:
        raise _broken(path, error) from error
    if not archive.has(MANIFEST):
        why = "this bundle has no manifest, so whether its files were changed is unknown"
        return replace(gathered, warnings=(*gathered.warnings, why))
    return gathered
