"""A sweep's name, folder or bundle -> `Lab`: its results as tables, figures and verdicts."""

from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from oneshot.api.notebook import show_figures
from oneshot.errors import UserError, nearest
from oneshot.plan.loader import begun_sweep
from oneshot.report import frames
from oneshot.report.bundle import is_bundle, read_bundle
from oneshot.report.figures import drawn
from oneshot.report.page import description, make_report, summary
from oneshot.report.runs import Gathered, gather
from oneshot.report.verdicts import JudgedClaim, verdicts
from oneshot.store.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_STORAGE = "runs"


class Lab:
    """The results of one sweep, as they were when it was opened.

    Every table has the trial first: its axes as `cell.<axis>`, `seed` and `key`. Accuracies and other shares are from 0
    to 1. Call `oneshot.open` again to see a running sweep's news.
    """

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered

    @property
    def name(self) -> str:
        """Return the sweep's name."""
        return self._gathered.name

    @property
    def question(self) -> str:
        """Return the question that the sweep answers."""
        return self._gathered.question

    def results(self, *, suite: str | None = None) -> pd.DataFrame:
        """Return one row for each trial, suite and evaluated step, with the trial's state and every measure.

        Columns: `state`, `suite`, `step`, and measures such as `pass_at_1`, `boxed`, `truncated` (shares) and
        `length_mean` (tokens).
        """
        return frames.results_frame(self._gathered, suite=suite)

    def cells(self) -> pd.DataFrame:
        """Return one row for each cell and suite: means over seeds of strict pass@1, with 95% intervals over seeds.

        Columns: `suite`, `num_seeds`, `num_planned`, and `start`, `last` and `gain`, each with `_low` and `_high`.
        """
        return frames.cells_frame(self._gathered)

    def metrics(self) -> pd.DataFrame:
        """Return one row for each trial and training step: `step`, `time_s` since its first step, and its metrics."""
        return frames.metrics_frame(self._gathered)

    def problems(self, *, suite: str | None = None, step: int | None = None) -> pd.DataFrame:
        """Return one row for each trial, suite, step, problem and sample, with its grades.

        Columns: `problem`, `category`, `sample`, `strict`, `lenient` and `boxed` (bool), `num_tokens`. Without `step`,
        the first and the last step of each trial.
        """
        return frames.problems_frame(self._gathered, suite=suite, step=step)

    def completions(self, suite: str, *, step: int | None = None) -> pd.DataFrame:
        """Return the first completion of each problem of a suite, with problem, label and grade.

        Without `step`, those of each trial's last step. A bundle has only those that its page shows.
        """
        return frames.completions_frame(self._gathered, suite=suite, step=step)

    def verdicts(self) -> pd.DataFrame:
        """Return one row for each verdict: effect, 95% interval, p-values, replicates and notes.

        Effects and intervals are in the metric's unit: 0.1 of an accuracy is ten points.
        """
        return frames.verdicts_frame(self.judged)

    def failures(self) -> pd.DataFrame:
        """Return one row for each trial that has no result: `state`, `reason`, `spent_h` (hours), `gpus`."""
        return frames.failures_frame(self._gathered)

    def figure(self, name: str = "curves") -> "Figure":
        """Return one of the report's figures: `curves`, `claims`, `gains`, `training`, `cost`, `transfer-0` ...

        Raises UserError: the sweep has no data for such a figure; names those that it has.
        """
        figures = {drawn_name: figure for drawn_name, _, figure in drawn(self._gathered, list(self.judged))}
        if name not in figures:
            raise UserError(f"{self.name} has no figure {name!r}{nearest(name, list(figures))}")
        show_figures()
        return figures[name]

    def report(self, folder: str | Path) -> Path:
        """Write the page, its JSON and its figures into a folder, and return the page's path."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name, text in make_report(self._gathered).files.items():
            (target / name).write_text(text, encoding="utf-8")
        return target / "report.html"

    @cached_property
    def judged(self) -> tuple[JudgedClaim, ...]:
        """Return the verdicts as objects."""
        return tuple(verdicts(self._gathered))

    def __repr__(self) -> str:
        return f"<Lab {self.name}: {summary(self.judged)}>"

    def _repr_html_(self) -> str:
        """Return the verdict table for a notebook."""
        table = self.verdicts()[["name", "verdict", "effect", "low", "high", "p_holm", "num_seeds"]]
        head = f"<p><b>{escape(self.name)}</b>: {escape(self.question)}<br>{escape(summary(self.judged))}</p>"
        return head + str(table.to_html(index=False, float_format="{:.3f}".format))

    def description(self) -> str:
        """Return the verdicts as Markdown."""
        return description(self._gathered, self.judged)


def open_lab(name: str | Path, *, storage: str | None = None) -> Lab:
    """Open the results of a sweep: its name in the storage (default: `runs`), or the path of a bundle.

    A storage that has one sweep needs no name: `oneshot.open("s3://bucket/runs")`.

    Raises UserError: there is no such sweep, the storage has several, or the bundle is damaged.
    """
    path = Path(name)
    if is_bundle(path):
        return Lab(read_bundle(path))
    is_storage = storage is None and ("://" in str(name) or (path / "sweeps").is_dir())
    store = Store(str(name) if is_storage else storage or DEFAULT_STORAGE)
    store.check_exists()
    return Lab(gather(begun_sweep(store, _only_sweep(store, str(name)) if is_storage else str(name))))


def _only_sweep(store: Store, storage: str) -> str:
    names = store.sweeps()
    if len(names) != 1:
        has = f"the sweeps {', '.join(sorted(names))}" if names else "no sweep"
        raise UserError(f"{storage}: it has {has}; open one by name: oneshot.open(NAME, storage={storage!r})")
    return names[0]
