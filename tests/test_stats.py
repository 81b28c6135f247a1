"""Intervals against numbers worked by hand, and the table of cells."""

import pytest

from oneshot.report.stats import mean_interval


def test_t_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3) = 0.57735, t(0.975, 2) = 4.302653: 2 -+ 2.484138
    interval = mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.num) == (2.0, 3)
    assert interval.low == pytest.approx(-0.484138, abs=1e-6)
    assert interval.high == pytest.approx(4.484138, abs=1e-6)


def test_one_replicate_has_a_mean_and_no_interval() -> None:
    interval = mean_interval([0.5])
    assert (interval.mean, interval.low, interval.high, interval.num) == (0.5, None, None, 1)


def test_equal_replicates_have_an_interval_of_no_width() -> None:
    interval = mean_interval([0.25, 0.25])
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_no_replicates_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
