"""The section `loss` of a trial."""

from typing import Literal

from pydantic import Field

from oneshot.config.fields import MAX_FACTOR, Config


class LossConfig(Config):
    """The loss: pg_coef x clipped surrogate + kl_coef x k3 - entropy_coef x entropy."""

    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean",
        description="How token losses of the whole step are combined. `constant`: divide their sum by num_sequences x "
        "max_tokens (Dr. GRPO)",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="Level of the ratio policy / old. `token`: one per token. `sequence`: one per completion, "
        "the geometric mean over its tokens (GSPO)",
    )
    surrogate: Literal["ppo", "cispo"] = Field(
        "ppo",
        description="What the clip does. `ppo`: a clipped ratio has no gradient. `cispo`: the clipped ratio is the "
        "weight of the token's log-probability, so that every token has a gradient",
    )
    clip_low: float = Field(
        0.2, ge=0, le=1, description="The ratio is clipped below 1 - clip_low. 1: no lower bound (a one-sided clip)"
    )
    clip_high: float = Field(
        0.2, ge=0, le=MAX_FACTOR, description="The ratio is clipped above 1 + clip_high (DAPO: 0.28, clip-higher)"
    )
    mask_truncated: bool = Field(
        False, description="Leave completions cut at `rollout.max_tokens` out of the loss (DAPO's overlong filtering)"
    )
    kl_coef: float = Field(
        0.001, ge=0, le=MAX_FACTOR, description="Weight of the k3 estimate of KL(policy | reference)"
    )
    entropy_coef: float = Field(
        0.001,
        ge=-MAX_FACTOR,
        le=MAX_FACTOR,
        description="Weight of the entropy bonus. A negative weight penalises entropy",
    )
    pg_coef: float = Field(1.0, ge=0, le=MAX_FACTOR, description="Weight of the policy gradient; 0 in the ablations")
