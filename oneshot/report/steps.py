"""A run and `start`, `last`, `best` or `saturation` -> the step that it stands for in that run."""

import math
from dataclasses import dataclass

from oneshot.plan.leakage import VAL_SUITES
from oneshot.report.runs import Run

SATURATED = 0.99
"""Share of the largest training reward (arXiv 2604.18574)."""
TAIL_STEPS = 50
"""A reward that is still rising in the last steps has not been seen to saturate; of a short run, the last quarter."""


class NoStepError(Exception):
    """A run has no such step; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """When training reward stopped rising."""

    step: int
    """The first with a training reward of at least 0.99 of its maximum."""
    reward: float
    is_seen: bool
    """Whether enough steps follow to say that it stopped: 50, or a quarter of a run shorter than 200."""


def saturation(run: Run) -> Saturation | None:
    """The step after which training reward hardly rose; None where no reward was positive."""
    rewards = [(row.step, row.metrics["reward/mean"]) for row in run.rows if "reward/mean" in row.metrics]
    highest = max((reward for _, reward in rewards), default=0.0)
    if highest <= 0:
        return None
    step, reward = next((step, reward) for step, reward in rewards if reward >= SATURATED * highest)
    tail = min(TAIL_STEPS, math.ceil(run.num_steps / 4))
    return Saturation(step=step, reward=reward, is_seen=step <= run.num_steps - tail)


def evaluated_after(run: Run, suite: str, step: int) -> int | None:
    """The first evaluation on record at a step or after it."""
    return min((one for one in run.measured.get(suite, {}) if one >= step), default=None)


def find_step(run: Run, at: str, *, suite: str | None, metric: str, selects_on_test: bool) -> int:
    """The step of a run that a claim means; of `saturation`, the evaluation that comes at it or next.

    `best` is the step at which a suite that is for choosing was answered best, the earliest of equals; the claim's own
    suite chooses only where the sweep says so.

    Raises:
        NoStepError: the run has none.
    """
    if at == "start":
        return 0
    if at == "last":
        return run.num_steps
    if at == "saturation":
        found = saturation(run)
        if found is None:
            raise NoStepError("training reward was never above 0, so it did not saturate")
        if suite is None:
            return found.step
        step = evaluated_after(run, suite, found.step)
        if step is None:
            raise NoStepError(f"no evaluation on {suite} at step {found.step}, where it saturates, or after it")
        return step
    return _best(run, suite, metric, selects_on_test=selects_on_test)


def _best(run: Run, suite: str | None, metric: str, *, selects_on_test: bool) -> int:
    choosers = [facts.name for facts in run.suites if facts.source in VAL_SUITES and facts.name != suite]
    if not choosers and selects_on_test and suite is not None:
        choosers = [suite]
    if not choosers:
        raise NoStepError("no suite that is for choosing (val, arithmetic-val) names the best step")
    measure = metric.split("/", 2)[2] if choosers[0] == suite else "pass_at_1"
    judged = set(run.measured.get(suite, {})) if suite is not None else None
    scores = {
        step: numbers[measure]
        for step, numbers in sorted(run.measured.get(choosers[0], {}).items())
        if measure in numbers and (judged is None or step in judged)
    }
    if not scores:
        raise NoStepError(f"no step is evaluated on {' and on '.join(filter(None, [choosers[0], suite]))}")
    return max(scores, key=lambda step: (scores[step], -step))
