"""The measures of a run's suites -> those of a group of suites."""

from collections.abc import Mapping

from oneshot.config.claims import GroupConfig


def group_measures(
    group: GroupConfig, sizes: Mapping[str, int | None], measured: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> dict[int, dict[str, float]]:
    """Return step -> measure -> mean over the group's suites, for the steps and measures that all of them have.

    `sizes` are numbers of problems. Accuracies by category have no mean: a category of one suite is not that of
    another.
    """
    means: dict[int, dict[str, float]] = {}
    for step in sorted(set.intersection(*(set(measured.get(suite, {})) for suite in group.suites))):
        by_suite = {suite: measured[suite][step] for suite in group.suites}
        names = sorted(name for name in set.intersection(*map(set, by_suite.values())) if "/" not in name)
        values = {name: group.mean({suite: by_suite[suite][name] for suite in by_suite}, sizes) for name in names}
        means[step] = {name: mean for name, mean in values.items() if mean is not None}
    return means
