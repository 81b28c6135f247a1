"""Every setting of one trial: names, types, bounds and defaults. Nothing here runs.

The defaults are the released one-shot recipe (One-Shot-RLVR, commit 21ed529). Where the paper's text and its code
differ, the default is the code's value, and the description of the field says so. One default differs from the recipe:
`model.mixed_precision` is `no`, which works on every machine; sweeps on GPUs set bf16.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from oneshot.config.advantage import AdvantageConfig, CriticConfig
from oneshot.config.checkpoint import CheckpointConfig
from oneshot.config.evaluation import EvalConfig, Template
from oneshot.config.examples import Example, read_example
from oneshot.config.fields import (
    MAX_COUNT,
    MAX_FACTOR,
    MAX_GIB,
    MAX_ROWS,
    MAX_S,
    MAX_STEPS,
    MAX_TOKENS,
    Config,
    exactly_one,
)
from oneshot.config.loss import LossConfig
from oneshot.config.model import ModelConfig
from oneshot.config.reward import RewardConfig

TRIAL_VERSION = 4  # part of every trial key. Raise it whenever a change to the code changes what a trial computes.

MAX_RESAMPLES = 100

TRAIN_SUFFIX = "Let's think step by step and output the final answer within \\boxed{}."
"""End of the released training prompts (One-Shot-RLVR, data/deepscaler_dataset.py)."""


class ShotConfig(Config):
    """A worked problem before the problem in the prompt, as a turn of the chat or as text."""

    problem: str | None = Field(None, min_length=1, description="Text of the problem, unless `row` is set")
    row: str | None = Field(None, min_length=1, description="Row whose text is the problem, such as `dsr_sub:124`")
    completion: str = Field(min_length=1, description="The worked answer")

    _one_problem = exactly_one(
        ("problem", "row"), "a shot needs exactly one of `problem` (its text) and `row` (such as dsr_sub:124)"
    )


ThinkingStyle = Literal["auto", "tags", "turns"]


class PromptConfig(Config):
    """The rules that turn a problem into the text that the model continues, and that end a completion."""

    template: Template = Field(
        "auto",
        description="Template of the prompt. `chat`: the tokenizer's own. `plain`: the text and a newline. `auto`: "
        "`chat` if the tokenizer has a template, else `plain`. A text with `{problem}` is itself the template. The "
        "other values are templates of model families (docs/own-parts.md)",
    )
    eval_template: Template | None = Field(
        None, description="Template of evaluations. Absent: `template` (released, Qwen models: qwen2.5-math)"
    )
    train_suffix: str = Field(
        TRAIN_SUFFIX, description="Text added to training problems that do not already end with it"
    )
    eval_suffix: str = Field("", description="Text added to evaluation problems (released: none)")
    shots: list[ShotConfig] = Field(
        default_factory=list, description="Worked problems before the problem, in training and evaluation"
    )
    thinking: ThinkingStyle = Field(
        "auto",
        description="How a solution with thinking is written. `tags`: <think>...</think> before the solution. `turns`: "
        "s1's think and answer turns. `auto`: `turns` with the template qwen2.5, else `tags`",
    )
    stop: Literal["turn", "eos"] = Field(
        "turn",
        description="Tokens that end a completion. `eos`: the end tokens of generation config and tokenizer. `turn`: "
        "also the tokens that end an answer in the chat template of the tokenizer or family",
    )


class VllmConfig(Config):
    """The settings of vLLM, for `rollout.engine: vllm`."""

    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the GPU that vLLM may use while it samples. Absent: its weights and `rollout.kv_gib`",
    )
    tensor_parallel: int = Field(
        1, ge=1, le=64, description="Processes of the trial that share one engine; each has a part of its weights"
    )
    max_num_seqs: int = Field(1024, ge=1, le=MAX_ROWS, description="Largest number of completions in a batch")
    enforce_eager: bool = Field(
        False, description="Sample without CUDA graphs and compilation. It starts faster and samples slower"
    )
    quantization: Literal["none", "fp8"] = Field(
        "none",
        description="Precision of the sampler's weights. With `fp8` it draws from another distribution than the "
        "trained one",
    )


class RolloutConfig(Config):
    """The rules that sample a step's completions."""

    engine: Literal["auto", "lockstep", "vllm", "hf"] = Field(
        "auto",
        description="Sampling engine. `auto`: `vllm` for a trial with a GPU, if vLLM is installed where the sweep "
        "first runs and supports the model; else `lockstep`. `hf`: plain `generate`, which is slower, for comparison",
    )
    vllm: VllmConfig = Field(default_factory=VllmConfig, description="Settings of vLLM")
    correction: Literal["none", "token"] = Field(
        "none",
        description="How the loss corrects for a sampler that differs from the trainer. `token`: each token's "
        "advantage is weighted by their ratio of probabilities, at most 2 (truncated importance sampling)",
    )
    resample: int = Field(
        0,
        ge=0,
        le=MAX_RESAMPLES,
        description="How many times at most a group whose rewards are all equal is sampled again (DAPO's dynamic "
        "sampling). Groups whose rewards are still equal are left out of the update",
    )
    num_groups: int = Field(128, ge=1, le=MAX_COUNT, description="Groups a step. Several examples take turns")
    group_size: int = Field(
        8, ge=2, le=MAX_COUNT, description="Completions that share one baseline (released: 8, not 1024)"
    )
    temperature: float = Field(
        0.6, gt=0, le=10, description="Sampling temperature, which also divides the logits in the loss"
    )
    max_tokens: int = Field(3072, ge=1, le=MAX_TOKENS, description="Largest number of tokens in a completion")
    kv_gib: float | None = Field(
        None,
        gt=0,
        le=MAX_GIB,
        description="Memory for keys and values. Completions wait while it is full. Absent: half of what weights and "
        "optimiser leave of a GPU, 4 on a CPU",
    )


