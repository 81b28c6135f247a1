"""What the driver tells whoever watches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from oneshot.store.records import Result

BEGIN = "--- oneshot ---"
"""Written before the driver begins: Ray writes lines of its own before."""
ANSWER_S = 180.0
"""A node has so long to start a worker, fetch the package, and read the data."""
PASSED = "preflight: passed"
"""How the line begins that says that trials may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a person watching would like to see."""

    kind: Literal["message", "started", "step", "ended"]
    text: str = ""
    key: str = ""
    label: str = ""
    step: int = 0
    num_steps: int = 0
    reward: float | None = None
    result: Result | None = None
    stopped: bool = False
    """It ended because nobody wants more of it."""


Listener = Callable[[Event], None]
