"""The command line: parse, call, print. Nothing heavy is imported before it is needed.

Results go to stdout, messages and progress to stderr. Exit codes: 0 done, 1 trials failed or are missing, 2 the input
is wrong, 130 interrupted.
"""

import logging
import os
import sys
import time
from importlib import import_module

from oneshot.cli.options import app, warn
from oneshot.errors import OneshotError, UserError
from oneshot.logs import JsonLines, json_line, wants_json

# in the order of `--help`
for _verbs in (
    "start",
    "sweeps",
    "report",
    "export",
    "metrics",
    "cluster",
    "store",
    "data",
):  # in the order of `--help`
    import_module(f"oneshot.cli.{_verbs}")


def main() -> None:
    """Run a verb, and turn its errors into one line and an exit code."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json() else logging.Formatter("oneshot: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        app()
    except OneshotError as error:
        if wants_json():
            print(json_line("error", str(error), time_s=time.time()), file=sys.stderr)
        else:
            warn(str(error))
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # `oneshot plan FILE | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
