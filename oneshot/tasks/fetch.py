"""Name of a known set, or URL -> its file in the data folder, checked."""

import os
import tempfile
from pathlib import Path

import fsspec

from oneshot.errors import DataError
from oneshot.tasks import sets
from oneshot.tasks.problems import load_file


def fetch(source: str) -> tuple[Path, int]:
    """Downloads a set, unless it is there; returns its file and number of rows.

    Raises:
        DataError: no such set, the download failed, or what came is not what was published.
    """
    sets.check_name(source)
    base, _ = sets.parts_of(source)
    if base not in sets.KNOWN and not sets.is_url(base):
        raise DataError(f"{source}: a path of this machine; there is nothing to fetch")
    target = sets.local_path(base)
    assert target is not None, "check_name has looked"
    if target.is_file():
        return target, len(sets.load(base))
    url = sets.KNOWN[base].url if base in sets.KNOWN else base
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".fetch-", suffix=target.suffix)
    except OSError as error:
        raise DataError(
            f"{target.parent}: cannot be written: {error.strerror}; set ONESHOT_DATA to a folder"
        ) from error
    os.close(handle)
    arrived = Path(name)
    try:
        try:
            with fsspec.open(url, "rb") as remote, arrived.open("wb") as local:
                while block := remote.read(1 << 20):
                    local.write(block)
        except Exception as error:  # every protocol has errors of its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DataError(
                f"{source}: cannot be fetched from {url}: {reason}; put the file to {target} by other means"
            ) from error
        try:
            found = load_file(str(arrived))
        except DataError as error:
            raise DataError(str(error).replace(str(arrived), url)) from error
        sets.check_contents(base, arrived, found)
        if base in sets.KNOWN and len(found) != sets.KNOWN[base].num_rows:
            raise DataError(f"{url}: has {len(found)} rows, not {sets.KNOWN[base].num_rows}: not {base} as published")
        arrived.chmod(0o644)
        arrived.replace(target)
    finally:
        arrived.unlink(missing_ok=True)
    return target, len(found)
