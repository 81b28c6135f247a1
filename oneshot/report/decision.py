"""A difference with its interval, and what was expected of it -> a verdict; p-values of many -> corrected ones."""

from collections.abc import Sequence
from typing import Literal

from oneshot.report.stats import LEVEL, Difference

Verdict = Literal["supported", "contradicted", "inconclusive"]


def judge(
    difference: Difference,
    *,
    greater_by: float | None = None,
    less_by: float | None = None,
    within: float | None = None,
) -> tuple[Verdict, float | None]:
    """Verdict on one expectation of a difference a - b, by its interval alone, and the p-value that Holm is to correct.

    `greater_by`: a is above b by more than this; `less_by`: below b by more than this; `within`: no further apart than
    this, which is two one-sided tests (Schuirmann 1987), their p-value doubled to match the 95% interval. Only where
    Holm's p-value is at most 0.05, too, may a verdict other than inconclusive stand.
    """
    assert sum(expected is not None for expected in (greater_by, less_by, within)) == 1, "one expectation a claim"
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "inconclusive", None
    if greater_by is not None:
        return _verdict(low > greater_by, high < greater_by), difference.p_value(greater_by)
    if less_by is not None:
        return _verdict(high < -less_by, low > -less_by), difference.p_value(-less_by)
    assert within is not None and within > 0, "no difference is within nothing"
    # inside, both bounds must be out of the question; outside, the nearer one: either way the larger p-value
    by_bound = [p for bound in (-within, within) if (p := difference.p_value(bound)) is not None]
    return _verdict(-within < low and high < within, low > within or high < -within), max(by_bound)


def _verdict(supported: bool, contradicted: bool) -> Verdict:
    return "supported" if supported else "contradicted" if contradicted else "inconclusive"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's corrected p-values (Scandinavian Journal of Statistics 6, 1979) of all claims of a sweep.

    A claim without a p-value was planned all the same: it counts as one more test, with p 1, and stays None.
    """
    if not p_values:
        return []
    # half a second, for the few sweeps that make claims
    from statsmodels.stats.multitest import multipletests

    corrected = multipletests([1.0 if p is None else p for p in p_values], alpha=LEVEL, method="holm")[1]
    return [None if p is None else float(one) for p, one in zip(p_values, corrected, strict=True)]
