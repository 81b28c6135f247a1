"""Texts of completions -> what is counted of them besides accuracy; and the unbiased pass@k.

Definitions are ours where the paper gives none, and stay as they are, so that sweeps compare.
"""

import re
from collections import Counter
from collections.abc import Sequence
from math import comb
from statistics import fmean

from oneshot.tasks.problems import extract_boxed

REFLECTION_WORDS = ("rethink", "recheck", "recalculate")
"""Of the paper's Figure 4."""
RUN_LENGTH, RUN_TIMES = 20, 3
"""A completion repeats itself where some run of 20 words stands in it three times."""
_CODE = re.compile(r"```|^\s*(?:def \w+\(|import \w+|from \w+ import |print\()", re.MULTILINE)


def measures(completions: Sequence[str]) -> dict[str, float]:
    """Shares of completions: with a box, with a repetition, with a reflection word (any, and each), with code."""
    lower = [completion.lower() for completion in completions]
    return {
        "boxed": fmean(extract_boxed(completion) is not None for completion in completions),
        "repetition": fmean(repeats(completion) for completion in completions),
        "reflection": fmean(any(word in text for word in REFLECTION_WORDS) for text in lower),
        **{f"reflection_{word}": fmean(word in text for text in lower) for word in REFLECTION_WORDS},
        "code": fmean(_CODE.search(completion) is not None for completion in completions),
    }


def repeats(completion: str) -> bool:
    """Whether some run of 20 words stands in it at least three times; overlapping runs count."""
    words = completion.split()
    runs = Counter(tuple(words[start : start + RUN_LENGTH]) for start in range(len(words) - RUN_LENGTH + 1))
    return any(times >= RUN_TIMES for times in runs.values())


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate that any of k completions is right, from n samples: `1 - C(n-c, k) / C(n, k)`.

    Chen et al. 2021, arXiv 2107.03374.
    """
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def category_key(category: str) -> str:
    """A category's name as part of a metric key: MLflow takes letters, digits and `_-. `."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in category)
