"""The state of a sweep -> Prometheus, through Ray's metrics agent: `ray_oneshot_*` on each node's metrics port."""

import time

from ray.util.metrics import Gauge

from oneshot.sweep.agenda import Agenda

SHOW_S = 5.0


class Gauges:
    """The sweep's gauges, set every `SHOW_S` seconds."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._shown_s = float("-inf")
        by_sweep = ("sweep",)
        self._trials = Gauge("oneshot_trials", "trials of a sweep by state", tag_keys=("sweep", "state"))
        self._tokens = Gauge("oneshot_tokens_per_s", "completion tokens a second of running trials", tag_keys=by_sweep)
        self._used = Gauge("oneshot_gpu_hours_used", "GPU-hours that trials have used", tag_keys=by_sweep)
        self._left = Gauge("oneshot_gpu_hours_left", "estimated GPU-hours of open trials", tag_keys=by_sweep)

    def show(self, *, now: bool = False) -> None:
        """Set the gauges, if it is time."""
        if not now and time.monotonic() - self._shown_s < SHOW_S:
            return
        self._shown_s = time.monotonic()
        load = self._agenda.load()
        tags = {"sweep": self._agenda.plan.name}
        for state, number in load.trials.items():
            self._trials.set(number, tags={**tags, "state": state})
        self._tokens.set(load.tokens_per_s, tags=tags)
        self._used.set(load.gpu_hours_used, tags=tags)
        if load.gpu_hours_left is not None:
            self._left.set(load.gpu_hours_left, tags=tags)
