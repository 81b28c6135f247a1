"""Accuracies of one example, oldest first -> its place in a ranking."""

from statistics import fmean


def recent(accuracies):
    """Return how near the mean of the last four visits is to one half; higher comes first."""
    return -abs(fmean(accuracies[-4:]) - 0.5)
