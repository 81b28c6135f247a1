"""What the driver tells whoever watches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from oneshot.store import Result


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
