"""The child of a set, a template or a ranking rule: one request on stdin -> its value, or its error, on stdout."""

import json
import resource
import sys
from typing import Any

from oneshot.tasks.foreign import load

MEMORY_BYTES = 16 * 2**30  # more than a set needs; without a limit a mistake would take the machine's memory


def answered(request: dict[str, Any]) -> Any:
    """Return the value of a name, or what it returns for each list of arguments; raise whatever goes wrong."""
    function = load(request["call"])
    if request["arguments"] is None:
        return function
    return [function(*arguments) for arguments in request["arguments"]]


def main() -> None:
    """Answer one request."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # what foreign code prints is no reply
    replies, sys.stdout = sys.stdout, sys.stderr
    try:
        reply = json.dumps({"value": answered(json.load(sys.stdin))})
    except Exception as error:  # foreign code raises any type; the parent names it
        reply = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
    replies.write(reply)


if __name__ == "__main__":
    main()
