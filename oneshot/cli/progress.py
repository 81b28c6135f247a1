"""Events of a sweep -> what a person sees: a live table on a terminal, plain lines elsewhere; plans as tables."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from oneshot.config.sweep import BudgetConfig
from oneshot.logs import json_line, printable, wants_json
from oneshot.models.placement import HEADROOM, Memory, Placement, alternatives
from oneshot.plan.cost import EFFICIENCY, MEAN_TOKENS
from oneshot.plan.plan import Plan, Trial

if TYPE_CHECKING:  # SciPy and the store, which `plan` needs not
    from oneshot.plan.edits import Edits
    from oneshot.plan.rank_rules import Ranked
    from oneshot.plan.wallclock import Schedule
    from oneshot.store.gc import Holding
    from oneshot.sweep.cluster.jobs import Submission
    from oneshot.sweep.cluster.preflight import Finding
    from oneshot.sweep.events import Event
    from oneshot.sweep.status import SweepStatus


class Progress:
    """Shows a sweep as it runs; a context manager that is called with its events."""

    def __init__(self, console: Console, *, sweep: str = "") -> None:
        self._console = console
        self._sweep = sweep
        self._running: dict[str, Event] = {}
        self._ended: list[str] = []
        self._num_failed = 0
        self._total = 0
        self._start_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal and not wants_json():
            self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._table)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: "Event") -> None:
        """Takes one event."""
        if wants_json():
            self._write_json(event)
            return
        if event.kind == "message":
            self._print(event.text)
            return
        label = event.label
        if event.kind == "ended":
            self._running.pop(event.key, None)
            self._ended.append(event.key)
            result = event.result
            if event.stopped:
                return
            if result is None or result.outcome == "failed":
                self._num_failed += 1
                self._print(
                    f"{label}  failed: {result.reason if result else 'no result'}"
                    + (f"  log: {result.log_path}" if result else "")
                )
            else:
                seconds = (result.ended_ms - result.started_ms) / 1000
                self._print(
                    f"{label}  finished: {result.steps_done} steps in {seconds:.0f} s  [{len(self._ended)} ended]"
                )
            return
        if event.kind == "started" and event.key not in self._running and self._live is None:
            self._print(f"{label}  started")
        self._running[event.key] = event

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
            attempt=result.attempt if result is not None else None,
            outcome=result.outcome if result is not None else None,
            reason=result.reason if result is not None else None,
        )
        self._console.out(line, highlight=False)

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self._start_s
        self._console.print(f"{seconds:6.0f} s  {printable(text)}", highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("running", "step", "reward"):
            table.add_column(column)
        for event in self._running.values():
            reward = "" if event.reward is None else f"{event.reward:.2f}"
            table.add_row(event.label, f"{event.step} of {event.num_steps}", reward)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        table.add_row(
            f"{len(self._ended)} ended{failed}, {time.monotonic() - self._start_s:.0f} s", "", "", style="dim"
        )
        return table


def plan_table(plan: Plan) -> Group:
    """A plan's cells, and what those on GPUs take of their memory."""
    tables: list[RenderableType] = [_cells_table(plan)]
    if _needs(plan):
        tables += [Text(), _memory_table(plan)]
    return Group(*tables)


def _cells_table(plan: Plan) -> Table:
    """With seeds, cost and keys."""
    table = Table(title=None, box=None, pad_edge=False, header_style="dim")
    axes = list(plan.trials[0].cell) if plan.trials else []
    uses_gpus = any(trial.resources.gpus for trial in plan.trials)
    for axis in [*axes, "seeds", "steps", "cpus", "gpus", *(["GPU-h a trial"] if uses_gpus else []), "keys"]:
        table.add_column(axis)
    by_cell: dict[tuple[str, ...], list[int]] = {}
    for index, trial in enumerate(plan.trials):
        by_cell.setdefault(tuple(trial.cell.values()), []).append(index)
    for cell, indices in by_cell.items():
        first = plan.trials[indices[0]]
        key = f"waits for {first.waits_for}" if first.key is None else first.key
        hours = first.cost.gpu_hours
        table.add_row(
            *cell,
            " ".join(str(plan.trials[index].seed) for index in indices),
            str(first.config.train.num_steps),
            f"{first.resources.cpus:g}",
            f"{first.resources.gpus:g}",
            *(["?" if hours is None else f"{hours:.1f}"] if uses_gpus else []),
            key + ("?" if first.provisional else "") + (" ..." if len(indices) > 1 else ""),
        )
    return table


