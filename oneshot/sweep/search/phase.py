"""Finished search trials -> the next points of their studies, and in the end what each has found.

A point is asked knowing the results of all points but the last `parallel` - 1, whenever those come: so a study asks
the same points however often its driver is killed, and whatever ends first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from oneshot.config.file import Sweep, Winner
from oneshot.config.sweep import SearchConfig
from oneshot.plan.plan import Plan, make_plan, with_point
from oneshot.plan.studies import FOLDER, Study, freeze_point, freeze_winner
from oneshot.store.store import Folder, Row, Store
from oneshot.sweep.search.early_stopping import EarlyStopping
from oneshot.sweep.search.points import Point, as_record, best
from oneshot.trial.requests import Stops
from oneshot.trial.state import has_failed, trial_standing, view


class Searching:
    """A sweep's studies. `plan` and `sweep` are those with all that they have asked and found."""

    def __init__(self, sweep: Sweep, plan: Plan, store: Store, folder: Folder, early: EarlyStopping) -> None:
        self.sweep, self.plan = sweep, plan
        self._store, self._folder, self._early = store, folder, early
        self._points: dict[tuple[str, int], Point] = {}

    def is_under_way(self) -> bool:
        """Whether a study has not been won yet."""
        return any(study.name not in self.sweep.winners for study in self.plan.studies)

    def advance(self, stops: Stops) -> list[str]:
        """Asks what can be asked, and ends studies that are through; says what it did, a line each."""
        search = self.sweep.config.search
        assert search is not None, "only a sweep with a search has studies"
        said = []
        for study in self.plan.studies:
            if study.name in self.sweep.winners:
                continue
            said += self._ask(study, search, stops)
            points = self.points(study, stops)
            if len(points) >= search.num_trials and all(one.state != "pending" for one in points):
                said.append(self._win(study, search, points))
        return said

    def points(self, study: Study, stops: Stops) -> list[Point]:
        """The study's points so far."""
        asked = self.sweep.points.get(study.name, [])
        return [self._point(study, number, params, stops) for number, params in enumerate(asked)]

    def _ask(self, study: Study, search: SearchConfig, stops: Stops) -> list[str]:
        from oneshot.sweep.search.optuna_study import ask  # Optuna takes seconds to import

        said = []
        points = self.points(study, stops)
        while len(points) < search.num_trials:
            number = len(points)
            known = points[: max(0, number - search.parallel + 1)]
            if any(one.state == "pending" for one in known):
                break
            given = search.warm_start[number] if number < len(search.warm_start) else {}
            params = ask(
                study.space,
                # of those that may still be under way nothing is known, even where they have ended
                [*known, *(Point(params=one.params, state="pending") for one in points[len(known) :])],
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
            said.append(f"{study.name}: point {number} (of {search.num_trials}): {_shown(params)}")
        return said

    def _point(self, study: Study, number: int, params: Mapping[str, Any], stops: Stops) -> Point:
        known = self._points.get((study.name, number))
        if known is None:
            known = self._judge(study, number, params, stops)
            if known.state != "pending":
                self._points[study.name, number] = known
        return known

    def _judge(self, study: Study, number: int, params: Mapping[str, Any], stops: Stops) -> Point:
        """What a point's trials amount to; their seeds and cells are averaged."""
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
            # not by its rows: its worker may still be about to write the last of them
            last = steps[max(steps)]
            state: Literal["pruned", "infeasible"] = "pruned" if math.isfinite(last) else "infeasible"
            return Point(params=params, state=state, value=last if state == "pruned" else None, steps=steps)
        metric = search.objective.metric
        values = [_value(of_one, metric, search) for of_one in rows]
        found = [value for value in values if value is not None and math.isfinite(value)]
        if len(found) < len(rows):  # a metric that never came, or is not a number
            return Point(params=params, state="infeasible")
        violation = None
        if search.constraint is not None:
            lasts = [_last(of_one, search.constraint.metric) for of_one in rows]
            if any(one is None or not math.isfinite(one) for one in lasts):
                return Point(params=params, state="infeasible")
            level = fmean(one for one in lasts if one is not None)
            limit = search.constraint
            violation = level - limit.max if limit.max is not None else (limit.min or 0.0) - level
        return Point(
            params=params,
            state="pruned" if is_cut else "complete",
            value=fmean(found),
            violation=violation,
            steps=_mean_by_step(rows, metric),
        )

    def _win(self, study: Study, search: SearchConfig, points: Sequence[Point]) -> str:
        """Keeps what the study has found, and sets its part of the grid by it."""
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
            "space": {path: known.model_dump(exclude_none=True) for path, known in study.space.items()},
            "points": [as_record(one) for one in points],
            "winner": number,
            "importances": importances(study.space, points, mode),
        }
        self._folder.write_json(f"{FOLDER}/{study.name}/study.json", record)
        freeze_winner(self._folder, study.name, winner)
        self.sweep = replace(self.sweep, winners={**self.sweep.winners, study.name: winner})
        self.plan = make_plan(self.sweep)
        if number is None:
            return f"{study.name}: no point of {len(points)} finished and kept to its constraint; its grid cannot run"
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
    for of_one in rows:
        for row in of_one:
            if metric in row.metrics:
                by_step.setdefault(row.step, []).append(row.metrics[metric])
    return {step: fmean(values) for step, values in sorted(by_step.items())}


def _shown(params: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{path} {value:.3g}" if isinstance(value, float) else f"{path} {value}" for path, value in params.items()
    )
