"""Texts of completions -> their measures besides accuracy; counts of right completions -> the unbiased pass@k.

Where the paper defines no measure, the definition is ours. It must not change, so that sweeps stay comparable.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from hashlib import sha256
from math import comb
from statistics import fmean

from oneshot.config.evaluation import grader_label
from oneshot.errors import nearest
from oneshot.tasks.answers import extract_boxed

REFLECTION_WORDS = ("rethink", "recheck", "recalculate")  # the paper's Figure 4
CATEGORY_LENGTH = 80  # longest part of a metric's name that a category gives
RUN_LENGTH, RUN_TIMES = 20, 3  # A completion repeats itself if a run of 20 words appears three times
MEASURES = (
    "pass_at_1",
    "pass_at_1_lenient",
    "pass_at_1_released",
    "graders_disagree",
    "gain",
    "avg_at_k",
    "pass_at_k",
    "boxed",
    "truncated",
    "length_mean",
    "ungraded",
    "repetition",
    "reflection",
    *(f"reflection_{word}" for word in REFLECTION_WORDS),
    "code",
    "thinking_tokens",
    "forced_ends",
    "waits",
    "no_final_answer",
    "control",
)
"""Measures of an evaluation, besides pass@k for single k, and accuracy by category and level."""
NO_SHARES = ("length_mean", "ungraded", "thinking_tokens", "waits")
OVER_PROBLEMS = ("pass_at_1", "pass_at_1_lenient", "avg_at_k", "pass_at_k", "boxed", "length_mean")
"""The measures that have a value for each problem."""
_TRAINING = {
    "reward": ("mean", "accuracy", "frac_groups_zero_std", "ungraded", "overlong"),
    "rollout": ("entropy", "length_mean", "truncated", "empty", "boxed", "groups_drawn", "groups_kept"),
    "sft": ("epoch", "num_solutions", "num_tokens", "cut"),
    "optim": ("lr", "loss_scale", "skipped"),
    "loss": ("total", "pg", "kl", "entropy", "grad_norm", "clip_fraction", "frac_skipped"),
    "perf": ("step_s", "rollout_s", "update_s", "tokens_per_s", "efficiency"),
    "system": ("rss_gib", "gpu_peak_rollout_gib", "gpu_peak_update_gib"),
}
_MISMATCH = ("rollout/mismatch_kl", "rollout/mismatch_max", "rollout/mismatch_share")
TRAINING = (*(f"{group}/{name}" for group, names in _TRAINING.items() for name in names), *_MISMATCH)
"""Metrics of a training step."""
_POWER = re.compile(r"pass_at_\d+")
_CODE = re.compile(r"```|^\s*(?:def \w+\(|import \w+|from \w+ import |print\()", re.MULTILINE)


def suite_of(metric: str) -> str | None:
    """Return the suite of a metric, or None for a training metric."""
    parts = metric.split("/")
    return parts[1] if parts[0] == "eval" and len(parts) > 2 else None


def group_of(metric: str) -> str | None:
    """Return the group of a metric of a group of suites, `paper6` for `eval/@paper6/pass_at_1`, or None."""
    suite = suite_of(metric)
    return suite[1:] if suite is not None and suite.startswith("@") else None


def measure_of(metric: str) -> str:
    """Return the measure of an evaluation's metric: `Algebra/pass_at_1` for `eval/math500/Algebra/pass_at_1`."""
    return metric.split("/", 2)[2]


def is_measure(name: str, graders: Collection[str] = ()) -> bool:
    """Return whether an evaluation can have a measure of this name: `boxed`, `pass_at_4`, `Algebra/pass_at_1`.

    `graders` are those that are not ours: `my_lab.graders:exact` has the measure `pass_at_1_exact`.
    """
    part, _, last = name.rpartition("/")
    if part:
        return last == "pass_at_1"
    own = {f"pass_at_1_{grader_label(grader)}" for grader in graders}
    return last in MEASURES or _POWER.fullmatch(last) is not None or last in own


def has_metric(metric: str, suites: Collection[str], graders: Collection[str] = ()) -> bool:
    """Return whether a trial that is evaluated on these suites, by these graders, has a metric."""
    if not metric.startswith("eval/"):
        return metric in TRAINING or metric.startswith("script/")
    return suite_of(metric) in suites and is_measure(measure_of(metric), graders)


def nearest_metric(metric: str, suites: Collection[str]) -> str:
    """Return a hint for a metric that no trial has."""
    if group_of(metric) is not None and not any(name.startswith("@") for name in suites):
        return "; only claims are about a group of suites (@), so name one of its suites"
    if not metric.startswith("eval"):
        full_names = [f"eval/{name}/{metric}" for name in sorted(suites)] if is_measure(metric) else []
        return nearest(metric, full_names or TRAINING)
    suite = suite_of(metric)
    if suite in suites:
        if close := get_close_matches(measure_of(metric), MEASURES, n=1):
            return f"; did you mean 'eval/{suite}/{close[0]}'?"
        return f"; the metrics of eval/{suite}/ are {', '.join(MEASURES)}"
    if not suites:
        return "; it has no suites (eval.suites)"
    return nearest(metric, [f"eval/{name}/pass_at_1" for name in sorted(suites)])


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of completions or problems, which is reported in points."""
    return metric.startswith("eval/") and not metric.endswith(NO_SHARES)


def is_over_problems(name: str) -> bool:
    """Return whether a measure has a value for each problem."""
    part, _, last = name.rpartition("/")
    return not part.startswith("level ") and (last in OVER_PROBLEMS or _POWER.fullmatch(last) is not None)


def measures(completions: Sequence[str]) -> dict[str, float]:
    """Return shares of completions: with a box, a repetition, a reflection word (any, and each), and code."""
    lower = [completion.lower() for completion in completions]
    return {
        "boxed": fmean(extract_boxed(completion) is not None for completion in completions),
        "repetition": fmean(repeats(completion) for completion in completions),
        "reflection": fmean(any(word in text for word in REFLECTION_WORDS) for text in lower),
        **{f"reflection_{word}": fmean(word in text for text in lower) for word in REFLECTION_WORDS},
        "code": fmean(_CODE.search(completion) is not None for completion in completions),
    }


def repeats(completion: str) -> bool:
    """Return whether a run of 20 words appears at least three times; overlapping runs count."""
    words = completion.split()
    runs = Counter(tuple(words[start : start + RUN_LENGTH]) for start in range(len(words) - RUN_LENGTH + 1))
    return any(times >= RUN_TIMES for times in runs.values())


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate without bias that any of k completions is right, from n samples: `1 - C(n-c, k) / C(n, k)`.

    Source: Chen et al. 2021, arXiv 2107.03374.
    """
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def category_key(category: str) -> str:
    """Return a category's name as part of a metric key: MLflow allows letters, digits and `_-. `, and 250 characters.

    A long name is cut, and a digest keeps it apart from others that begin alike.
    """
    key = "".join(c if c.isalnum() or c in "_-. " else "_" for c in category)
    if not key.strip(". "):  # `..` would be a step up in a path
        key = "_" * max(1, len(key))
    if len(key) > CATEGORY_LENGTH:
        key = f"{key[: CATEGORY_LENGTH - 9]}-{sha256(category.encode()).hexdigest()[:8]}"
    return key


def is_one_of(trained: Collection[str]) -> Callable[[str], bool]:
    """Return a test of whether a category is among these, ignoring case: `Number theory` is `number theory`."""
    names = {category_key(category).casefold() for category in trained}
    return lambda category: category_key(category).casefold() in names