def _memory_table(plan: Plan) -> Table:
    """GiB of one GPU, part by part, of each need; and of what needs more than one GPU, what else would fit."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("GiB of a GPU", no_wrap=True)
    for column in _PARTS:
        table.add_column(column, justify="right")
    table.add_column("")
    for trial in _needs(plan):
        chosen = trial.placement
        assert chosen is not None, "a need is known"
        is_small = chosen.fits and trial.resources.processes == 1
        rows = [] if is_small else list(alternatives(trial.config, trial.resources))
        table.add_row(trial.config.model.path.rpartition("/")[2])
        rows = [chosen if _same_way(row, chosen) else row for row in rows]
        for row in rows if chosen in rows else [chosen, *rows]:
            marks = ["does not fit"] * (not row.fits) + ["asked for"] * (row == chosen)
            table.add_row(f"  {_way(row)}", *_memory_cells(row.memory), ", ".join(marks))
    return table


_PARTS = (
    "weights", "AdamW", "reference", "copy", "KV", "logits", "gradients", "gathered", "activations", "head", "peak",
)  # fmt: skip


def _same_way(row: Placement, other: Placement) -> bool:
    """Whether two say the same, in whichever words."""
    return (row.resources.gpus, row.strategy, row.adapter) == (other.resources.gpus, other.strategy, other.adapter)


def _needs(plan: Plan) -> list[Trial]:
    """Of the trials on GPUs the largest of each model and way to run it."""
    found: dict[object, Trial] = {}
    for trial in plan.trials:
        if not trial.resources.gpus or trial.placement is None:
            continue
        adapter = trial.config.model.adapter
        adapted = None if adapter is None else adapter.model_dump_json()  # a list of targets has no hash
        need = (trial.config.model.path, adapted, trial.placement.strategy, trial.resources.gpus)
        known = found.setdefault(need, trial).placement
        if known is not None and trial.placement.memory.peak_gib > known.memory.peak_gib:
            found[need] = trial
    return list(found.values())


def _way(row: Placement) -> str:
    gpus = f"{row.resources.gpus:g} GPU{'s' if row.resources.gpus > 1 else ''}"
    how: list[str] = [] if row.strategy == "single" else [row.strategy]
    how += [f"{row.adapter.kind} r {row.adapter.r}"] if row.adapter is not None else []
    how += ["offload"] if row.strategy == "fsdp" and row.resources.cpu_offload else []
    return ", ".join([gpus, *how])


def _memory_cells(memory: Memory) -> list[str]:
    lasting = (memory.weights, memory.optimiser, memory.reference)
    update = (memory.gradients, memory.gathered, memory.activations, memory.head)
    parts = (*lasting, memory.decoding, memory.kv, memory.sampling, *update, memory.peak_gib)
    return [f"{part:.1f}" if part else "-" for part in parts]


def cost_lines(plan: Plan) -> list[str]:
    """What a plan amounts to, and where its numbers come from."""
    facts = plan.to_json()
    lines = [
        "",
        f"{plan.num_cells} cells, {len(plan.trials)} trials, {facts['num_trainings']} trainings; "
        f"about {facts['tokens']:,} completion tokens (training alone: at most {facts['max_tokens']:,})",
    ]
    on_gpus = [trial for trial in plan.paid() if trial.resources.gpus]
    if not on_gpus:
        return lines
    if plan.gpu_hours is None:
        return [*lines, "GPU-hours unknown: of a cell's model nothing is known; state `cost: {step_s: ...}`"]
    digits = 1 if plan.gpu_hours < 100 else 0
    lines.append(f"{plan.gpu_hours:,.{digits}f} GPU-hours: {', '.join(facts['gpu_hours_basis'])} seconds a step")
    if "estimated" in facts["gpu_hours_basis"]:
        lines.append(
            f"estimated: {MEAN_TOKENS} tokens a completion, unless stated; {EFFICIENCY:.0%} of an 80 GB H100's "
            "bfloat16 peak (assumed, not measured)"
        )
    largest = max(on_gpus, key=_size_on_node)
    lines.append(f"one node must have {_node(largest)} (for {largest.label})")
    known = [trial.placement for trial in on_gpus if trial.placement is not None]
    if known:
        worst = max(known, key=lambda spread: spread.memory.peak_gib)
        lines += [
            f"memory: up to {worst.memory.peak_gib:,.0f} of {worst.usable_gib:,.0f} GiB of a GPU, which leaves "
            f"{HEADROOM:.0%} of it free (estimated, docs/memory.md);",
            "a peak is rollout's (copy, KV, logits) or update's (gradients to head), beside the first three columns",
        ]
    return lines


def _size_on_node(trial: Trial) -> tuple[float, float, float]:
    return trial.resources.gpus, trial.resources.memory_gib or 0.0, trial.resources.cpus


def _node(trial: Trial) -> str:
    need = trial.resources
    memory = f", {need.memory_gib:g} GiB memory" if need.memory_gib else ""
    kind = f", {' or '.join(need.accelerator)}" if need.accelerator else ""
    return f"{need.gpus:g} GPUs, {need.cpus:g} CPUs{memory}{kind}"


def schedule_lines(found: "Schedule | None", budget: BudgetConfig, *, gpus: float) -> list[str]:
    """How long a plan takes on so many GPUs, and what its budget lets be done."""
    if found is None:
        return [f"on {gpus:g} GPUs: no trial asks for one, or of one nothing is known"]
    lines = [f"on {gpus:g} GPUs: about {found.hours:,.1f} h, each trial begun as soon as its GPUs are free"]
    limits = budget.limits()
    if any(limit is not None for limit in limits.values()):
        total = len(found.end_hours)
        lines.append(f"within the budget: {found.num_within(**limits)} of {total} trainings, in the order of the plan")
    return lines


def findings_table(found: Sequence["Finding"]) -> Table:
    """What a preflight looked at, and what is wrong."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in found:
        mark = "bad" if finding.is_bad else "warning" if finding.is_warning else "ok"
        table.add_row(mark, finding.check, printable(finding.text))
    return table


