"""A plan -> its tables and lines on a terminal: cells, memory, cost, wall-clock time, edits."""

from operator import attrgetter
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from oneshot.cli.tables import Fitted, duration, plain_table, size
from oneshot.config.resources import BudgetConfig
from oneshot.logs import counted
from oneshot.models.memory import Memory
from oneshot.models.placement import HEADROOM, Placement, alternatives
from oneshot.plan.cost import EFFICIENCY, MEAN_TOKENS
from oneshot.plan.plan import Plan
from oneshot.plan.trial import Trial
from oneshot.plan.wallclock import Schedule, planned_cost

if TYPE_CHECKING:
    from oneshot.plan.edits import Edits
    from oneshot.sweep.disk import Disk
    from oneshot.sweep.remaining import Remaining


def plan_table(plan: Plan) -> Group:
    """Return the table of a plan's cells, and the memory table if it uses GPUs."""
    tables: list[RenderableType] = [_cells_table(plan)]
    if _needs(plan):
        tables += [Text(), _memory_table(plan)]
    return Group(*tables)


def _cells_table(plan: Plan) -> Fitted:
    axes = list(plan.trials[0].cell) if plan.trials else []
    uses_gpus = any(trial.resources.gpus for trial in plan.trials)
    hours_column = ["GPU-h a trial"] if uses_gpus else []
    table = plain_table([*axes, "seeds", "steps", "cpus", "gpus", *hours_column, "keys"])
    by_cell: dict[tuple[str, ...], list[Trial]] = {}
    for trial in plan.trials:
        by_cell.setdefault(tuple(trial.cell.values()), []).append(trial)
    for cell, (first, *others) in by_cell.items():
        key = f"waits for {first.waits_for}" if first.key is None else first.key
        hours = first.cost.gpu_hours
        table.add_row(
            *cell,
            " ".join(dict.fromkeys(str(trial.seed) for trial in (first, *others))),
            str(first.config.train.num_steps),
            f"{first.resources.cpus:g}",
            f"{first.resources.gpus:g}",
            *(["?" if hours is None else f"{hours:.1f}"] if uses_gpus else []),
            key + ("?" if first.provisional else "") + (" ..." if others else ""),
        )
    return Fitted(table=table, optional=("cpus", "keys"), all_in="`--json`")


def _memory_table(plan: Plan) -> Fitted:
    """Return the GiB that each part takes of one GPU; for larger trials, also other placements."""
    table = plain_table((Column("GiB of a GPU", no_wrap=True),), _PARTS, "")
    for trial in _needs(plan):
        chosen = trial.placement
        assert chosen is not None, "_needs returns trials with a placement"
        is_small = chosen.fits and trial.resources.processes == 1
        rows = [] if is_small else list(alternatives(trial.config, trial.resources))
        table.add_row(trial.config.model.path.rpartition("/")[2])
        # two placements are the same however they were asked for
        same = attrgetter("resources.gpus", "strategy", "adapter")
        rows = [chosen if same(row) == same(chosen) else row for row in rows]
        for row in rows if chosen in rows else [chosen, *rows]:
            marks = ["does not fit"] * (not row.fits) + ["this sweep"] * (row == chosen)
            table.add_row(f"  {_way(row)}", *_memory_cells(row.memory), ", ".join(marks))
    return Fitted(table=table, optional=_LEAST_FIRST)


_PARTS = (
    "weights", "AdamW", "reference", "copy", "KV", "logits", "gradients", "gathered", "activations", "head", "peak",
)  # fmt: skip


_LEAST_FIRST = ("copy", "head", "gathered", "reference", "logits", "KV", "gradients", "weights", "activations", "AdamW")


def _needs(plan: Plan) -> list[Trial]:
    """Return the largest trial on GPUs for each model and placement."""
    largest: dict[object, Trial] = {}
    for trial in plan.trials:
        if not trial.resources.gpus or trial.placement is None:
            continue
        adapter = trial.config.model.adapter
        adapted = None if adapter is None else adapter.model_dump_json()  # a list of targets has no hash
        need = (trial.config.model.path, adapted, trial.placement.strategy, trial.resources.gpus)
        placement = largest.setdefault(need, trial).placement
        if placement is not None and trial.placement.memory.peak_gib > placement.memory.peak_gib:
            largest[need] = trial
    return list(largest.values())


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
    """Return a plan's totals, and how they were estimated."""
    totals = plan.to_json()
    most = f" (training alone: at most {totals['max_tokens']:,})" if totals["max_tokens"] else ""
    lines = [
        "",
        f"{plan.num_cells} cells, {len(plan.trials)} trials, {totals['num_trainings']} trainings; "
        f"about {totals['tokens']:,} completion tokens{most}",
    ]
    lines += _engine_lines(plan)
    if resamples := max((trial.config.rollout.resample for trial in plan.paid()), default=0):
        lines.append(f"up to {resamples + 1} rollouts a step are counted (rollout.resample); most steps need fewer")
    on_gpus = [trial for trial in plan.paid() if trial.resources.gpus]
    if not on_gpus:
        return lines
    if plan.gpu_hours is None:
        return [*lines, "GPU-hours unknown: the size of a cell's model is unknown; set `cost: {step_s: ...}`"]
    digits = 1 if plan.gpu_hours < 100 else 0
    lines.append(f"{plan.gpu_hours:,.{digits}f} GPU-hours: {', '.join(totals['gpu_hours_basis'])} seconds a step")
    if "estimated" in totals["gpu_hours_basis"]:
        lines.append(
            f"estimate: {MEAN_TOKENS} tokens a completion unless stated, at {EFFICIENCY:.0%} of an 80 GB H100's "
            "bfloat16 peak (assumed, not measured)"
        )
    largest = max(on_gpus, key=lambda t: (t.resources.gpus, t.resources.memory_gib or 0.0, t.resources.cpus))
    lines.append(f"each trial needs one node: the largest ({largest.label}) takes {_node(largest)}")
    placements = [trial.placement for trial in on_gpus if trial.placement is not None]
    if placements:
        worst = max(placements, key=lambda placement: placement.memory.peak_gib)
        lines += [
            f"memory: up to {worst.memory.peak_gib:,.0f} of {worst.usable_gib:,.0f} usable GiB of a GPU, with "
            f"{HEADROOM:.0%} left free (estimated, docs/memory.md);",
            "the peak is the first three columns plus the rollout (copy, KV, logits) or the update (gradients to head)",
        ]
    return lines


