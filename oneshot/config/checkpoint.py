"""Settings of checkpoints: when they are written, and what a finished trial keeps."""

from typing import Any, Literal

from pydantic import Field, field_validator

from oneshot.config.fields import MAX_S, MAX_STEPS, Config, Text


class CheckpointConfig(Config):
    """When a trial writes checkpoints, and what it keeps on disk."""

    every_steps: int = Field(
        20, ge=1, le=MAX_STEPS, description="Steps between checkpoints, from which an interrupted trial resumes"
    )
    every_s: float | None = Field(
        None,
        gt=0,
        le=MAX_S,
        description="Also write a checkpoint when the last is this many seconds old. It bounds the loss on a spot "
        "machine",
    )
    keep: Literal["none", "weights", "full"] | dict[Literal["best"], Text] = Field(
        "weights",
        description="What a finished trial keeps: nothing, its last weights, or also its optimiser, with which a "
        "longer run can continue. `{best: eval/val/pass_at_1}`: its last weights, and those of the step at which this "
        "metric is highest",
    )

    @field_validator("keep", mode="before")
    @classmethod
    def _is_a_word_or_a_metric(cls, keep: Any) -> Any:
        words, is_best = ("none", "weights", "full"), isinstance(keep, dict) and list(keep) == ["best"]
        if keep not in words and not is_best:
            raise ValueError(f"{keep!r} is not one of {', '.join(words)} and {{best: METRIC}}")
        if is_best and not (isinstance(keep["best"], str) and keep["best"].startswith("eval/")):
            raise ValueError(
                f"best: {keep['best']!r} is no metric of a suite; name one, such as {{best: eval/val/pass_at_1}}"
            )
        return keep

    @property
    def best_metric(self) -> str | None:
        """Return the metric whose best step keeps its weights, or None."""
        return self.keep["best"] if isinstance(self.keep, dict) else None
