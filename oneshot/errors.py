"""The error family: what the user can mend, and what a trial died of.

    OneshotError
    ├── UserError            the input is wrong: one line with its mend, exit code 2
    │   ├── SweepFileError   ... in a sweep file: carries `file:line: path: what; mend` lines
    │   ├── DataError        ... in an example set or an evaluation suite
    │   └── ModelError       ... in a model folder, revision or tokenizer
    └── TrialError           a trial cannot go on (its loss is not finite, ...): recorded as failed
        ├── GuardError       ... because a guard of its sweep is broken
        └── DeadProcessError      ... because one of its processes is gone: tried again

Every error here is built from one string, so that it survives pickling between processes.
"""

from collections.abc import Sequence
from difflib import get_close_matches


class OneshotError(Exception):
    """Base of everything that oneshot raises on purpose."""


class UserError(OneshotError):
    """The user's input is wrong; the message says where and how to mend it."""


class SweepFileError(UserError):
    """A sweep file that cannot be used; the message is one line for each mistake."""


class DataError(UserError):
    """An example set or suite that is missing, or has other columns or rows than asked for."""


class ModelError(UserError):
    """A model that is missing or cannot be used as it is."""


class TrialError(OneshotError):
    """A trial that cannot go on; never retried, kept in the report."""


class GuardError(TrialError):
    """A metric is out of the bounds that the sweep's guards set."""


class DeadProcessError(TrialError):
    """One of the processes that share a trial has ended without a word."""


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or what there is where nothing comes near: the mend of an unknown name."""
    if not names:
        return ""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there is {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
