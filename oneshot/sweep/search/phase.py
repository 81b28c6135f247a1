"""Finished search trials -> the next points of their studies, and each study's winner.

A new point is asked with the results of all points except the last `parallel` - 1, even if these have come already. So
a study asks the same points however often its driver is killed and whichever trial ends first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from oneshot.config.search import SearchConfig
from oneshot.plan.pinned import Winner
from oneshot.plan.plan import make_plan, with_point
from oneshot.plan.studies import FOLDER, Study, freeze_point, freeze_winner
from oneshot.plan.sweep_run import SweepRun
from oneshot.store.records import Row
from oneshot.sweep.search.early_stopping import EarlyStopping
from oneshot.sweep.search.points import Point, as_record, best
from oneshot.trial.requests import Stops
from oneshot.trial.state import has_failed, trial_standing, view


class Searching:
    """A sweep's studies. `plan` and `sweep` include the points asked and the winners found so far."""

    def __init__(self, sweep_run: SweepRun, early: EarlyStopping) -> None:
        self.sweep, self.plan = sweep_run.sweep, sweep_run.plan
        self._store, self._folder, self._early = sweep_run.store, sweep_run.folder, early
        self._points: dict[tuple[str, int], Point] = {}

    def is_under_way(self) -> bool:
        """Return whether a study has no winner yet."""
        return any(study.name not in self.sweep.winners for study in self.plan.studies)

    def advance(self, stops: Stops) -> list[str]:
        """Ask the points that can be asked, and finish complete studies; return one line for each action."""
        search = self.sweep.config.search
        assert search is not None, "only a sweep with a search has studies"
        lines = []
        for study in self.plan.studies:
            if study.name in self.sweep.winners:
                continue
            lines += self._ask(study, search, stops)
            points = self.points(study, stops)
            if len(points) >= search.num_trials and all(point.state != "pending" for point in points):
                lines.append(self._finish(study, search, points))
        return lines

    def points(self, study: Study, stops: Stops) -> list[Point]:
        """Return the study's points so far."""
        points = []
        for number, params in enumerate(self.sweep.points.get(study.name, [])):
            point = self._points.get((study.name, number)) or self._judge(study, number, params, stops)
            if point.state != "pending":
                self._points[study.name, number] = point
            points.append(point)
        return points

    def _ask(self, study: Study, search: SearchConfig, stops: Stops) -> list[str]:
        from oneshot.sweep.search.optuna_study import ask  # Optuna takes seconds to import

        lines = []
        points = self.points(study, stops)
        while len(points) < search.num_trials:
            number = len(points)
            visible = points[: max(0, number - search.parallel + 1)]
            if any(point.state == "pending" for point in visible):
                break
            given = search.warm_start[number] if number < len(search.warm_start) else {}
            params = ask(
                study.space,
                # the last points count as pending, even those that have ended
                [*visible, *(Point(params=point.params, state="pending") for point in points[len(visible) :])],
                study=study.name,
                sampler=search.sampler,
                mode=search.objective.mode,
                given={path: value for path, value in given.items() if path in study.space},
            )
            freeze_point(self._folder, study.name, number, params)
            asked = [*self.sweep.points.get(study.name, []), params]
            self.sweep = replace(self.sweep, points={**self.sweep.points, study.name: asked})
            self.plan = with_point(self.plan, self.sweep, study, number)
            points.append(Point(params=params, state="pending"))
            lines.append(f"{study.name}: point {number} (of {search.num_trials}): {_shown(params)}")
        return lines

    def _judge(self, study: Study, number: int, params: Mapping[str, Any], stops: Stops) -> Point:
        """Return a point with the mean of its trials over cells and seeds."""
        search = self.sweep.config.search
        assert search is not None
        is_cut = False
        rows: list[list[Row]] = []
        trials = [t for t in self.plan.trials if t.phase == "search" and (t.study, t.point) == (study.name, number)]
        for trial in trials:
            assert trial.key is not None, "a point that was asked has keys"
            folder = self._store.trial(trial.key)
            result = folder.result()
            if trial_standing(trial, result) == "finished":
                pass
            elif stops.reason(trial) is not None:
                is_cut = True
            elif has_failed(result, folder, faults=self.sweep.config.faults):
                return Point(params=params, state="infeasible")
            else:
                return Point(params=params, state="pending")
            rows.append(view(trial, folder))
        if is_cut and (steps := self._early.judged(study.name, number)):
            # its rows may still be incomplete: the worker writes the last of them later
            last = steps[max(steps)]
            state: Literal["pruned", "infeasible"] = "pruned" if math.isfinite(last) else "infeasible"
            return Point(params=params, state=state, value=last if state == "pruned" else None, steps=steps)
        metric = search.objective.metric
        reported = [_value(trial_rows, metric, search) for trial_rows in rows]
        values = [value for value in reported if value is not None and math.isfinite(value)]
        if len(values) < len(rows):  # the metric never came, or is not a number
            return Point(params=params, state="infeasible")
        violation = None
        if search.constraint is not None:
            lasts = [_last(trial_rows, search.constraint.metric) for trial_rows in rows]
            if any(value is None or not math.isfinite(value) for value in lasts):
                return Point(params=params, state="infeasible")
            level = fmean(value for value in lasts if value is not None)
            limit = search.constraint
            violation = level - limit.max if limit.max is not None else (limit.min or 0.0) - level
        return Point(
            params=params,
            state="pruned" if is_cut else "complete",
            value=fmean(values),
            violation=violation,
            steps=_mean_by_step(rows, metric),
        )

    def _finish(self, study: Study, search: SearchConfig, points: Sequence[Point]) -> str:
        """Record the study and its winner, and set its part of the grid accordingly."""
        from oneshot.sweep.search.optuna_study import importances  # Optuna takes seconds to import

        mode = search.objective.mode
        number = best(points, mode)
        winner = Winner(
            point=number,
            params={} if number is None else dict(points[number].params),
            value=None if number is None else points[number].value,
            num_points=len(points),
        )
        record = {
            "study": study.name,
            "objective": search.objective.model_dump(),
            "space": {path: space.model_dump(exclude_none=True) for path, space in study.space.items()},
            "points": [as_record(point) for point in points],
            "winner": number,
            "importances": importances(study.space, points, mode),
        }
        self._folder.write_json(f"{FOLDER}/{study.name}/study.json", record)
        freeze_winner(self._folder, study.name, winner)
        self.sweep = replace(self.sweep, winners={**self.sweep.winners, study.name: winner})
        self.plan = make_plan(self.sweep)
        if number is None:
            return f"{study.name}: none of {len(points)} points finished within its constraint; its grid cannot run"
        best_of = f"{search.objective.metric} {winner.value:.4f}"
        return f"{study.name}: point {number} wins with {best_of}: {_shown(winner.params)}"


def _value(rows: Sequence[Row], metric: str, search: SearchConfig) -> float | None:
    if search.objective.at == "last":
        return _last(rows, metric)
    seen = [row.metrics[metric] for row in rows if row.metrics.get(metric, float("nan")) == row.metrics.get(metric)]
    if not seen:
        return None
    return max(seen) if search.objective.mode == "max" else min(seen)


def _last(rows: Sequence[Row], metric: str) -> float | None:
    return next((row.metrics[metric] for row in reversed(rows) if metric in row.metrics), None)


def _mean_by_step(rows: Sequence[Sequence[Row]], metric: str) -> dict[int, float]:
    by_step: dict[int, list[float]] = {}
    for trial_rows in rows:
        for row in trial_rows:
            if metric in row.metrics:
                by_step.setdefault(row.step, []).append(row.metrics[metric])
    return {step: fmean(values) for step, values in sorted(by_step.items())}


def _shown(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{path} {value:.3g}" if isinstance(value, float) else f"{path} {value}" for path, value in params.items()
    )
