"""A sweep file with everything pinned that could move: hub revisions, rankings, search points and winners."""

from dataclasses import dataclass, field
from typing import Any

from oneshot.config.file import SweepFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An example that a ranking selected."""

    example: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The best point of a finished study."""

    point: int | None  # none if no point finished and met the constraint
    params: dict[str, Any]
    value: float | None
    num_points: int  # number of the study's points when it finished


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedSweep(SweepFile):
    """A sweep file with the values that its names have in this sweep. `plan/loader.py` makes them from the store."""

    revisions: dict[tuple[str, str | None], str] = field(default_factory=dict)
    """(hub model, revision as written) -> its commit."""
    rankings: dict[tuple[str, str], dict[str, Chosen]] = field(default_factory=dict)
    """(axis, cell with `from_rank`) -> its examples, by the suffix of their cell's name."""
    solutions: dict[tuple[str, str], dict[str, list[list[Any]]]] = field(default_factory=dict)
    """(sweep of `solution.from`, model) -> that model's recorded completions (text, right) by sha256 of the prompt."""
    starts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Model and `model.init` as JSON -> key and step of the training that each seed begins from."""
    points: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Study -> the settings of each point asked so far."""
    winners: dict[str, Winner] = field(default_factory=dict)  # finished study -> its best point
    has_vllm: bool | None = None
    """Whether vLLM was installed where the sweep first ran, for `rollout.engine: auto`; None before that."""

    @classmethod
    def of(cls, file: SweepFile) -> "PinnedSweep":
        """Return the file itself if it is pinned, else the file with nothing pinned."""
        if isinstance(file, cls):
            return file
        return cls(config=file.config, source=file.source, overrides=file.overrides)
