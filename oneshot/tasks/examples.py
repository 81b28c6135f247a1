"""`set:row` -> the `Problem` that a trial trains on.

A set is `arithmetic` (generated; the row is the expression) or the path of a .parquet or .jsonl file (the row is an
index from 0): an example is named by set and row, never by a rank.
"""

from oneshot.errors import DataError
from oneshot.tasks import arithmetic, problems
from oneshot.tasks.problems import Problem


def load_example(name: str) -> Problem:
    """`"arithmetic:47+38"` or `"path/to/file.parquet:124"` -> that problem.

    Raises:
        DataError: no such set, file or row; says what is there.
    """
    source, _, row = name.rpartition(":")
    if source == "arithmetic":
        return arithmetic.problem(row)
    if not source.endswith(problems.FILE_SUFFIXES):
        raise DataError(
            f"{name}: no set {source!r} here; use `arithmetic:47+38`, or the path of a .jsonl or "
            ".parquet file, as `data/dsr_sub.parquet:124`"
        )
    rows = problems.load_file(source)
    if not row.isdecimal():
        raise DataError(f"{name}: row {row!r} is not a number; {source} has rows 0 to {len(rows) - 1}")
    if int(row) >= len(rows):
        raise DataError(f"{name}: no row {row}; {source} has rows 0 to {len(rows) - 1}")
    return rows[int(row)]