class ScheduleConfig(Config):
    """How the learning rate changes over the optimiser steps of a training."""

    kind: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Course after the warm-up, from `optim.lr` to `final` times it"
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="Share of the optimiser steps in which the learning rate rises from 0"
    )
    final: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, as a share of `optim.lr`")

    @model_validator(mode="after")
    def _ends_somewhere(self) -> "ScheduleConfig":
        if self.kind == "constant" and self.final:
            raise ValueError("final has no effect with kind: constant; remove it, or choose linear or cosine")
        return self

    @property
    def has_length(self) -> bool:
        """Return whether the learning rate depends on the number of steps."""
        return self.kind != "constant" or self.warmup > 0


class OptimConfig(Config):
    """The optimiser: AdamW."""

    lr: float = Field(1e-6, gt=0, le=1, description="Learning rate, or its peak with a schedule")
    schedule: ScheduleConfig = Field(
        default_factory=ScheduleConfig, description="Schedule of the learning rate. The default keeps it constant"
    )
    weight_decay: float = Field(0.01, ge=0, le=MAX_FACTOR, description="Decoupled weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment")
    eps: float = Field(1e-8, gt=0, le=1, description="Number added to AdamW's denominator")
    grad_clip: float = Field(1.0, gt=0, le=MAX_FACTOR, description="Largest norm of the gradient")


class TrainConfig(Config):
    """The training loop."""

    method: Literal["grpo", "sft"] = Field(
        "grpo",
        description="`grpo`: reinforcement learning on sampled completions. `sft`: supervised fine-tuning on solutions",
    )
    num_steps: int = Field(
        2000,
        ge=0,
        le=MAX_STEPS,
        description="Number of rollouts, each with its updates; with sft, of optimiser steps. 0: evaluation only",
    )
    num_epochs: float | None = Field(
        None, gt=0, le=MAX_STEPS, description="sft: passes over all solutions, in place of num_steps"
    )
    batch_size: int = Field(
        16, ge=1, le=MAX_COUNT, description="sft: solutions in an optimiser step. An epoch's last step may have fewer"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        le=MAX_TOKENS,
        description="sft: largest number of tokens of a prompt and its solution. Absent: the model's positions",
    )
    too_long: Literal["refuse", "cut"] = Field(
        "refuse", description="sft: what happens to longer solutions. `cut`: their end is not learned"
    )
    updates_per_rollout: int = Field(
        1, ge=1, le=MAX_COUNT, description="Optimiser steps for each rollout (the paper's text: 8; its code: 1)"
    )
    microbatch_tokens: int = Field(
        24_000,
        ge=1,
        le=100 * MAX_TOKENS,
        description="Tokens of one forward and backward pass. It changes at most the last digits of a gradient",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute each layer twice instead of storing its activations: slower, with far less memory"
    )


