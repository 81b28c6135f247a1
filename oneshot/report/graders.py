"""Gathered runs -> how often our grader and the released one disagree, by cell and suite."""

from oneshot.report.cells import cell_label, ended_cells, level
from oneshot.report.runs import Gathered
from oneshot.report.table import Table, Value


def graders_table(gathered: Gathered) -> Table | None:
    """Return both graders' accuracy after training and the share of completions on which they differ, if recorded."""
    rows: list[tuple[Value, ...]] = []
    for runs in ended_cells(gathered.runs):
        for suite in sorted({suite.name for run in runs for suite in run.suites}):
            strict, released, differ = (
                level(runs, suite, "last", measure=name)
                for name in ("pass_at_1", "pass_at_1_released", "graders_disagree")
            )
            if released is not None:
                rows.append((cell_label(runs[0]), suite, strict, released, differ))
    if not rows:
        return None
    return Table(
        name="graders",
        title="Where the graders disagree",
        about="Strict: our grader on the last box. Released: the rules of the released evaluation (Qwen2.5-Math's "
        "`math_equal`), which most published numbers were made with. Disagree: the share of completions on which "
        "they differ; where it is not small, read the completions before a number.",
        columns=("cell", "suite", "strict", "released", "disagree"),
        rows=tuple(rows),
        form="points",
    )
