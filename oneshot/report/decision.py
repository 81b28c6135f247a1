"""A difference with its interval and a claim's expectation -> a verdict; p-values -> p-values after Holm."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from oneshot.config.claims import ExpectConfig
from oneshot.report.evidence import Difference

Verdict = Literal["supported", "contradicted", "inconclusive", "interim"]
"""`interim`: seeds that were planned have not ended, so nothing is judged."""


def judge(difference: Difference, expect: ExpectConfig) -> tuple[Verdict, float | None]:
    """Return the verdict on one expectation of a difference a - b by its interval alone, and its p-value before Holm.

    `greater_by`: a is above b by more than this. `less_by`: a is below b by more than this. `share_at_least`: the
    difference is a - share * b, and above 0. `within`: a and b are no further apart than this; these are two one-sided
    tests (Schuirmann 1987), whose p-value is doubled to match the 95% interval. The caller keeps a verdict other than
    inconclusive only if Holm's p-value is also at most 0.05.
    """
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "inconclusive", None
    if expect.greater_by is not None or expect.share_at_least is not None:
        bound = expect.greater_by or 0.0
        return _verdict(low > bound, high < bound), difference.p_value(bound)
    if expect.less_by is not None:
        return _verdict(high < -expect.less_by, low > -expect.less_by), difference.p_value(-expect.less_by)
    within = expect.within
    assert within is not None, "a claim has one expectation"
    # inside, both bounds must be rejected; outside, the nearer bound: in both cases the larger p-value
    by_bound = [p for bound in (-within, within) if (p := difference.p_value(bound)) is not None]
    return _verdict(-within < low and high < within, low > within or high < -within), max(by_bound)


def _verdict(supported: bool, contradicted: bool) -> Verdict:
    return "supported" if supported else "contradicted" if contradicted else "inconclusive"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of all claims of a sweep after Holm's correction.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979. A claim without a p-value was planned too: it counts as a
    test with p = 1, and stays None.
    """
    tested = np.array([1.0 if p is None else p for p in p_values])
    order = tested.argsort(kind="stable")
    tested[order] = np.maximum.accumulate(tested[order] * np.arange(len(tested), 0, -1)).clip(max=1.0)
    return [None if p is None else float(p_holm) for p, p_holm in zip(p_values, tested, strict=True)]
