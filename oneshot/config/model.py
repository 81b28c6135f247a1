"""Settings of the model to train."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from oneshot.config.fields import MAX_FACTOR, MAX_TOKENS, NAME, Config, Seed


class AdapterConfig(Config):
    """A low-rank adapter (LoRA, arXiv 2106.09685), which is trained while the model's weights are frozen."""

    kind: Literal["lora"] = Field("lora", description="Kind of adapter; `lora` is the only one")
    r: int = Field(32, ge=1, le=65_536, description="Rank")
    alpha: float = Field(64.0, gt=0, le=MAX_FACTOR, description="The adapter's output is scaled by alpha / r")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="Names of the layers that get an adapter, such as [q_proj, v_proj]. `all-linear`: every linear "
        "layer except the head",
    )

    @field_validator("targets")
    @classmethod
    def _names_some(cls, targets: list[str] | str) -> list[str] | str:
        if not targets:
            raise ValueError("targets: the list is empty; name layers, such as [q_proj, v_proj], or use all-linear")
        return sorted(set(targets)) if isinstance(targets, list) else targets  # the order has no meaning


class InitConfig(Config):
    """The trial of another sweep that supplies a trial's first weights (staged training)."""

    sweep: str = Field(pattern=NAME, description="Name of the other sweep, which must have the same storage")
    cell: dict[str, str] = Field(
        default_factory=dict,
        description="Axis -> cell of that trial. Axes that are not needed to identify it may be left out",
    )
    seed: Literal["same"] | Seed = Field("same", description="Seed of that trial. `same`: this trial's own")
    reference: Literal["start", "model"] = Field(
        "start",
        description="The model of the KL term. `start`: the weights at the start. `model`: those of `model.path`",
    )
    weights: dict[str, str] = Field(
        default_factory=dict,
        description="Seed -> KEY@STEP of the training whose weights are taken. `run` sets it: leave it out",
    )

    def of(self, seed: int) -> tuple[str, int]:
        """Return key and step of the training whose weights a seed begins from."""
        key, _, step = self.weights[str(seed)].partition("@")
        return key, int(step)


class ModelConfig(Config):
    """The policy to train, which is also the reference."""

    path: str = Field(
        min_length=1, description="`tiny:qwen2` or `tiny:llama` (shipped), a local folder, or the id of a hub model"
    )
    trust_remote_code: bool = Field(
        False, description="Run the Python code in the model's folder or repository. Its author can run anything"
    )
    revision: str | None = Field(
        None, description="Commit hash of a hub model. `run` replaces a branch, a tag or an absent value by its commit"
    )
    dtype: Literal["float32", "float64", "bfloat16"] = Field("float32", description="Data type of the master weights")
    max_positions: int | None = Field(
        None,
        ge=2,
        le=MAX_TOKENS,
        description="Largest number of tokens of a prompt and its completion. Absent: the model's own",
    )
    rope_scaling: Literal["none", "yarn"] = Field(
        "none", description="How positions beyond the model's own are reached. `yarn`: YaRN (arXiv 2309.00071)"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no",
        description="`bf16`: compute in bfloat16, and optimise weights of type `dtype`. `fp16`: the same in float16, "
        "with a scaled loss",
    )
    init: InitConfig | None = Field(
        None, description="Begin from the final weights of another sweep's trial instead of those of `path`"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device. `auto`: a GPU if torch sees one")
    adapter: AdapterConfig | None = Field(
        None, description="Train a low-rank adapter instead of the weights. The reference is the model without it"
    )

    @model_validator(mode="after")
    def _an_adapter_has_a_model(self) -> "ModelConfig":
        if self.init is not None and self.adapter is not None:
            raise ValueError(
                "model.init: cannot be combined with model.adapter; run `oneshot export` on the first stage and name "
                "its folder in model.path"
            )
        return self

    @model_validator(mode="after")
    def _scaling_has_a_length(self) -> "ModelConfig":
        if self.rope_scaling == "yarn" and self.max_positions is None:
            raise ValueError("model.rope_scaling: yarn needs model.max_positions, the length to reach")
        return self

    @model_validator(mode="after")
    def _float16_has_wide_masters(self) -> "ModelConfig":
        if self.mixed_precision == "fp16" and self.dtype == "bfloat16":
            raise ValueError("model.mixed_precision: fp16 needs master weights of float32; remove dtype: bfloat16")
        return self

    @property
    def compute_dtype(self) -> Literal["float32", "float64", "bfloat16", "float16"]:
        """Return the data type in which the model samples, is evaluated and is differentiated."""
        narrow: dict[str, Literal["bfloat16", "float16"]] = {"bf16": "bfloat16", "fp16": "float16"}
        return narrow.get(self.mixed_precision, self.dtype)