def submissions_table(found: Sequence["Submission"]) -> Table:
    """What was submitted to a cluster."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("sweep", "submission", "status", "since", "storage"):
        table.add_column(column)
    for one in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started_ms / 1000))
        table.add_row(one.sweep, one.id, one.status, since, one.storage)
    return table


def edit_lines(edits: "Edits | None") -> list[str]:
    """What an edited file changes of a sweep that has begun."""
    if edits is None:
        return []
    counts = f"{len(edits.new)} new, {len(edits.unchanged)} unchanged, {len(edits.changed)} changed, "
    counts += f"{len(edits.orphaned)} orphaned"
    lines = [f"since the sweep began: {counts} trials"]
    lines += [f"  orphaned: {trial.label}" for trial in edits.orphaned]
    return lines + [f"  `run` refuses: {complaint}" for complaint in edits.refused]


def ranking_table(ranked: Sequence["Ranked"]) -> Table:
    """Examples in their order."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("rank", "example", "score", "variance", "std", "mean", "visits"):
        table.add_column(column, justify="left" if column == "example" else "right")
    for place, one in enumerate(ranked):
        numbers = (one.score, one.variance, one.std, one.mean)
        table.add_row(str(place + 1), one.example, *(f"{value:.4f}" for value in numbers), str(one.num_visits))
    return table


def status_table(found: "SweepStatus") -> Table:
    """Trials that run, failed, wait or were stopped; those that finished are only counted."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("trial", "state", "step", "steps/s", "left", "attempts", ""):
        table.add_column(column)
    for one in found.trials:
        if one.state == "finished":
            continue
        rate = "" if one.steps_per_s is None else f"{one.steps_per_s:.3g}"
        left = "" if one.eta_s is None else f"{one.eta_s:.0f} s"
        steps = f"{one.step} of {one.num_steps}"
        table.add_row(one.label, one.state, steps, rate, left, str(one.attempts), printable(one.reason or one.where))
    return table


def sweeps_table(found: Sequence["SweepStatus"]) -> Table:
    """A store's sweeps, a line each."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    states = list(found[0].counts) if found else []
    for column in ("sweep", "phase", *states, "driver"):
        table.add_column(column)
    for one in found:
        table.add_row(one.name, one.phase, *(str(one.counts[state]) for state in states), one.driver or "")
    return table


def holdings_table(found: Sequence["Holding"]) -> Table:
    """Disk by sweep."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("sweep")
    for column in ("trainings", "bytes", "of it checkpoints"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(one.sweep, str(one.num_trainings), size(one.num_bytes), size(one.checkpoint_bytes))
    return table


def size(num_bytes: int) -> str:
    """Bytes as people read them."""
    amount, unit = float(num_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, bigger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
