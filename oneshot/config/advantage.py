"""The sections `advantage` and `critic` of a trial: how rewards become advantages."""

from typing import Literal

from pydantic import Field

from oneshot.config.fields import MAX_FACTOR, MAX_STEPS, Config


class AdvantageConfig(Config):
    """The rules that turn the rewards of a group into advantages."""

    baseline: Literal["group", "none", "critic"] = Field(
        "group",
        description="`group`: reward minus the group's mean (GRPO). `none`: +1 for a reward of 1, -1 for 0. `critic`: "
        "generalised advantage estimation with a learned value of each token (PPO)",
    )
    positive_weight: float = Field(
        1.0, ge=0, le=MAX_FACTOR, description="Factor of advantages above 0. 0: negative samples only"
    )
    negative_weight: float = Field(
        1.0, ge=0, le=MAX_FACTOR, description="Factor of advantages below 0. 0: positive samples only"
    )
    normalize_std: bool = Field(
        True,
        description="Divide by the group's standard deviation (ddof 1); with a critic, whiten over all tokens of the "
        "step",
    )
    eps: float = Field(1e-6, ge=0, le=1, description="Number added to that standard deviation")


class CriticConfig(Config):
    """The critic of PPO: a value for each token of a completion, learned from the rewards."""

    share: Literal["none", "body"] = Field(
        "none",
        description="The model whose hidden states the value head reads. `none`: its own, a copy of the policy at the "
        "start. `body`: the policy's, which the critic's loss then also trains",
    )
    lr: float = Field(
        1e-5, gt=0, le=1, description="Learning rate of the critic; with `share: body`, of its value head alone"
    )
    clip: float = Field(
        0.5, gt=0, le=MAX_FACTOR, description="Clip range of a value, around its value before the update"
    )
    coef: float = Field(0.1, ge=0, le=MAX_FACTOR, description="With `share: body`: weight of the critic's loss")
    warmup_steps: int = Field(
        0, ge=0, le=MAX_STEPS, description="Number of steps at the start that train only the critic"
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of a later token's value")
    gae_lambda: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of later values in an advantage. 1, with gamma 1: the reward minus the value",
    )
