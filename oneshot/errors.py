"""The errors that oneshot raises: mistakes of the user, and failures of a trial.

    OneshotError
    ├── UserError             the input is wrong: one line with a hint, exit code 2
    │   ├── SweepFileError    ... in a sweep file: one line `file:line: path: what; hint` per mistake
    │   ├── DataError         ... in an example set or an evaluation suite
    │   └── ModelError        ... in a model folder, revision or tokenizer
    └── TrialError            a trial cannot continue (its loss or logits are not finite): recorded as failed
        ├── GuardError        ... because a metric left the bounds of a guard
        └── DeadProcessError  ... because one of its processes is gone: the trial is tried again

Each error takes one string, so that it can be pickled between processes.
"""

from collections.abc import Sequence
from difflib import get_close_matches


class OneshotError(Exception):
    """Base of all errors that oneshot raises on purpose."""


class UserError(OneshotError):
    """A mistake in the user's input; the message says where it is and how to fix it."""


class SweepFileError(UserError):
    """A sweep file that cannot be used; the message has one line per mistake."""


class DataError(UserError):
    """An example set or suite that is missing or has wrong columns or rows."""


class ModelError(UserError):
    """A model that is missing or cannot be used."""


class TrialError(OneshotError):
    """A trial that cannot continue. It is not retried and stays in the report."""


class GuardError(TrialError):
    """A metric outside the bounds that the sweep's guards set."""


class DeadProcessError(TrialError):
    """A process of a trial that ended without an error message. The trial is tried again."""


def nearest(name: str, names: Sequence[str]) -> str:
    """Return a hint for an unknown name: `; did you mean 'x'?`, or all names if none is similar."""
    if not names:
        return ""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
