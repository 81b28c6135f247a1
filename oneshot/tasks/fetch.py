"""Name of a known set, or URL -> its checked file in the data folder."""

import os
import shutil
import tempfile
from pathlib import Path

import fsspec

from oneshot.errors import DataError, first_line
from oneshot.tasks import sets
from oneshot.tasks.problems import load_file


def fetch(source: str) -> tuple[Path, int]:
    """Download a set unless it is there; return its file and number of rows.

    Raises DataError: there is no such set, the download failed, or the file is not the published one.
    """
    sets.check_name(source)
    base, _ = sets.parts_of(source)
    if base not in sets.KNOWN and not sets.is_url(base):
        kind = "a function" if sets.is_called(base) else "a path"
        raise DataError(f"{source}: {kind} on this machine; there is nothing to fetch")
    target = sets.local_path(base)
    assert target is not None, "check_name refuses such a source"
    if target.is_file():
        return target, len(sets.load(base))
    url = sets.KNOWN[base].url if base in sets.KNOWN else base
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".fetch-", suffix=target.suffix)
    except OSError as error:
        raise DataError(
            f"{target.parent}: cannot be written: {error.strerror}; set ONESHOT_DATA to a writable folder"
        ) from error
    os.close(handle)
    partial = Path(name)
    try:
        try:
            with fsspec.open(url, "rb") as remote, partial.open("wb") as local:
                shutil.copyfileobj(remote, local)
        except Exception as error:  # each protocol raises its own errors
            access = sets.KNOWN[base].access if base in sets.KNOWN else ""
            hint = f"{access}, or download" if access else "download"
            raise DataError(
                f"{source}: cannot be fetched from {url}: {first_line(error)}; {hint} the file by hand to {target}"
            ) from error
        try:
            problems = load_file(str(partial), needs_labels=sets.has_labels(base))
        except DataError as error:
            raise DataError(str(error).replace(str(partial), url)) from error
        sets.check_contents(base, partial, problems)
        if base in sets.KNOWN and len(problems) != sets.KNOWN[base].num_rows:
            raise DataError(
                f"{url}: has {len(problems)} rows, not {sets.KNOWN[base].num_rows}: this is not {base} as published"
            )
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target, len(problems)