class ScriptFaultConfig(Config):
    """A fault of a scripted trial."""

    at: int = Field(ge=1, le=MAX_STEPS, description="Step before whose report the fault happens")
    do: Literal["crash", "exit", "hang", "oom", "nan", "config", "data", "leak"] = Field(
        description="Kind of fault: raise an error, end the process, stop reporting, run out of memory, report a loss "
        "of NaN, fail on wrong settings or on wrong data, or leak memory"
    )
    code: int = Field(1, ge=-64, le=255, description="`exit`: status of the process. Below 0: the signal that kills it")
    mib: int = Field(64, ge=1, le=1024 * MAX_GIB, description="`leak`: MiB that are kept from this step on")
    attempts: int | None = Field(
        None,
        ge=1,
        le=MAX_COUNT,
        description="Number of first attempts in which the fault happens. Absent: all attempts",
    )


class ScriptConfig(Config):
    """A trial that reports steps and faults without training. It tests a cluster without a model."""

    step_s: float = Field(0.0, ge=0, le=MAX_S, description="Seconds a step")
    metrics: int = Field(1, ge=1, le=MAX_COUNT, description="Metrics a step")
    bowl: dict[str, Annotated[float, Field(ge=-MAX_FACTOR, le=MAX_FACTOR)]] = Field(
        default_factory=dict,
        description="Path of a setting -> its best value. `script/bowl` is 1 minus the squared distance from these "
        "values in powers of ten",
    )
    noise: float = Field(0.0, ge=0, le=MAX_FACTOR, description="Standard deviation of script/bowl between seeds")
    faults: list[ScriptFaultConfig] = Field(default_factory=list, description="Faults of the trial")


