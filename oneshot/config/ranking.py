"""The `from_rank` section of a cell: which examples of a ranking become cells."""

from typing import Annotated

from pydantic import Field, model_validator

from oneshot.config.fields import MAX_COUNT, MAX_SEED, Config, PartName


class FromRankConfig(Config):
    """Cells from a ranking: `<cell>#1` ... from the top, `#last1` ... from the end, `#random1` ... drawn."""

    history: str = Field(min_length=1, description="A sweep in the same storage, or a .json file")
    set: str = Field("dsr_sub", min_length=1, description="The set whose rows the numbers in a .json file are")
    by: PartName = Field(
        "historical_variance",
        description="Ranking rule: historical_variance, lim, random, pass_rate (examples within `band` at the first "
        "visit, nearest to its middle first), pass_rate_variance (p (1 - p) at the first visit), or answer_entropy "
        "(how much the answers at the first visit differ; not from a file). Or your own, a function of one example's "
        "accuracies (docs/own-parts.md)",
    )
    band: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.0, 1.0], min_length=2, max_length=2, description="Lowest and highest pass rate"
    )
    top: int = Field(0, ge=0, le=MAX_COUNT, description="Number of examples from the top of the ranking")
    bottom: int = Field(0, ge=0, le=MAX_COUNT, description="Number of examples from its end")
    random: int = Field(0, ge=0, le=MAX_COUNT, description="Number of examples drawn from those between")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of that draw, and of `by: random`")
    together: bool = Field(False, description="Make one cell that trains on all examples, instead of a cell for each")

    @model_validator(mode="after")
    def _names_some(self) -> "FromRankConfig":
        if not self.top + self.bottom + self.random:
            raise ValueError("selects no example; set top, bottom or random")
        return self
