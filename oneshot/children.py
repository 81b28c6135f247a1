"""Name of one of our modules -> the command line that runs it in a child process.

`python -m` puts the working directory first in the child's path, so that a user's `random.py` or `json.py` would be
run in place of the library's. Here the child never looks there; it finds this package where its parent did.
"""

import sys
from pathlib import Path

_START = """
import runpy, sys
root, module = sys.argv[1:3]
del sys.argv[1:3]
installed = (place for place, path in enumerate(sys.path) if "site-packages" in path or "dist-packages" in path)
if root not in sys.path:
    sys.path.insert(next(installed, len(sys.path)), root)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""A source checkout comes after the standard library and before other installed versions of this package."""


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line of a child that runs a module with arguments."""
    root = Path(__file__).resolve().parents[1]
    return [sys.executable, "-P", "-c", _START, str(root), module, *arguments]