class TrialConfig(Config):
    """All settings of one trial, which a sweep file's `trial` and `set` fill in."""

    model: ModelConfig = Field(description="The model to train")
    script: ScriptConfig | None = Field(
        None, description="A script to run instead of training, without model, examples or suites"
    )
    prompt: PromptConfig = Field(default_factory=PromptConfig, description="How problems become prompts")
    examples: list[Example] = Field(
        default_factory=list,
        description="Examples to train on: `set:row`, such as dsr_sub:124 or arithmetic:47+38; `set`, for all its "
        "rows; {row, answer}; {set, random, wrong, seed}; or {problem, answer}; each mapping may have a `solution`. "
        "A set may be a function, such as my_lab.sets:hard, whose row 3 is my_lab.sets:hard:3",
    )
    reward: RewardConfig = Field(default_factory=RewardConfig, description="What is rewarded")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How completions are sampled")
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig, description="How rewards become advantages")
    critic: CriticConfig | None = Field(None, description="The critic. Only with `advantage.baseline: critic`")
    loss: LossConfig = Field(default_factory=LossConfig, description="The loss")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="AdamW")
    train: TrainConfig = Field(default_factory=TrainConfig, description="The training loop")
    eval: EvalConfig = Field(default_factory=EvalConfig, description="Evaluations; not part of the trial key")
    checkpoint: CheckpointConfig = Field(
        default_factory=CheckpointConfig, description="Checkpoints; not part of the trial key"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_script_has_no_model(cls, data: Any) -> Any:
        is_scripted = isinstance(data, dict) and data.get("script") is not None
        return {"model": {"path": "script"}, **data} if is_scripted else data

    @model_validator(mode="before")
    @classmethod
    def _a_critic_has_defaults(cls, data: Any) -> Any:
        advantage = data.get("advantage") if isinstance(data, dict) else None
        baseline = advantage.get("baseline") if isinstance(advantage, dict) else getattr(advantage, "baseline", None)
        return {**data, "critic": {}} if baseline == "critic" and data.get("critic") is None else data

    @field_validator("examples", mode="before")
    @classmethod
    def _examples_have_a_form(cls, examples: Any) -> Any:
        if not isinstance(examples, list):
            raise ValueError(f"examples must be a list, such as [dsr_sub:124], not {examples!r}")
        read = [read_example(example) for example in examples]
        if any(example in read[:index] for index, example in enumerate(read)):
            raise ValueError("an example appears twice; keep one, as the examples share the groups evenly")
        return read

    @model_validator(mode="after")
    def _is_whole(self) -> "TrialConfig":
        if self.script is not None and (self.examples or self.eval.suites or self.model.path != "script"):
            raise ValueError("script: a scripted trial has no model, examples or suites; remove them")
        if not self.examples and self.train.num_steps and self.script is None:
            raise ValueError("examples: there are none; name at least one to train on, or set train.num_steps: 0")
        self._check_method()
        return self

    def _check_method(self) -> None:
        train, num_groups = self.train, self.rollout.num_groups
        if self.critic is not None and self.advantage.baseline != "critic":
            raise ValueError("critic: has no effect without advantage.baseline: critic; set it, or remove critic")
        if self.critic is not None and train.method == "sft":
            raise ValueError("advantage.baseline: critic has no effect with train.method: sft; remove it")
        if self.optim.schedule.has_length and train.num_epochs is None and "num_steps" not in train.model_fields_set:
            raise ValueError(
                f"optim.schedule: {self.optim.schedule.kind} needs the length of the training; set train.num_steps or "
                "train.num_epochs"
            )
        if train.method == "sft":
            if train.num_epochs is not None and "num_steps" in train.model_fields_set:
                raise ValueError("train.num_epochs: train.num_steps is set, too; keep one of them")
            if self.loss.aggregation == "constant":
                raise ValueError("loss.aggregation: constant is for grpo; use token_mean or sequence_mean with sft")
            return
        if train.num_epochs is not None:
            raise ValueError("train.num_epochs: grpo has no epochs; set train.num_steps, or train.method: sft")
        if self.advantage.baseline == "none" and self.reward.certainties:
            raise ValueError(
                "advantage.baseline: none is for rewards of 1 and 0, and rewards for certainty are other numbers; set "
                "advantage.baseline: group"
            )
        if self.rollout.resample and self.advantage.baseline != "group":
            raise ValueError(
                f"rollout.resample: {self.rollout.resample} needs advantage.baseline: group; with baseline "
                f"{self.advantage.baseline}, groups with equal rewards also train the policy"
            )
        if self.advantage.baseline == "none" and self.reward.overlong is not None:
            raise ValueError(
                "advantage.baseline: none is for rewards of 1 and 0, and reward.overlong makes other numbers; set "
                "advantage.baseline: group"
            )
        overlong, max_tokens = self.reward.overlong, self.rollout.max_tokens
        if overlong is not None and overlong.buffer > max_tokens:
            raise ValueError(
                f"reward.overlong.buffer: {overlong.buffer} is more than rollout.max_tokens ({max_tokens}); lower it"
            )
        if self.critic is not None and self.model.mixed_precision == "fp16":
            raise ValueError(
                "model.mixed_precision: fp16 cannot be combined with a critic, whose loss is not scaled; use bf16"
            )
        if self.critic is not None and 0 < train.num_steps <= self.critic.warmup_steps:
            raise ValueError(
                f"critic.warmup_steps: {self.critic.warmup_steps} leaves none of the {train.num_steps} steps to the "
                "policy; lower it"
            )
        num_updates = train.updates_per_rollout
        if num_groups % num_updates:
            raise ValueError(
                f"train.updates_per_rollout: {num_updates} does not divide rollout.num_groups ({num_groups}); change "
                "one of them, as groups are not split"
            )

    @property
    def has_reference(self) -> bool:
        """Return whether the loss compares with the frozen start."""
        return self.train.method == "grpo" and self.train.num_steps > 0 and self.loss.kl_coef != 0

    @property
    def trains_critic(self) -> bool:
        """Return whether a critic is trained beside the policy."""
        return self.critic is not None and self.train.num_steps > 0
