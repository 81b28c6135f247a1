"""Log records -> lines of JSON with sweep, key and attempt if `ONESHOT_LOG=json`; unsafe text -> printable text."""

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def wants_json() -> bool:
    """Return whether `ONESHOT_LOG=json` is set."""
    return os.environ.get("ONESHOT_LOG") == "json"


def json_line(level: str, message: str, *, time_s: float, **fields: Any) -> str:
    """Return one record as JSON; empty fields are left out."""
    when = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
    non_empty = {name: value for name, value in fields.items() if value not in ("", None)}
    return json.dumps({"time": when, "level": level, "message": message, **non_empty})


class JsonLines(logging.Formatter):
    """A formatter of records as lines of JSON, each with the same fields: sweep, key, attempt."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, with the traceback if there is one."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return json_line(
            record.levelname.lower(),
            record.getMessage(),
            time_s=record.created,
            logger=record.name,
            traceback=trace,
            **self._fields,
        )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 trial`, `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """Return text of a model, a problem or another machine with control characters escaped for the terminal."""
    return text.translate(_ESCAPED)
