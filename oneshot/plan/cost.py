"""A trial -> its expected cost: tokens, seconds a step and GPU-hours.

The seconds a step come from `cost.step_s`; or else from the median of finished trainings of the same shape in the
store; or else from an estimate: floating-point operations divided by those of an 80 GB H100 in bfloat16 at an assumed
efficiency, which was not measured (docs/log.md).
"""

from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from pydantic import ValidationError

from oneshot.config.sweep import CostConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.shapes import ModelShape, model_shape
from oneshot.store.store import Store
from oneshot.tasks.benchmarks import Suite, due_steps
from oneshot.tasks.problems import text_digest
from oneshot.tasks.solutions import size_of_solutions

PEAK_FLOPS = 989e12  # peak of an H100 SXM in bfloat16, dense
EFFICIENCY = 0.2  # assumed share of the peak, for rollout and update together, and for evaluation
MEAN_TOKENS = 900  # expected length of a completion (arXiv 2504.20571, Table 19: about 1,000 on six suites)
CHARACTERS_A_TOKEN = 3  # assumed of written solutions: a plan has no tokenizer to count with
Basis = Literal["stated", "measured", "estimated", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The expected cost of one trial."""

    train_tokens: int = 0
    eval_tokens: int = 0
    step_s: float | None = None
    gpu_hours: float | None = None  # none if nothing is known about the model
    basis: Basis = "unknown"


def estimate(
    config: TrialConfig, suites: tuple[Suite, ...], cost: CostConfig, *, gpus: float, measured_s: float | None
) -> Cost:
    """Return the cost of one trial on `gpus` GPUs, which are assumed to share its work evenly."""
    rollout, steps = config.rollout, config.train.num_steps
    length = cost.mean_tokens or min(MEAN_TOKENS, rollout.max_tokens)
    step_tokens = rollout.num_groups * rollout.group_size * length
    draws = 1 + rollout.resample  # at most: how many groups are drawn again is not known
    if config.train.method == "sft":
        step_tokens = _learned_tokens(config, cost)
    eval_tokens = sum(
        (suite.count or 0) * suite.samples * min(length, suite.max_tokens) * len(due_steps(suite, config))
        for suite in suites
    )
    shape = model_shape(config)
    step_s, basis = _step_s(config, shape, step_tokens, cost, gpus, measured_s)
    hours = None
    if (step_s is not None or steps == 0) and (shape is not None or eval_tokens == 0 or cost.step_s is not None):
        eval_s = 0.0 if shape is None else _seconds(2 * shape.num_params * eval_tokens, gpus)
        hours = gpus * (steps * (step_s or 0.0) + eval_s) / 3600
    return Cost(
        train_tokens=steps * step_tokens * (draws if config.train.method == "grpo" else 1),
        eval_tokens=eval_tokens,
        step_s=step_s,
        gpu_hours=hours if gpus else 0.0,
        basis=basis if gpus else "stated",
    )


def _step_s(
    config: TrialConfig, shape: ModelShape | None, tokens: int, cost: CostConfig, gpus: float, measured_s: float | None
) -> tuple[float | None, Basis]:
    if cost.step_s is not None:
        return cost.step_s, "stated"
    if measured_s is not None:
        return measured_s, "measured"
    if shape is None or not gpus:
        return None, "unknown"
    # each draw of a rollout 2N a token, update 6N; 2N for each of the log-probabilities that are computed (reference,
    # old, and those from which the ratios of whole completions come), and for values
    updates = 1 if config.critic is None or config.critic.share == "body" else 2  # of the policy, and of the critic
    passes = (6 + 2 * config.train.activation_checkpointing) * updates  # with each layer's forward again
    if config.train.method == "grpo":
        passes += 2 * (1 + config.rollout.resample) + 2 * config.has_reference + 2 * (config.critic is not None)
        if config.train.updates_per_rollout > 1:
            passes += 2 + 2 * (config.loss.ratio == "sequence")
    return _seconds(passes * shape.num_params * tokens, gpus), "estimated"


def _learned_tokens(config: TrialConfig, cost: CostConfig) -> int:
    """Return the tokens of the solutions that a step of SFT learns: a batch of them, or all if there are fewer."""
    number, characters = size_of_solutions(config.examples)
    mean = fmean(characters) / CHARACTERS_A_TOKEN if characters else MEAN_TOKENS
    longest = config.train.max_length or config.model.max_positions or mean
    batch = min(config.train.batch_size, number or config.train.batch_size)
    return int(batch * (cost.mean_tokens or min(mean, longest)))


def _seconds(operations: float, gpus: float) -> float:
    return operations / (PEAK_FLOPS * EFFICIENCY * gpus) if gpus else 0.0


TrainingShape = tuple[object, ...]
"""What two trainings must have in common so that one's seconds a step predict the other's."""


def training_shape(config: TrialConfig, *, gpus: float) -> TrainingShape:
    """Return the model, its precision, its trained part, and the amount sampled and updated each step."""
    model, rollout, train = config.model, config.rollout, config.train
    adapter = None if model.adapter is None else model.adapter.model_dump_json()
    critic = None if config.critic is None else config.critic.share
    trained = (adapter, train.activation_checkpointing, config.has_reference, critic)
    if train.method == "sft":  # the solutions' lengths decide the time
        examples = text_digest(config.model_dump_json(include={"examples"}))
        amount: TrainingShape = (train.batch_size, train.max_length, examples)
    else:
        sampled = (rollout.num_groups, rollout.group_size, rollout.max_tokens, rollout.resample)
        amount = (*sampled, train.updates_per_rollout, config.loss.ratio)
    return (model.path, model.dtype, model.mixed_precision, rollout.engine, *amount, *trained, gpus)


def measured_steps(store: Store) -> dict[TrainingShape, float]:
    """Return the median seconds a step of the store's finished trainings, by shape.

    On CPUs a step's share of the whole training counts, with evaluations and loading.
    """
    seconds_by_shape: dict[TrainingShape, list[float]] = {}
    for key in store.trainings():
        folder = store.trial(key)
        description, result = folder.read_json("trial.json"), folder.result()
        if description is None or result is None or result.outcome != "finished" or not result.steps_done:
            continue
        try:
            config = TrialConfig.model_validate(description["config"])
        except ValidationError:  # an older version wrote it, with other settings
            continue
        gpus = description.get("gpus", 0)
        seconds = (
            [row.metrics["perf/step_s"] for row in folder.rows() if "perf/step_s" in row.metrics]
            if gpus
            else [folder.spent_ms() / 1000 / result.steps_done]
        )
        seconds_by_shape.setdefault(training_shape(config, gpus=gpus), []).extend(seconds)
    return {shape: median(seconds) for shape, seconds in seconds_by_shape.items() if seconds}
