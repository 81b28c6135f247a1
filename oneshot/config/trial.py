"""Every knob of one trial: names, types, bounds and defaults, and nothing that runs.

The defaults are the released one-shot recipe (One-Shot-RLVR, commit 21ed529): where the paper's text and its code
differ, the code's value stands here and the field's line says so. One exception: `model.mixed_precision` is `no`,
which computes alike everywhere; sweeps on GPUs set bf16.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

TRIAL_VERSION = 3
"""Part of every trial key: raised whenever a change to the code changes what a trial computes."""

TRAIN_SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
"""What the released training prompts end with (One-Shot-RLVR, data/deepscaler_dataset.py)."""


class Config(BaseModel):
    """Base of all configuration: frozen, and strict about unknown keys and about types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AdapterConfig(Config):
    """A low-rank adapter (LoRA, arXiv 2106.09685): beside frozen weights, the only thing that is trained."""

    kind: Literal["lora"] = Field("lora", description="which adapter; there is one kind")
    r: int = Field(32, ge=1, description="its rank")
    alpha: float = Field(64.0, gt=0, description="its output is scaled by alpha / r")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="names of the layers that get one, as [q_proj, v_proj]; all-linear: every one but the head",
    )

    @field_validator("targets")
    @classmethod
    def _names_some(cls, targets: list[str] | str) -> list[str] | str:
        if not targets:
            raise ValueError("targets: none; name layers, as [q_proj, v_proj], or say all-linear")
        return sorted(set(targets)) if isinstance(targets, list) else targets  # their order means nothing


class ModelConfig(Config):
    """The policy that is trained, and the reference that it starts from."""

    path: str = Field(min_length=1, description="`tiny:qwen2` or `tiny:llama` (shipped), a local folder, or a hub id")
    trust_remote_code: bool = Field(
        False, description="run Python code that the model's folder or repository brings: whatever its author wants"
    )
    revision: str | None = Field(None, description="commit hash of a hub model; anything else is resolved by `run`")
    dtype: Literal["float32", "float64", "bfloat16"] = Field("float32", description="of the master weights")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no", description="bf16: compute in bfloat16, optimise weights of `dtype`"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where torch sees one")
    adapter: AdapterConfig | None = Field(
        None, description="train a low-rank adapter in place of the weights; the reference is the model without it"
    )


Template = Literal["auto", "chat", "plain", "qwen2.5-math", "qwen2.5", "r1-distill", "llama-3.2"]


class ShotConfig(Config):
    """One worked problem that stands before the one that is asked: a turn of the chat, or text."""

    problem: str | None = Field(None, min_length=1, description="its text; or else `row`")
    row: str | None = Field(None, min_length=1, description="`set:row`, as dsr_sub:124, whose text it is")
    completion: str = Field(min_length=1, description="the worked answer")

    @model_validator(mode="after")
    def _one_problem(self) -> "ShotConfig":
        if (self.problem is None) == (self.row is None):
            raise ValueError("a shot has either `problem` (its text) or `row` (as dsr_sub:124)")
        return self


class PromptConfig(Config):
    """How a problem becomes the text that the model continues, and what ends that."""

    template: Template = Field(
        "auto",
        description="chat: the tokenizer's own template; plain: text and a newline; auto: chat where it has one; "
        "or that of a model family, written out",
    )
    eval_template: Template | None = Field(
        None, description="of evaluations; absent: `template` (released, Qwen models: qwen2.5-math)"
    )
    train_suffix: str = Field(TRAIN_SUFFIX, description="added to training problems that do not end with it already")
    eval_suffix: str = Field("", description="added to evaluation problems (released: none)")
    shots: list[ShotConfig] = Field(
        default_factory=list, description="worked problems before the one that is asked, in training and evaluation"
    )
    stop: Literal["turn", "eos"] = Field(
        "turn",
        description="eos: what generation config and tokenizer call the end; turn: also every token with which the "
        "tokenizer's chat template, or a family's, ends an answer",
    )


class RewardConfig(Config):
    """What is rewarded: the outcome, or a control."""

    kind: Literal["outcome", "format", "random", "majority"] = Field(
        "outcome",
        description="outcome: the boxed answer is right; format: there is one; random: a seeded coin; majority: it is "
        "the commonest of the example's answers in the step",
    )
    probability: float = Field(0.5, ge=0, le=1, description="of a reward, in the random arm")
    timeout_s: float = Field(5.0, gt=0, le=60, description="deadline of one answer's grading; past it: ungraded")


class RolloutConfig(Config):
    """How a step's completions are sampled."""

    engine: Literal["lockstep", "hf"] = Field("lockstep", description="hf: plain `generate`, slower, for comparison")
    num_groups: int = Field(128, ge=1, description="groups a step; several examples share them in turn")
    group_size: int = Field(8, ge=2, description="completions that share one baseline (released: 8, not 1024)")
    temperature: float = Field(0.6, gt=0, le=10, description="also divides the logits of the loss")
    max_tokens: int = Field(3072, ge=1, description="of one completion")
    kv_gib: float | None = Field(
        None,
        gt=0,
        description="memory for keys and values; completions that do not fit it together are decoded in waves; absent: "
        "half of what a GPU has left, 4 on a CPU",
    )


