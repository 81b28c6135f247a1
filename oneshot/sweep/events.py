"""Events of a sweep that the driver reports to whoever watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from oneshot.store.records import Result

BEGIN = "--- oneshot ---"  # line that marks where the driver's log begins, after lines of Ray
ANSWER_S = 180.0  # time limit for a node to start a worker, fetch the package and read the data
PASSED = "preflight: passed"  # Prefix of the line that says that trials may begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a person watching a sweep would like to see."""

    kind: Literal["message", "started", "step", "ended"]
    text: str = ""
    key: str = ""
    label: str = ""
    step: int = 0
    num_steps: int = 0
    reward: float | None = None
    loss: float | None = None
    result: Result | None = None
    num_left: int = 0  # trainings that run or wait, this one included until it has ended
    accuracies: Mapping[str, tuple[float | None, float]] = field(default_factory=dict)  # suite -> at start, at the end
    stopped: bool = False  # it ended because nobody wants more of it: early stopping, or by hand


Listener = Callable[[Event], None]
