"""Two sweeps side by side on the cells that both have."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from rich.console import Console
from scipy import stats
from synthetic import SMALL, make_store
from told import gathered, grades, run, suite
from verbs import oneshot

from oneshot.cli.tables import Fitted, plain_table
from oneshot.cli.verdict_tables import cells_table, comparison_lines, comparison_table
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.cells import cell_lines
from oneshot.report.compare import Line, compare
from oneshot.report.runs import Gathered, gather

CELLS = [{"arm": "outcome"}, {"arm": "format"}]
Right = Callable[[Mapping[str, str], int], Sequence[int]]


def sweep(
    right: Right,
    *,
    cells: Sequence[Mapping[str, str]] = CELLS,
    seeds: Sequence[int] = (0, 1, 2),
    first: int = 0,
    key: str = "",
    num_steps: int = 8,
    states: Mapping[int, str] | None = None,
) -> Gathered:
    """Runs with so many completions of each problem right at the end; `key`: of the version that trained them."""
    runs, tables = [], {}
    for cell in cells:
        for seed in seeds:
            counts = right(cell, seed)
            one = run(
                cell,
                seed,
                num_steps=num_steps,
                state=(states or {}).get(seed, "finished"),
                suites=(suite(digest=str(first)),),
                measured={"arithmetic": {num_steps: {"pass_at_1": sum(counts) / len(counts)}}},
                key=f"{key} {cell} {seed}",
            )
            runs.append(one)
            tables[one.label, "arithmetic", num_steps] = grades(counts, first=first)
    return gathered(runs, tables=tables)


def half(cell: Mapping[str, str], seed: int) -> list[int]:
    return [1, 1, 1, 0, 0, 0]


def only(a: Gathered, b: Gathered) -> Line:
    (line,) = compare(a, b).lines
    return line


def test_a_sweep_beside_itself_differs_by_nothing_and_says_why() -> None:
    found = compare(sweep(half), sweep(half))
    assert [line.cell for line in found.lines] == ["outcome", "format"]
    for line in found.lines:
        assert line.difference is not None
        assert (line.difference.effect, line.difference.low, line.difference.high) == (0.0, 0.0, 0.0)
        assert (line.p_value, line.p_holm, line.note) == (1.0, 1.0, "the same trainings by key")
        assert line.a == line.b
    assert (found.only_a, found.only_b) == ((), ())


def test_the_difference_is_that_of_b_less_a_by_hand() -> None:
    # of six problems a has 3 at each seed, b 3, 4 and 5 of them: 0, 1/6, 2/6; mean 1/6, error 1/6 / sqrt(3),
    # t(0.975, 2) = 4.302653: -+ 0.414023. Over problems the means are 0, 0, 0, 2/3, 1/3, 0, which is skewed: u are
    # -1/36 four times, 1/12, 1/36; squares 14/1296, a = (24/46656) / (6 (14/1296)^1.5) = 0.0763598,
    # error sqrt(14/1296 * 6/5) = 0.113855, w = a + 2.570582 = 2.646942, and 0.113855 w / (1 - a w)^2 = 0.473394
    line = only(
        sweep(half, cells=CELLS[:1]),
        sweep(lambda cell, seed: [1] * (3 + seed) + [0] * (3 - seed), cells=CELLS[:1], key="new"),
    )
    assert line.difference is not None
    assert line.difference.effect == pytest.approx(1 / 6)
    assert line.difference.low == pytest.approx(1 / 6 - 0.414023, abs=1e-6)
    assert line.difference.high == pytest.approx(1 / 6 + 0.473394, abs=1e-6)
    assert (line.difference.num_seeds, line.difference.num_problems, line.note) == (3, 6, "")
    # the larger of both tests' p: at 0 that of seeds crossed with problems
    assert line.p_value is not None
    assert line.p_value > stats.ttest_rel([3, 4, 5], [3, 3, 3]).pvalue
    assert (line.a.mean, line.b.mean) == (pytest.approx(0.5), pytest.approx(4 / 6))


def test_only_finished_trials_of_common_seeds_are_paired() -> None:
    a = sweep(half, cells=CELLS[:1], seeds=[0, 1, 2, 3, 4], states={1: "failed"})
    b = sweep(half, cells=CELLS[:1], seeds=[1, 2, 3, 4, 5], states={4: "missing"})
    line = only(a, b)
    assert line.difference is not None
    assert line.difference.num_seeds == 2  # 2 and 3
    assert line.difference.low is None
    assert (line.a.num, line.b.num, line.p_value) == (4, 4, None)


def test_without_a_common_seed_both_stand_without_a_difference() -> None:
    line = only(sweep(half, cells=CELLS[:1], seeds=[0, 1, 2]), sweep(half, cells=CELLS[:1], seeds=[3, 4, 5]))
    assert (line.difference, line.p_value, line.note) == (None, None, "no seed in common")
    assert line.a.mean == line.b.mean == 0.5


def test_other_problems_are_compared_by_means() -> None:
    line = only(sweep(half, cells=CELLS[:1]), sweep(lambda cell, seed: [1] * 6, cells=CELLS[:1], first=100, key="new"))
    assert line.difference is not None
    assert (line.difference.effect, line.difference.num_problems) == (0.5, None)
    assert line.note.endswith("different problems, so compared by means")


def test_another_length_is_told() -> None:
    line = only(sweep(half, cells=CELLS[:1]), sweep(half, cells=CELLS[:1], num_steps=4, key="new"))
    assert line.note == "different numbers of steps"


def test_cells_of_one_side_are_named() -> None:
    found = compare(sweep(half), sweep(half, cells=[CELLS[1], {"arm": "random"}]))
    assert [line.cell for line in found.lines] == ["format"]
    assert (found.only_a, found.only_b) == (("outcome",), ("random",))


def test_an_axis_more_makes_other_cells() -> None:
    found = compare(sweep(half, cells=CELLS[:1]), sweep(half, cells=[{"model": "small", "arm": "outcome"}]))
    assert (found.lines, found.only_a, found.only_b) == ((), ("outcome",), ("small / outcome",))


def test_the_order_of_axes_makes_no_other_cells() -> None:
    found = compare(
        sweep(half, cells=[{"model": "small", "arm": "outcome"}]),
        sweep(half, cells=[{"arm": "outcome", "model": "small"}]),
    )
    assert len(found.lines) == 1


def test_all_lines_are_corrected_together() -> None:
    def more(cell: Mapping[str, str], seed: int) -> list[int]:
        return [1] * (4 + seed % 2) + [0] * (2 - seed % 2) if cell["arm"] == "outcome" else half(cell, seed)

    found = compare(sweep(half), sweep(more, key="new"))
    outcome, control = found.lines
    assert outcome.p_value is not None
    assert outcome.p_holm == pytest.approx(2 * outcome.p_value)
    assert control.p_holm == 1.0


def test_it_survives_json() -> None:
    found = compare(sweep(half), sweep(half, seeds=[0, 7], cells=[*CELLS, {"arm": "random"}])).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"lines", "only_a", "only_b", "notes", "environments"}
    assert set(found["lines"][0]) == {"cell", "suite", "a", "b", "difference", "p_value", "p_holm", "note"}


def test_what_has_not_finished_is_named_with_its_side() -> None:
    states = dict.fromkeys((0, 1, 2), "failed")
    found = compare(sweep(half), joined(sweep(half, cells=CELLS[:1]), sweep(half, cells=CELLS[1:], states=states)))
    assert [line.cell for line in found.lines] == ["outcome"]
    assert found.notes == ("no finished trial in B: format",)
    assert compare(sweep(half), sweep(half)).notes == ()


def joined(*sweeps: Gathered) -> Gathered:
    return replace(sweeps[0], runs=tuple(run for each in sweeps for run in each.runs))


def test_a_suite_of_one_side_is_named() -> None:
    other = sweep(half)
    more = replace(other, runs=tuple(replace(one, suites=(*one.suites, suite("arithmetic2"))) for one in other.runs))
    assert compare(more, sweep(half)).notes == ("suite arithmetic2 only in A",)
    part = replace(other, runs=(*more.runs[:3], *other.runs[3:]))
    found = compare(sweep(half), part)
    assert found.notes == ("suite arithmetic2 only in B: outcome",)
    assert len(found.lines) == 2
    table = comparison_lines(found, a="one", b="two")
    assert table == ["suite arithmetic2 only in B: outcome"]


def test_a_finished_run_without_its_last_evaluation_is_not_paired() -> None:
    other = sweep(half, cells=CELLS[:1], key="new")
    lacking = replace(other, runs=(replace(other.runs[0], measured={}), *other.runs[1:]))
    line = only(sweep(half, cells=CELLS[:1]), lacking)
    assert line.difference is not None and line.difference.num_seeds == 2
    nothing = replace(other, runs=tuple(replace(one, measured={}) for one in other.runs))
    found = compare(sweep(half, cells=CELLS[:1]), nothing)
    assert (found.lines, found.notes) == ((), ("no evaluation on arithmetic after the last step in B: outcome",))


def test_models_without_training_are_compared_over_problems() -> None:
    # one checkpoint on each side, whatever the seed: of 6 problems b has 4 more, and seeds say nothing of the spread
    a = sweep(lambda cell, seed: [1] + [0] * 5, cells=CELLS[:1], num_steps=0)
    b = sweep(lambda cell, seed: [1] * 5 + [0], cells=CELLS[:1], num_steps=0, key="new")
    line = only(a, b)
    assert line.difference is not None and line.difference.low is not None
    assert line.difference.effect == pytest.approx(4 / 6)
    assert line.difference.test == "bootstrap over 6 problems"
    assert line.difference.low > 0
    one_seed = only(*(replace(each, runs=each.runs[:1]) for each in (a, b)))
    assert one_seed.difference is not None and one_seed.difference.low == line.difference.low


def test_other_environments_are_told_with_their_sides() -> None:
    def on(gpu: str, torch: str) -> Gathered:
        made, noted = sweep(half), {"env_digest": torch, "gpu": gpu, "platform": "Linux", "versions": {"torch": torch}}
        return replace(made, runs=tuple(replace(one, environments=(noted,)) for one in made.runs))

    assert compare(on("", "2.1"), on("", "2.1")).environments == ""
    assert (
        compare(on("", "2.0"), on("H100", "2.1")).environments == "torch 2.0 in A, 2.1 in B; gpu none in A, H100 in B"
    )
    assert compare(sweep(half), on("H100", "2.1")).environments == ""


def shown(table: Any, *, width: int, on_terminal: bool = False) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, markup=False, force_terminal=on_terminal, no_color=True).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_narrow_terminal_shows_every_name_and_difference_whole() -> None:
    arms = [{"model": "a-model-of-a-long-name", "arm": "outcome-of-a-long-name"}]
    found = compare(sweep(half, cells=arms), sweep(half, cells=arms))
    table = comparison_table(found, a="one", b="two")
    wide, narrow = (shown(table, width=width) for width in (200, 80))
    assert "suite" in wide[0] and "p, Holm" in wide[0]
    assert "suite" not in narrow[0] and "95% interval" in narrow[0]
    assert all(len(line) <= 80 and "…" not in line for line in narrow)
    assert "a-model-of-a-long-name" in narrow[1] and "+0.000" in narrow[1]
    assert narrow[-2] == "a wider terminal also shows: suite, p, Holm"


def test_a_column_without_content_is_the_first_to_go() -> None:
    table = plain_table(("name", "empty"), ("number",))
    table.add_row("a" * 70, "", "-1")
    assert shown(Fitted(table=table), width=80)[1] == f"{'a' * 70}      -1"
    assert shown(Fitted(table=table), width=100)[0].split() == ["name", "empty", "number"]


def test_a_terminal_shows_the_first_lines_of_a_long_table_and_a_file_has_all() -> None:
    table = plain_table(("name",))
    for number in range(75):
        table.add_row(f"cell-{number}")
    fitted = Fitted(table=table, all_in="`--json`")
    lines = shown(fitted, width=80, on_terminal=True)
    assert len(lines) == 62
    assert lines[-2].startswith("cell-59")
    assert "and 15 more; `--json` has all" in lines[-1]
    assert len(shown(fitted, width=80)) == 76


def test_names_of_cells_are_no_orders_to_the_terminal() -> None:
    hostile = "\x1b[31m"
    cells = [{"arm": f"{hostile}red"}]
    found = compare(sweep(half, cells=[*cells, {"arm": f"{hostile}a"}]), sweep(half, cells=[*cells, {"arm": "b"}]))
    console = Console(file=io.StringIO(), width=200, markup=False)
    console.print(comparison_table(found, a="one", b="two"))
    console.print(cells_table(cell_lines(sweep(half, cells=cells).runs)))
    lines = comparison_lines(found, a="one", b=f"{hostile}two")
    said = console.file.getvalue() + "".join(lines)
    assert "\x1b" not in said
    assert lines == ["only in one: \\x1b[31ma", "only in \\x1b[31mtwo: b"]


def test_a_store_and_its_bundle_differ_by_nothing(tmp_path: Path) -> None:
    made = gather(sweep_run(*make_store(tmp_path, SMALL.replace("num_problems: 20", "num_problems: 2"))))
    write_bundle(made, tmp_path / "small.zip")
    found = compare(made, read_bundle(tmp_path / "small.zip"))
    assert len(found.lines) == 4
    assert all(line.difference is not None and line.difference.effect == 0 for line in found.lines)
    said = oneshot("compare", "small", "small.zip", "--json", cwd=tmp_path)
    assert said.code == 0
    assert json.loads(said.out) == json.loads(json.dumps(found.to_json()))