class AdvantageConfig(Config):
    """How rewards of one group become advantages."""

    baseline: Literal["group", "none"] = Field(
        "group", description="group: reward minus the group's mean (GRPO); none: +1 for a reward of 1, -1 for 0"
    )
    positive_weight: float = Field(1.0, ge=0, description="multiplies advantages above 0; 0: negative samples only")
    negative_weight: float = Field(1.0, ge=0, description="multiplies advantages below 0; 0: positive samples only")
    normalize_std: bool = Field(True, description="divide by the group's standard deviation (ddof 1)")
    eps: float = Field(1e-6, ge=0, description="added to that standard deviation")


class LossConfig(Config):
    """pg_coef x clipped surrogate + kl_coef x k3 - entropy_coef x entropy."""

    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="over the whole step; constant: Dr. GRPO's num_sequences x max_tokens"
    )
    clip_low: float = Field(0.2, ge=0, le=1, description="the ratio earns no more below 1 - clip_low")
    clip_high: float = Field(0.2, ge=0, description="... nor above 1 + clip_high")
    kl_coef: float = Field(0.001, ge=0, description="weight of the k3 estimate of KL(policy | reference)")
    entropy_coef: float = Field(0.001, description="weight of the entropy bonus; negative punishes entropy")
    pg_coef: float = Field(1.0, ge=0, description="weight of the policy gradient; 0 in the ablations")


class OptimConfig(Config):
    """AdamW, at a constant learning rate."""

    lr: float = Field(1e-6, gt=0, le=1, description="constant, no warm-up")
    weight_decay: float = Field(0.01, ge=0, description="decoupled")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="AdamW's denominator")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class TrainConfig(Config):
    """The loop."""

    num_steps: int = Field(2000, ge=0, description="rollouts, each with its updates; 0: evaluation only")
    updates_per_rollout: int = Field(1, ge=1, description="optimiser steps a rollout (paper's text: 8; its code: 1)")
    microbatch_tokens: int = Field(
        24_000, ge=1, description="tokens of one forward and backward; moves no more than a gradient's last digits"
    )
    activation_checkpointing: bool = Field(
        False, description="compute each layer twice instead of keeping what it computed: slower, in far less memory"
    )


class SuiteConfig(Config):
    """One evaluation suite and its sampling rule."""

    source: str | None = Field(
        None,
        description="a known set, or a .jsonl or .parquet path or URL; absent: the built-in suite of that name",
    )
    num_problems: int | None = Field(None, ge=1, description="generated: a category; files: the first n rows")
    samples: int | None = Field(
        None, ge=1, description="completions a problem (k of avg@k and pass@k); absent: the built-in suite's, else 1"
    )
    temperature: float | None = Field(None, ge=0, le=10, description="0: greedy; absent: the built-in suite's, else 0")
    max_tokens: int | None = Field(None, ge=1, description="of one completion; absent: rollout.max_tokens")
    every_steps: int | None = Field(None, ge=1, description="absent: eval.every_steps")
    suffix: str | None = Field(None, description="added to its problems; absent: prompt.eval_suffix")
    template: Template | None = Field(None, description="absent: prompt.eval_template, else prompt.template")


SuiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\- ]+$")]


class EvalConfig(Config):
    """When and on what the policy is evaluated; always also after the last step."""

    every_steps: int = Field(20, ge=1, description="default of the suites")
    also_at: list[int] = Field(default_factory=list, description="further steps at which every suite is run")
    at_start: bool = Field(True, description="evaluate before step 1; `gain` is measured against it")
    suites: dict[SuiteName, SuiteConfig] = Field(default_factory=dict, description="suite name -> its sampling rule")


class CheckpointConfig(Config):
    """What a trial keeps on disk."""

    every_steps: int = Field(20, ge=1, description="a checkpoint that an interrupted trial continues from")
    every_s: float | None = Field(
        None, gt=0, description="... and one as soon as the last is so many seconds old: what a spot machine may cost"
    )
    keep: Literal["none", "weights", "full"] = Field(
        "weights",
        description="of a finished trial: nothing, its weights, or also its optimiser (a longer run continues)",
    )


class RowExample(Config):
    """A row with another label than its own."""

    row: str = Field(min_length=1, description="`set:row`, as dsr_sub:124")
    answer: str = Field(min_length=1, description="the label that it is trained with; both graders must refuse it")


class SetExamples(Config):
    """Rows of a set: some drawn by a seed, or all; with a share of wrong labels."""

    set: str = Field(min_length=1, description="dsr_sub, arithmetic, a path, ...")
    random: int | None = Field(None, ge=1, description="so many rows, drawn without replacement; absent: all")
    wrong: float = Field(0.0, ge=0, le=1, description="share of them whose label is made wrong, as the paper does")
    seed: int = Field(0, ge=0, description="of the draw and of the wrong labels; not the trial's")


