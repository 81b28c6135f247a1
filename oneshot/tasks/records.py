"""A .jsonl or .parquet file -> its rows, each a mapping of columns to values.

Known sets may also be .csv files, and .json files with the rows under `examples`, as their authors publish them.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.lib
import pyarrow.parquet

from oneshot.errors import DataError
from oneshot.text import read_text

FILE_SUFFIXES = (".jsonl", ".parquet")
Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Return the rows of a file, in order.

    Raises DataError: the file cannot be read or has no rows, or a line is not a JSON object; names the line.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_json}
    records = readers.get(path.suffix, _read_jsonl)(path)
    if not records:
        raise DataError(f"{path}: has no rows")
    return records


def _read_parquet(path: Path) -> list[Record]:
    try:
        rows: list[Record] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {error}") from error
    return rows


def _read_csv(path: Path) -> list[Record]:
    text = io.StringIO(read_text(path, error=DataError), newline="")
    try:
        return list(csv.DictReader(text, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error


def _read_json(path: Path) -> list[Record]:
    try:
        data = json.loads(read_text(path, error=DataError))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    rows = data.get("examples") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: not an object with a list of rows under `examples`")
    return rows


def _read_jsonl(path: Path) -> list[Record]:
    records = []
    # not splitlines, which also splits at U+2028: a problem may contain it
    for number, line in enumerate(read_text(path, error=DataError).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_without_repeats)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at character {error.colno}") from error
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: cannot be read: a number has too many digits, or brackets are nested too deep"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: a row must be an object with `problem` and `answer`")
        records.append(record)
    return records


def _without_repeats(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        name = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise DataError(f"{name} appears twice; keep one")
    return record
