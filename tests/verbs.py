"""`oneshot ...` in this process: an interpreter that starts again takes a second."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

from oneshot.cli import main


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a verb said, and its exit code."""

    code: int
    out: str
    err: str


def oneshot(*arguments: str, cwd: Path) -> Said:
    """Runs a verb in a folder."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["oneshot", *arguments]
    code: int | str | None = None
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    return Said(code=int(code or 0), out=out.getvalue(), err=err.getvalue())