class WrittenExample(Config):
    """A problem that is in no set."""

    problem: str = Field(min_length=1, description="its text")
    answer: str = Field(min_length=1, description="its label")


Example = str | RowExample | SetExamples | WrittenExample
_EXAMPLE_KEYS: dict[str, type[Config]] = {"row": RowExample, "set": SetExamples, "problem": WrittenExample}


def _read_example(value: Any) -> Any:
    """One item of `examples`, by the one form that it was meant to have.

    Raises:
        ValueError: it has none of the four forms; says which there are.
    """
    if isinstance(value, str | Config):
        return value
    kind = next((k for name, k in _EXAMPLE_KEYS.items() if isinstance(value, dict) and name in value), None)
    if kind is None:
        raise ValueError(
            f'{value!r} is no example; write "set:row", "set", {{row: set:row, answer: ...}}, '
            "{set: ..., random: ..., seed: ...} or {problem: ..., answer: ...}"
        )
    unknown = [name for name in value if name not in kind.model_fields]
    if unknown:
        raise ValueError(f"{value}: unknown key {unknown[0]!r}; there is {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        finding = error.errors()[0]
        name = ".".join(str(part) for part in finding["loc"])
        if name == "answer" and finding["type"] == "string_type":
            mend = f'; write answer: "{finding["input"]}"'
            raise ValueError(f"{value}: an answer is text, not {finding['input']!r}{mend}") from error
        raise ValueError(f"{value}: {name}: {finding['msg'].lower()}") from error


class ScriptFaultConfig(Config):
    """Something that befalls a scripted trial."""

    at: int = Field(ge=1, description="the step before whose report it happens")
    do: Literal["crash", "exit", "hang", "oom", "nan", "config", "data", "leak"] = Field(
        description="raise; end the process; never report again; run out of memory; lose its loss; find its "
        "settings or data wrong; keep memory for itself"
    )
    code: int = Field(1, description="exit: the process's status; below 0: the signal that kills it")
    mib: int = Field(64, ge=1, description="leak: memory kept from this step on")
    attempts: int | None = Field(None, ge=1, description="only in the first so many attempts; absent: in all")


class ScriptConfig(Config):
    """What a trial does that trains nothing: steps that report, and faults. It tries a cluster without a model."""

    step_s: float = Field(0.0, ge=0, description="seconds a step takes")
    metrics: int = Field(1, ge=1, description="metrics a step")
    bowl: dict[str, float] = Field(
        default_factory=dict,
        description="path of a setting -> its best value: `script/bowl` is at most 1, less by the squared distance "
        "from these in powers of ten",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of script/bowl between seeds")
    faults: list[ScriptFaultConfig] = Field(default_factory=list, description="what befalls it")


class TrialConfig(Config):
    """One trial, whole: what `train(config, state)` gets, and what a sweep file's `trial:` and `set:` fill in."""

    model: ModelConfig = Field(description="what is trained")
    script: ScriptConfig | None = Field(None, description="in place of training: no model, examples or suites are used")
    prompt: PromptConfig = Field(default_factory=PromptConfig, description="problem -> text")
    examples: list[Example] = Field(
        default_factory=list,
        description="what it is trained on: `set:row`, as dsr_sub:124 or arithmetic:47+38; `set`, whole; "
        "{row, answer}; {set, random, wrong, seed}; {problem, answer}",
    )
    reward: RewardConfig = Field(default_factory=RewardConfig, description="the arm")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="sampling")
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig, description="rewards -> advantages")
    loss: LossConfig = Field(default_factory=LossConfig, description="the objective")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW")
    train: TrainConfig = Field(default_factory=TrainConfig, description="the loop")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="suites; not part of the trial key")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="not part of the trial key")

    @model_validator(mode="before")
    @classmethod
    def _a_script_has_no_model(cls, data: Any) -> Any:
        is_scripted = isinstance(data, dict) and data.get("script") is not None
        return {"model": {"path": "script"}, **data} if is_scripted else data

    @field_validator("examples", mode="before")
    @classmethod
    def _examples_have_a_form(cls, examples: Any) -> Any:
        if not isinstance(examples, list):
            raise ValueError(f"a list of examples, as [dsr_sub:124], not {examples!r}")
        read = [_read_example(example) for example in examples]
        if any(example in read[:index] for index, example in enumerate(read)):
            raise ValueError("an example stands twice; each shares the groups in turn already")
        return read

    @model_validator(mode="after")
    def _is_whole(self) -> "TrialConfig":
        if self.script is not None and (self.examples or self.eval.suites or self.model.path != "script"):
            raise ValueError("script: a scripted trial has no model, examples or suites; leave them out")
        if not self.examples and self.train.num_steps and self.script is None:
            raise ValueError("examples: none; name at least one to train on, or set train.num_steps: 0")
        num_groups, num_updates = self.rollout.num_groups, self.train.updates_per_rollout
        if num_groups % num_updates:
            raise ValueError(
                f"train.updates_per_rollout: {num_updates} does not divide rollout.num_groups {num_groups}; groups "
                "stay whole"
            )
        return self
