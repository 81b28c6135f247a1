"""A difference with its interval and a claim's expectation -> a verdict; p-values -> p-values after Holm."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from oneshot.report.stats import Difference

Verdict = Literal["supported", "contradicted", "inconclusive"]


def judge(
    difference: Difference,
    *,
    greater_by: float | None = None,
    less_by: float | None = None,
    within: float | None = None,
) -> tuple[Verdict, float | None]:
    """Return the verdict on one expectation of a difference a - b by its interval alone, and its p-value before Holm.

    `greater_by`: a is above b by more than this. `less_by`: a is below b by more than this. `within`: a and b are no
    further apart than this; these are two one-sided tests (Schuirmann 1987), whose p-value is doubled to match the 95%
    interval. The caller keeps a verdict other than inconclusive only if Holm's p-value is also at most 0.05.
    """
    assert sum(expected is not None for expected in (greater_by, less_by, within)) == 1, "a claim has one expectation"
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "inconclusive", None
    if greater_by is not None:
        return _verdict(low > greater_by, high < greater_by), difference.p_value(greater_by)
    if less_by is not None:
        return _verdict(high < -less_by, low > -less_by), difference.p_value(-less_by)
    assert within is not None and within > 0, "the bound is positive"
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
