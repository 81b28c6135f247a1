"""Grades by problem of all checkpoints of a run -> what choosing one of them on the test set adds to its accuracy.

T: evaluated steps, the start among them. P: problems of the suite.

The step with the highest accuracy on the test set is right on some problems by luck, and its accuracy counts that luck.
Cross-fitting removes it: the step is chosen on half of the problems and judged on the other half (Chernozhukov et al.,
Econometrics Journal 21, 2018, for the name; Efron, JASA 109, 2014, on estimates after selection).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneshot.report.cells import cell_label, ended_cells, mean_difference, over_seeds
from oneshot.report.runs import Gathered, Run
from oneshot.report.stats import SHARE
from oneshot.report.table import Table, Value
from oneshot.tasks.measures import suite_of

NUM_HALVINGS = 20
LEAST_STEPS = 3  # fewer checkpoints are no choice
MOST_EVALUATIONS = 2_000  # largest number of evaluations whose grades are read; cells beyond it are left out

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """The accuracy of one run's checkpoint, by the rule that chose it."""

    best_on_test: float
    cross_fitted: float
    last: float


def cross_fitted(right_TP: Array, *, num_halvings: int = NUM_HALVINGS, seed: int = 0) -> float:
    """Return the accuracy of the step that half of the problems choose, on the other half; `right_TP` is in [0, 1].

    It is the mean over random halvings, each used in both directions and each problem judged once. The earliest of
    equal steps is chosen.
    """
    num_problems = right_TP.shape[1]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    total = 0.0
    for _ in range(num_halvings):
        halves = np.array_split(rng.permutation(num_problems), 2)
        for chooses, judges in (halves, halves[::-1]):
            step = int(right_TP[:, chooses].mean(axis=1).argmax())
            total += float(right_TP[step, judges].sum())
    return total / float(num_halvings * num_problems)


def selected(right_TP: Array) -> Selected:
    """Return the accuracy of one run by each rule."""
    by_step_T = right_TP.mean(axis=1)
    return Selected(best_on_test=float(by_step_T.max()), cross_fitted=cross_fitted(right_TP), last=float(by_step_T[-1]))


def selection_table(gathered: Gathered, suite: str) -> Table | None:
    """Return for each cell and suite that is judged what choosing the step on the test set adds to the accuracy."""
    rows: list[tuple[Value, ...]] = []
    num_read, num_left_out = 0, 0
    for name, runs in _judged_cells(gathered, suite):
        num = sum(len(run.measured[name]) for run in runs)
        if num_read + num > MOST_EVALUATIONS:
            num_left_out += 1
            continue
        num_read += num
        by_label = {run.label: one for run in runs if (one := _of_run(gathered, run, name)) is not None}
        if by_label:
            rows.append(_row([run for run in runs if run.label in by_label], name, by_label))
    return Table(
        name="selection",
        title="What choosing the checkpoint adds",
        about=(
            "Accuracy (strict pass@1) of one checkpoint of each run. Best on test: the step with the highest accuracy "
            "on this suite, as papers often report. Cross-fitted: the step is chosen on half of the problems and "
            f"judged on the other half, over {NUM_HALVINGS} random halvings; that is what such a step is worth on "
            "other problems. The difference is what the choice adds by luck. Runs with at least "
            f"{LEAST_STEPS} evaluations." + _left_out(num_left_out)
        ),
        columns=("cell", "suite", "seeds", "steps", "best on test", "cross-fitted", "last", "best - cross-fitted"),
        rows=tuple(rows),
    )


def _left_out(number: int) -> str:
    what = "One cell and suite is" if number == 1 else f"{number} cells and suites are"
    return f" {what} left out: at most {MOST_EVALUATIONS:,} evaluations are read." if number else ""


def _judged_cells(gathered: Gathered, suite: str) -> Iterator[tuple[str, list[Run]]]:
    """Yield the primary suite and every suite of a claim with the runs of each cell that have enough evaluations."""
    claimed = (suite_of(claim.metric) for claim in (*gathered.frozen.claims, *gathered.amended))
    for name in dict.fromkeys([suite, *filter(None, claimed)]):
        for runs in ended_cells(gathered.runs):
            if enough := [run for run in runs if len(run.measured.get(name, {})) >= LEAST_STEPS]:
                yield name, enough


def _of_run(gathered: Gathered, run: Run, suite: str) -> Selected | None:
    """Return the accuracies of one run, or None if the grades of one of its evaluations are not on record."""
    grades = [gathered.record.grades(run, suite, step) for step in sorted(run.measured[suite])]
    complete = [each for each in grades if each is not None]
    if len(complete) < len(grades) or len({each.ids for each in complete}) != 1 or len(complete[0].ids) < 2:
        return None
    return selected(np.array([each.strict_PK.mean(axis=1) for each in complete]))


def _row(runs: Sequence[Run], suite: str, by_label: dict[str, Selected]) -> tuple[Value, ...]:
    best, fitted, last = (
        over_seeds(runs, lambda run, name=name: getattr(by_label[run.label], name), bounds=SHARE)  # type: ignore[misc]
        for name in ("best_on_test", "cross_fitted", "last")
    )
    added = mean_difference(
        runs, lambda run: by_label[run.label].best_on_test, lambda run: by_label[run.label].cross_fitted
    )
    numbers = sorted({len(run.measured[suite]) for run in runs})
    steps = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return cell_label(runs[0]), suite, str(len(runs)), steps, best, fitted, last, added
