"""One trial of a plan: a cell with a seed, its key, its cost and its placement."""

from dataclasses import dataclass, field
from typing import Literal

from oneshot.config.resources import ResourceConfig
from oneshot.config.sweep import GuardConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.placement import Placement
from oneshot.plan.cost import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One cell with one seed, which is one MLflow child run and one row of every report."""

    cell: dict[str, str]
    seed: int
    key: str | None  # key of its training; None while something that decides it is unknown
    waits_for: str | None = None
    config: TrialConfig
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    labels: dict[str, str] = field(default_factory=dict)
    cost: Cost = Cost()  # noqa: RUF009 - frozen
    placement: Placement | None = None
    """How it is spread over processes, and what each needs; None if nothing is known about the model."""
    guards: tuple[GuardConfig, ...] = ()
    phase: Literal["search", "grid"] = "grid"
    study: str = ""
    point: int | None = None  # the point of its study that a search trial tries, from 0
    is_settled: bool = False  # whether its study has a winner, so that it need not run
    provisional: tuple[str, ...] = ()  # sets that are not fetched yet. The key changes when they are.

    @property
    def label(self) -> str:
        """Return a name such as `tiny-qwen2/47+38/outcome seed 0`."""
        point = "" if self.point is None else f" point {self.point}"
        return f"{'/'.join(self.cell.values()) or 'trial'}{point} seed {self.seed}"
