"""The shipped sweep files, aliases and suites -> docs/sweeps.md: `python docs/catalog.py sweeps`."""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from oneshot.config.file import load
from oneshot.plan.cost import EFFICIENCY, MEAN_TOKENS
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.tasks import sets
from oneshot.tasks.benchmarks import BUILT_IN, GENERATED
from oneshot.tasks.examples import aliases

INTRODUCTION = f"""# The shipped sweeps

`make docs` generates this page. The first line of each file is its question. `oneshot plan FILE` shows its trials,
`oneshot run FILE` runs it, and `oneshot fetch SET` downloads the data that it needs.

GPU-hours are estimates, not measurements: {MEAN_TOKENS} tokens per completion unless the file says otherwise,
and {EFFICIENCY:.0%} of an 80 GB H100's bfloat16 peak. As soon as the store has a finished training of the same
shape, `oneshot plan` uses its measured seconds per step instead. Resources are for 80 GB GPUs: one for 1B, two for
3B, four for 7B ([memory.md](memory.md)).
"""


def catalog(files: Iterable[Path]) -> str:
    """Return the whole document."""
    rows = [_row(path.name, *planned(path)) for path in files]
    return "\n".join([INTRODUCTION, *_table(rows), "", *_suites(), "", *_aliases(), ""])


@cache
def planned(path: Path) -> tuple[PinnedSweep, Plan]:
    """Return a sweep file's sweep and plan."""
    sweep = load(path)
    return sweep, make_plan(sweep)


def _row(name: str, sweep: PinnedSweep, plan: Plan) -> list[str]:
    seeds = len(sweep.config.planned_seeds)
    tokens = plan.to_json()["tokens"]
    hours = (
        "-" if not plan.gpu_hours else f"{plan.gpu_hours:,.1f}" if plan.gpu_hours < 100 else f"{plan.gpu_hours:,.0f}"
    )
    millions = f"{tokens / 1e6:,.1f}" if tokens < 1e8 else f"{tokens / 1e6:,.0f}"
    return [
        f"[{name}](../sweeps/{name})",
        sweep.config.question,
        sweep.config.reproduces or "",
        f"{plan.num_cells} x {seeds}",
        hours,
        millions,
    ]


def _table(rows: list[list[str]]) -> Iterator[str]:
    yield "| file | question | reproduces | cells x seeds | GPU-hours | million tokens |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _suites() -> Iterator[str]:
    yield "## Suites\n"
    yield (
        "A suite uses the trial's prompt (`prompt.eval_template`, no suffix unless set). pass@1 is reported by the "
        "strict grader (last `\\boxed{}`) and by the lenient one. With more than one sample pass@1 is avg@k, and "
        "pass@k is reported as well.\n"
    )
    yield "| suite | problems | samples | temperature | metric | what |"
    yield "|---|---|---|---|---|---|"
    for name, suite in BUILT_IN.items():
        if suite.source in GENERATED:
            size, about = "as set, per category", suite.about
        else:
            size = str(sets.num_rows(suite.source))
            about = suite.about or sets.KNOWN[suite.source].about
        metric = "pass@1" if suite.samples == 1 else f"avg@{suite.samples}, pass@{suite.samples}"
        yield f"| `{name}` | {size} | {suite.samples} | {suite.temperature:g} | {metric} | {about} |"


def _aliases() -> Iterator[str]:
    yield "## The paper's named examples\n"
    yield (
        "Ranks are by the standard deviation of accuracy over the released 500 steps. Ranks 1106 to 1209 are ties at "
        "0, in the arbitrary order of a file's keys, so an example is named by its row and never by its rank.\n"
    )
    yield "| paper | row | label | std | category | |"
    yield "|---|---|---|---|---|---|"
    for name, alias in aliases().items():
        notes = [*(["a tie at 0"] if alias.get("tie") else []), *([str(alias["note"])] if "note" in alias else [])]
        columns = [f"`{alias['row']}`", f"`{alias['label']}`", str(alias["std"]), str(alias.get("category", ""))]
        yield f"| {' | '.join([name, *columns, '; '.join(notes)])} |"


if __name__ == "__main__":
    sys.stdout.write(catalog(sorted(Path(sys.argv[1]).glob("*.yaml"))))
