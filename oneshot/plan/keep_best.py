"""Cells with `checkpoint.keep: {best: METRIC}` -> an error if the metric is none of theirs; the metrics that choose."""

from collections.abc import Iterable, Sequence

from oneshot.config.trial import TrialConfig
from oneshot.plan.cells import Cell
from oneshot.plan.pinned import PinnedSweep
from oneshot.tasks.measures import has_metric, is_share, nearest_metric


def check_kept(sweep: PinnedSweep, cells: Sequence[Cell]) -> None:
    """Check that every cell has the metric by which it keeps its best weights, and that higher is better.

    Raises SweepFileError: names the place that set it and what to do.
    """
    for cell in cells:
        metric, suites = cell.config.checkpoint.best_metric, set(cell.config.eval.suites)
        if metric is None:
            continue
        place = cell.place("checkpoint.keep")
        if not has_metric(metric, suites, cell.config.eval.graders):
            raise sweep.source.error(place, f"{cell.label} has no metric {metric}{nearest_metric(metric, suites)}")
        if not is_share(metric):
            raise sweep.source.error(place, f"{metric}: more of it is not better; choose by a share, such as pass_at_1")


def kept_by(configs: Iterable[TrialConfig]) -> dict[str, str]:
    """Return each metric that chooses the weights that are kept, with the name of the setting."""
    metrics = [config.checkpoint.best_metric for config in configs]
    return {metric: "checkpoint.keep.best" for metric in metrics if metric is not None}
