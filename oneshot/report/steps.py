"""A run and one of `start`, `last`, `best`, `saturation` -> the step that the word means in that run."""

import math
from dataclasses import dataclass

from oneshot.plan.leakage import VAL_SUITES
from oneshot.report.runs import Run
from oneshot.tasks.measures import measure_of

SATURATED = 0.99  # share of the largest training reward at which it counts as saturated (arXiv 2604.18574)
COLLAPSED = 0.2  # share of its maximum by which held-out accuracy has fallen when it counts as collapsed
ROUNDING = 1e-9  # of a product of two shares
TAIL_STEPS = 50  # steps that must follow saturation for it to count as seen; in a short run, a quarter of its steps


class NoStepError(Exception):
    """A run without the step that a claim needs. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """The step at which training reward stopped rising."""

    step: int  # the first step with a training reward of at least 0.99 of its maximum
    reward: float
    is_seen: bool  # whether enough steps follow: 50, or a quarter of the run if it has fewer than 200


def saturation(run: Run) -> Saturation | None:
    """Return the step at which training reward saturated, or None if no reward was positive."""
    rewards = [(row.step, row.metrics["reward/mean"]) for row in run.rows if "reward/mean" in row.metrics]
    highest = max((reward for _, reward in rewards), default=0.0)
    if highest <= 0:
        return None
    step, reward = next((step, reward) for step, reward in rewards if reward >= SATURATED * highest)
    tail = min(TAIL_STEPS, math.ceil(run.num_steps / 4))
    return Saturation(step=step, reward=reward, is_seen=step <= run.num_steps - tail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collapse:
    """The step at which held-out accuracy had fallen although training reward had not."""

    step: int
    highest_step: int  # of the highest accuracy; of equal steps the earliest
    highest: float
    accuracy: float


def collapse(run: Run, suite: str) -> Collapse | None:
    """Return the first evaluation, after that of the highest accuracy, at which a run has collapsed, or None.

    Its strict pass@1 is then at least 20% below the highest one, and its training reward is at least what it was at the
    highest one. The reward of an evaluated step is that of the same training step; at the start, that of step 1.
    """
    rewards = {row.step: row.metrics["reward/mean"] for row in run.rows if "reward/mean" in row.metrics}
    accuracies = {
        step: numbers["pass_at_1"]
        for step, numbers in sorted(run.measured.get(suite, {}).items())
        if "pass_at_1" in numbers and max(step, 1) in rewards
    }
    if not accuracies:
        return None
    highest_step = max(accuracies, key=lambda step: (accuracies[step], -step))
    highest, reward = accuracies[highest_step], rewards[max(highest_step, 1)]
    for step, accuracy in accuracies.items():
        has_fallen = step > highest_step and accuracy <= (1 - COLLAPSED) * highest + ROUNDING
        if has_fallen and highest > 0 and rewards[step] >= reward:
            return Collapse(step=step, highest_step=highest_step, highest=highest, accuracy=accuracy)
    return None


def evaluated_after(run: Run, suite: str, step: int) -> int | None:
    """Return the step of the first recorded evaluation at or after a step."""
    return min((evaluated for evaluated in run.measured.get(suite, {}) if evaluated >= step), default=None)


def find_step(run: Run, at: str, *, suite: str | None, metric: str, selects_on_test: bool) -> int:
    """Return the step of a run that a claim means.

    `saturation` is the first evaluation at or after saturation. `best` is the step with the highest pass@1 on a suite
    that is for choosing; the earliest step wins a tie. The claim's own suite chooses only if the sweep allows it.

    Raises NoStepError: the run has no such step.
    """
    if at == "start":
        return 0
    if at == "last":
        return run.num_steps
    if at == "saturation":
        saturated = saturation(run)
        if saturated is None:
            raise NoStepError("training reward was never above 0, so it did not saturate")
        if suite is None:
            return saturated.step
        step = evaluated_after(run, suite, saturated.step)
        if step is None:
            raise NoStepError(f"no evaluation on {suite} at or after step {saturated.step}, where it saturates")
        return step
    return _best(run, suite, metric, selects_on_test=selects_on_test)


def _best(run: Run, suite: str | None, metric: str, *, selects_on_test: bool) -> int:
    choosers = [each.name for each in run.suites if each.source in VAL_SUITES and each.name != suite]
    if not choosers and selects_on_test and suite is not None:
        choosers = [suite]
    if not choosers:
        raise NoStepError("no suite for choosing (val, arithmetic-val), so there is no best step")
    measure = measure_of(metric) if choosers[0] == suite else "pass_at_1"
    judged = set(run.measured.get(suite, {})) if suite is not None else None
    scores = {
        step: numbers[measure]
        for step, numbers in sorted(run.measured.get(choosers[0], {}).items())
        if measure in numbers and (judged is None or step in judged)
    }
    if not scores:
        raise NoStepError(f"no step has evaluations on {' and '.join(filter(None, [choosers[0], suite]))}")
    return max(scores, key=lambda step: (scores[step], -step))
