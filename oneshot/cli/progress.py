"""Events of a sweep -> progress: a live table on a terminal, plain lines elsewhere, or JSON lines."""

import time
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from oneshot.cli.tables import duration, plain_table
from oneshot.logs import json_line, printable, wants_json

if TYPE_CHECKING:
    from oneshot.sweep.events import Event


class Progress:
    """A context manager that shows a running sweep and is called with each of its events."""

    def __init__(self, console: Console, *, sweep: str = "") -> None:
        self._console = console
        self._sweep = sweep
        self._running: dict[str, Event] = {}
        self._num_ended = 0
        self._num_left = 0
        self._seconds: list[float] = []  # of each finished training
        self._num_failed = 0
        self._start_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not wants_json():
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Show one event."""
        if wants_json():
            self._write_json(event)
            return
        if event.kind == "message":
            self._num_left = event.num_left or self._num_left
            self._print(event.text)
            return
        self._num_left = event.num_left
        if event.kind == "ended":
            self._end(event)
        else:
            if event.kind == "started" and event.key not in self._running and self._live is None:
                self._print(f"{event.label}  started")
            self._running[event.key] = event

    def _end(self, event: "Event") -> None:
        at_a_time = max(1, len(self._running))
        self._running.pop(event.key, None)
        self._num_ended += 1
        result = event.result
        if event.stopped:
            return
        if result is None or result.outcome == "failed":
            self._num_failed += 1
            why = f"{result.reason}  log: {result.log_path}" if result else "no result"
            self._print(f"{event.label}  failed: {why}")
            return
        self._seconds.append((result.ended_ms - result.started_ms) / 1000)
        parts = [f"{result.steps_done} steps in {self._seconds[-1]:.0f} s"]
        parts += [f"{suite} {_change(*ends)}" for suite, ends in event.accuracies.items()]
        self._print(f"{event.label}  finished: {', '.join(parts)}  [{self._standing(at_a_time)}]")

    def _standing(self, at_a_time: int) -> str:
        """Return how much has ended, and how long the rest takes if it goes on as the trainings that finished."""
        text = f"{self._num_ended} of {self._num_ended + self._num_left} ended"
        if not self._num_left or not self._seconds:
            return text
        done = sum(event.step / max(1, event.num_steps) for event in self._running.values())
        left_s = fmean(self._seconds) * (self._num_left - done) / at_a_time
        return f"{text}, about {duration(max(0.0, left_s))} left"

    def _write_json(self, event: "Event") -> None:
        if event.kind == "step":
            return
        result = event.result
        is_bad = result is not None and result.outcome == "failed"
        line = json_line(
            "error" if is_bad else "info",
            event.text or f"{event.label} {event.kind}",
            time_s=time.time(),
            sweep=self._sweep,
            key=event.key,
            **({} if result is None else {name: getattr(result, name) for name in ("attempt", "outcome", "reason")}),
        )
        self._console.out(line, highlight=False)

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self._start_s
        self._console.print(f"{seconds:6.0f} s  {printable(text)}", highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = plain_table(("running", "step", "reward or loss"))
        for event in self._running.values():
            value = event.loss if event.reward is None else event.reward
            shown = "" if value is None else f"{value:.2f}"
            table.add_row(event.label, f"{event.step} of {event.num_steps}", shown)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        seconds = time.monotonic() - self._start_s
        has_trainings = self._num_ended + self._num_left > 0
        standing = f"{self._standing(max(1, len(self._running)))}{failed}, " if has_trainings else ""
        table.add_row(f"{standing}{seconds:.0f} s", style="dim")
        return table


def _change(start: float | None, last: float) -> str:
    return f"{last:.3f}" if start is None else f"{start:.3f} -> {last:.3f}"
