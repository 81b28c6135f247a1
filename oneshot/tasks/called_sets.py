"""A set that is a function, `my_lab.sets:hard` or a registered name -> its rows, with the columns of a data file.

The function has no arguments and returns a list of mappings. It is called once for each version of its source, in a
child process, and must return the same rows each time: rows are identified by their contents, as those of a file.
"""

from functools import lru_cache

from oneshot.errors import DataError
from oneshot.tasks import foreign
from oneshot.tasks.records import FILE_SUFFIXES, Record


def is_called(source: str) -> bool:
    """Return whether a source is a function, by the form of its name or because a package registers it."""
    return (foreign.is_call(source) and not source.partition(":")[0].endswith(FILE_SUFFIXES)) or (
        source in foreign.registered("sets")
    )


def code_of(source: str) -> foreign.Foreign:
    """Return where a set's function is. Raises DataError: it is nowhere."""
    return foreign.find(foreign.resolve(source, "sets"))


def rows(source: str) -> list[Record]:
    """Return what a set's function returns, in order.

    Raises DataError: there is no such function, it fails, or it returns no rows.
    """
    code = code_of(source)
    return _rows(code.call, code.digest)


@lru_cache(maxsize=16)
def _rows(call: str, _digest: str) -> list[Record]:
    (records,) = foreign.returned(call, [[]])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(
            f"{call}: returned {type(records).__name__}, not a list of rows; return mappings such as "
            '{"problem": "...", "answer": "..."}'
        )
    if not records:
        raise DataError(f"{call}: returned no rows")
    return records