def price_lines(plan: Plan, budget: BudgetConfig) -> list[str]:
    """Return what the GPU-hours cost, if the budget has prices."""
    cost = planned_cost(plan, budget)
    limit = "" if budget.cost is None else f" (the budget is {budget.cost:,g})"
    return [] if cost is None else [f"cost: about {cost:,.2f}{limit}"]


def _engine_lines(plan: Plan) -> list[str]:
    """Return which engines sample, unless that is lockstep on CPUs."""
    trained = [trial for trial in plan.paid() if trial.config.script is None]
    engines = list(dict.fromkeys(trial.config.rollout.engine for trial in trained))
    if engines in ([], ["lockstep"]) and not any(trial.resources.gpus for trial in trained):
        return []
    return [f"rollouts: {', '.join(engines)} (docs/rollout.md says when `rollout.engine: auto` is vllm)"]


def _node(trial: Trial) -> str:
    need = trial.resources
    memory = f", {need.memory_gib:g} GiB memory" if need.memory_gib else ""
    kind = f", {' or '.join(need.accelerator)}" if need.accelerator else ""
    return f"{need.gpus:g} GPUs, {need.cpus:g} CPUs{memory}{kind}"


def schedule_lines(schedule: Schedule | None, budget: BudgetConfig, *, gpus: float) -> list[str]:
    """Return the wall-clock time on N GPUs, and what the budget allows."""
    if schedule is None:
        return [f"on {gpus:g} GPUs: unknown, because no trial uses a GPU or a cost is unknown"]
    lines = [f"on {gpus:g} GPUs: about {schedule.hours:,.1f} h, if each trial starts as soon as its GPUs are free"]
    limits = budget.limits()
    if any(limit is not None for limit in limits.values()):
        total = len(schedule.end_hours)
        lines.append(
            f"within the budget: {schedule.num_within(**limits)} of {total} trainings, in the order of the plan"
        )
    return lines


def standing_lines(remaining: "Remaining") -> list[str]:
    """Return how many trials have ended, and how long the others take on CPUs."""
    lines = []
    if any(remaining.ended.values()):
        ended = ", ".join(f"{number} {state}" for state, number in remaining.ended.items() if number)
        lines.append(f"of {remaining.num_trials} trials: {ended}, {remaining.num_open} to run")
    if remaining.seconds:
        at_a_time = f"{remaining.at_a_time} trials at a time" if remaining.at_a_time > 1 else "one trial at a time"
        lines.append(
            f"about {duration(remaining.seconds)} on CPUs with {at_a_time}, as finished trainings in the store took"
        )
    return lines


def disk_line(disk: "Disk") -> str:
    """Return how much disk space the trials take once all have finished, by kind, and how that is known."""
    running = "" if not disk.running_bytes else f"; a running trial's checkpoints up to {size(disk.running_bytes)}"
    if disk.num_bytes is None:
        known = sum(number for number in disk.bytes_by_kind.values() if number is not None)
        return f"disk: {size(known)}, and checkpoints of a model of unknown size"
    kinds = [f"{kind} {size(number)}" for kind, number in disk.bytes_by_kind.items() if number]
    return f"disk: about {size(disk.num_bytes)} ({', '.join(kinds)}; {', '.join(disk.basis)}){running}"


def edit_lines(edits: "Edits | None") -> list[str]:
    """Return what an edited file changes in a sweep that has begun."""
    if edits is None:
        return []
    num_extended = sum(map(len, edits.extended.values()))
    counts = f"{len(edits.new)} new, {num_extended} extended, {len(edits.unchanged)} unchanged, "
    counts += f"{len(edits.changed)} changed, {len(edits.orphaned)} orphaned"
    lines = [f"since the sweep began: {counts} trials"]
    lines += [
        f"  extended: {counted(len(trials), 'trial')}, by {addition}" for addition, trials in edits.extended.items()
    ]
    lines += [f"  orphaned: {trial.label}" for trial in edits.orphaned]
    return lines + [f"  `run` refuses: {complaint}" for complaint in edits.refused]
