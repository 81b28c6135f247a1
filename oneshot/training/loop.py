"""Config and state -> one `StepMetrics` per step of a trial, whatever method trains it, with the evaluations due."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from oneshot.config.trial import TrialConfig
from oneshot.tasks.benchmarks import due_steps
from oneshot.training import grpo, sft
from oneshot.training.checkpoint import load_weights
from oneshot.training.evaluate import evaluate
from oneshot.training.metrics import Evaluation, StepMetrics
from oneshot.training.state import TrainingState

METHODS: dict[str, Callable[[TrialConfig, TrainingState], StepMetrics]] = {
    "grpo": grpo.train_step,
    "sft": sft.train_step,
}


def train(config: TrialConfig, state: TrainingState) -> Iterator[StepMetrics]:
    """Run the trial from `state` to its last step, and yield after each step.

    Raises TrialError: logits, the loss or its gradient are not finite.
    """
    assert config.train.num_epochs is None, "a plan turns epochs into steps"
    if not state.started:
        evaluations = _evaluate(config, state)
        state.started = True
        if evaluations:
            yield StepMetrics(step=0, metrics=_merged(evaluations), evaluations=evaluations, sampled=(), visits={})
    train_step = METHODS[config.train.method]
    while state.step < config.train.num_steps:
        step = train_step(config, state)
        memory = {"system/rss_gib": sum(state.world.gather([psutil.Process().memory_info().rss / 2**30]))}
        evaluations = _evaluate(config, state)
        yield replace(step, metrics=step.metrics | memory | _merged(evaluations), evaluations=evaluations)


def evaluate_kept(
    config: TrialConfig, state: TrainingState, kept: Mapping[int, Path], *, done: Collection[tuple[str, int]]
) -> Iterator[StepMetrics]:
    """Run the evaluations due at step 0 and at steps with kept weights, except those in `done`."""
    for step in sorted({0, *kept}):
        if step in kept:
            load_weights(state, kept[step])
        evaluations = _evaluate(config, state, done=done)
        if evaluations:
            yield StepMetrics(step=step, metrics=_merged(evaluations), evaluations=evaluations, sampled=(), visits={})


def _evaluate(
    config: TrialConfig, state: TrainingState, *, done: Collection[tuple[str, int]] = ()
) -> tuple[Evaluation, ...]:
    """Run the suites that are due after this step; accuracies at step 0 become the baseline of `gain`."""
    evaluations = []
    for suite in state.suites:
        if state.step not in due_steps(suite, config) or (suite.digest, state.step) in done:
            continue
        state.engine.wake(state.policy, state.weights)
        evaluation = evaluate(
            state.policy,
            suite,
            engine=state.engine,
            grader=state.grader,
            shots=state.shots,
            seed=state.seed,
            step=state.step,
            world=state.world,
        )
        accuracy = evaluation.metrics[f"eval/{suite.name}/pass_at_1"]
        if state.step == 0:
            state.baseline[suite.name] = accuracy
        if suite.name in state.baseline:
            evaluation.metrics[f"eval/{suite.name}/gain"] = accuracy - state.baseline[suite.name]
        evaluations.append(evaluation)
    return tuple(evaluations)


def _merged(evaluations: tuple[Evaluation, ...]) -> dict[str, float]:
    return {name: value for evaluation in evaluations for name, value in evaluation.metrics.items()}
