"""The `reward` section of a trial: what earns a reward, one rule or a weighted sum of several."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, model_validator

from oneshot.config.evaluation import GraderName
from oneshot.config.fields import MAX_FACTOR, MAX_TOKENS, Config, PartName

Rule = TypeVar("Rule", "RewardTerm", "RewardConfig")
Certainty = Literal["self_certainty", "token_entropy", "sequence_entropy", "probability"]
TermName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
TAKEN = ("mean", "accuracy", "frac_groups_zero_std", "ungraded", "errors", "overlong")
"""Names of curves under `reward/` that are not those of terms."""


class RewardTerm(Config):
    """One rule that rewards completions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    kind: Literal["outcome", "format", "random", "majority", "certainty", "python"] = Field(
        "outcome", description="What earns a reward, as for `reward.kind`"
    )
    weight: float = Field(1.0, ge=-MAX_FACTOR, le=MAX_FACTOR, description="Factor of this rule in the sum")
    by: Certainty | None = Field(None, description="With `kind: certainty`: the measure, as for `reward.by`")
    probability: float = Field(0.5, ge=0, le=1, description="Probability of a reward with `kind: random`")
    call: PartName | None = Field(
        None, description="With `kind: python`: the function, `package.module:name` or a registered name"
    )
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="Its further arguments by name")

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "RewardTerm":
        return _checked(self)


class OverlongConfig(Config):
    """A penalty on completions that come close to the largest length (DAPO, arXiv 2503.14476, Eq. 13)."""

    buffer: int = Field(
        ge=1,
        le=MAX_TOKENS,
        description="Number of tokens before `rollout.max_tokens` over which the penalty grows from 0",
    )
    penalty: float = Field(
        1.0, gt=0, le=MAX_FACTOR, description="Reward that a completion of `rollout.max_tokens` tokens loses"
    )


class RewardConfig(Config):
    """The rule that rewards completions: the outcome, a control, your own, or a weighted sum."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    kind: Literal["outcome", "format", "random", "majority", "certainty", "python", "sum"] = Field(
        "outcome",
        description="What earns a reward. `outcome`: a right boxed answer. `format`: any boxed answer. `random`: a "
        "seeded coin. `majority`: the most common of the example's answers in the step. `certainty`: how certain the "
        "policy was of its tokens, measured by `by`. `python`: what `call` returns. `sum`: the weighted sum of `terms`",
    )
    by: Certainty | None = Field(
        None,
        description="With `kind: certainty`: the measure, where p is the distribution that a token is drawn from. "
        "`self_certainty`: mean of KL(uniform | p). `token_entropy`: minus the mean entropy of p. `sequence_entropy`: "
        "sum of the tokens' log-probabilities. `probability`: exponential of that sum",
    )
    probability: float = Field(0.5, ge=0, le=1, description="Probability of a reward with `kind: random`")
    call: PartName | None = Field(
        None,
        description="With `kind: python`: a function `package.module:name` of an installed package, or beside the "
        "sweep file with `--trust-code`; or a name that a package registers (docs/own-parts.md)",
    )
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="Its further arguments by name")
    terms: dict[TermName, RewardTerm] = Field(
        default_factory=dict, description="With `kind: sum`: rules by name; each has the curve `reward/<name>`"
    )
    overlong: OverlongConfig | None = Field(
        None, description="Penalty for long completions, added to the reward; its curve is `reward/overlong`"
    )
    grader: GraderName = Field(
        "strict",
        description="Grader that decides which answers are right. `strict`: ours, exact and by type. `released`: the "
        "rules of the released evaluation (Qwen2.5-Math's `math_equal`), with numbers equal within 1e-4. Or your own, "
        "`package.module:name` or a registered name (docs/own-parts.md)",
    )
    timeout_s: float = Field(
        5.0,
        gt=0,
        le=600,
        description="Seconds to grade one answer, or to call a function for one example, after which it is ungraded",
    )

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "RewardConfig":
        if (self.kind == "sum") != bool(self.terms):
            raise ValueError("reward: `kind: sum` and `terms` belong together; set both or none")
        for name in self.terms:
            if name in TAKEN:
                raise ValueError(f"reward.terms.{name}: is the name of another curve; give the term another name")
        return _checked(self)

    @property
    def rules(self) -> dict[str, RewardTerm]:
        """Return the rules by name; a reward without terms has one, without a name."""
        if self.terms:
            return dict(self.terms)
        kind = self.kind
        assert kind != "sum", "a sum has terms"
        rule = RewardTerm(kind=kind, by=self.by, probability=self.probability, call=self.call, with_=self.with_)
        return {"": rule}

    @property
    def calls(self) -> tuple[str, ...]:
        """Return the functions that the reward calls, each once."""
        return tuple(dict.fromkeys(rule.call for rule in self.rules.values() if rule.call is not None))

    @property
    def certainties(self) -> tuple[Certainty, ...]:
        """Return the measures of certainty that are rewarded, each once."""
        return tuple(dict.fromkeys(rule.by for rule in self.rules.values() if rule.by is not None))

    @property
    def of_distribution(self) -> tuple[Certainty, ...]:
        """Return those of them that need the whole distribution of each token, not only what was drawn."""
        return tuple(by for by in self.certainties if by in ("self_certainty", "token_entropy"))


def _checked(rule: Rule) -> Rule:
    if (rule.kind == "certainty") != (rule.by is not None):
        raise ValueError("`kind: certainty` and `by` belong together; set both or none")
    if (rule.kind == "python") != (rule.call is not None):
        raise ValueError("`kind: python` and `call` belong together; set both or none")
    if rule.with_ and rule.call is None:
        raise ValueError("`with` has the arguments of a function; set `kind: python` and `call`")
    return rule
