"""A training's evaluations and `checkpoint.keep: {best: METRIC}` -> the step whose weights are kept, too.

Of equal steps the earliest is the best, as with `at: best` (report/steps.py). Step 0 is one of them: its weights are
the base model's and are not stored.
"""

from collections.abc import Mapping

from oneshot.config.trial import TrialConfig
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import Suite, due_steps, load_suites
from oneshot.tasks.measures import measure_of, suite_of

BEST = "best"  # sub-folder of a trial's folder with the weights


def choosing_suite(config: TrialConfig) -> Suite | None:
    """Return the suite that chooses the best step, or None if no best weights are kept."""
    metric = config.checkpoint.best_metric
    if metric is None:
        return None
    return next((suite for suite in load_suites(config) if suite.name == suite_of(metric)), None)


def recorded_scores(config: TrialConfig, folder: TrialFolder, *, until: int) -> dict[int, float]:
    """Return the recorded values of the metric that chooses, by step, up to a step."""
    suite = choosing_suite(config)
    if suite is None or config.checkpoint.best_metric is None:
        return {}
    measure, due = measure_of(config.checkpoint.best_metric), due_steps(suite, config)
    scores = {}
    for digest, step in sorted(folder.evaluations()):
        if digest == suite.digest and step <= until and step in due:
            evaluation = folder.evaluation(digest, step)
            if evaluation is not None and measure in evaluation["metrics"]:
                scores[step] = evaluation["metrics"][measure]
    return scores


def best_of(scores: Mapping[int, float]) -> int | None:
    """Return the step with the highest score, the earliest of equal ones; None without scores."""
    return max(scores, key=lambda step: (scores[step], -step), default=None)


def best_step(config: TrialConfig, folder: TrialFolder) -> int | None:
    """Return the best step of a whole trial, or None if it keeps no best weights or has no evaluation."""
    return best_of(recorded_scores(config, folder, until=config.train.num_steps))


def can_resume(config: TrialConfig, folder: TrialFolder, *, at: int) -> bool:
    """Return whether training can resume after a step without losing the weights of the best step so far.

    Their place may have been taken by those of a step after the checkpoint, which is made again.
    """
    best, kept = best_of(recorded_scores(config, folder, until=at)), folder.kept_step(BEST)
    suite = choosing_suite(config)
    if not best or suite is None or kept == best:
        return True
    return kept is not None and kept > at and kept in due_steps(suite, config)


def why_no_best(config: TrialConfig, folder: TrialFolder) -> str:
    """Return why a finished trial has no best weights, or an empty text if it has them."""
    metric, kept = config.checkpoint.best_metric, folder.kept_step(BEST)
    if metric is None:
        return "its best weights are not kept (checkpoint.keep: {best: METRIC})"
    best = best_step(config, folder)
    if best is None:
        return f"it has no evaluation with {metric}"
    if best == 0 or kept == best:
        return ""
    if kept is None:
        why = ": it trained without checkpoint.keep.best, or gc removed them"
    else:
        why = f", but those of step {kept}"
    return f"the weights of step {best}, the best by {metric}, are not kept{why}"
