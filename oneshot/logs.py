"""Log records -> lines of JSON with sweep, key and attempt, where `ONESHOT_LOG=json` asks for them; and safe text."""

import json
import logging
import os
from datetime import UTC, datetime
from typing import Any

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def wants_json() -> bool:
    """Whether logs are read by a machine."""
    return os.environ.get("ONESHOT_LOG") == "json"


def json_line(level: str, message: str, *, time_s: float, **facts: Any) -> str:
    """One record; facts that are empty are left out."""
    when = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
    known = {name: value for name, value in facts.items() if value not in ("", None)}
    return json.dumps({"time": when, "level": level, "message": message, **known})


class JsonLines(logging.Formatter):
    """Formats records as lines of JSON, each with the same facts: sweep, key, attempt."""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """One line, traceback included."""
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        return json_line(
            record.levelname.lower(),
            record.getMessage(),
            time_s=record.created,
            logger=record.name,
            traceback=trace,
            **self._facts,
        )


def printable(text: str) -> str:
    """Text of a model, a problem or another machine, with control characters written out: a terminal obeys them."""
    return text.translate(_ESCAPED)
