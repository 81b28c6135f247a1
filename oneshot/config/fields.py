"""Bounds and base class of every setting."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

# bounds of the settings, above all that anybody means and below what would fill the memory
MAX_STEPS = 1_000_000
MAX_TOKENS = 10_000_000
MAX_COUNT = 100_000
MAX_ROWS = 10_000_000
MAX_GIB = 1_000_000
MAX_S = 10_000_000
MAX_DAYS = 100_000
MAX_FACTOR = 1_000_000_000
MAX_SEED = 2**63 - 1

NAME = r"^[A-Za-z0-9][A-Za-z0-9_\-]*$"  # of a sweep, which is also the name of a folder, a run and a job

Step = Annotated[int, Field(ge=0, le=MAX_STEPS)]
Text = Annotated[str, Field(min_length=1)]
PartName = Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_\-]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$")]
"""A part by its name, ours or one that an installed package registers, or as `package.module:name`."""
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Config(BaseModel):
    """The base of all configuration classes: frozen, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def exactly_one(names: tuple[str, ...], message: str) -> Any:
    """Return a validator of a model that sets exactly one of the fields; its error has this message."""

    def check(config: Config) -> Config:
        if sum(getattr(config, name) is not None for name in names) != 1:
            raise ValueError(message)
        return config

    return model_validator(mode="after")(check)
