"""Budgets of thinking in the report: the lines, their measures by hand, and the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import sweep_run
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_store
from test_figures import texts
from told import gathered, run, suite

from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.figures import pictures
from oneshot.report.forcing import budget_lines, forcing_table, line_label, scaling, scaling_table
from oneshot.report.phenomena import tables
from oneshot.report.runs import Run, gather
from oneshot.report.stats import Interval


def thought(cell: Mapping[str, str], seed: int = 0, *, kl: float = 0.0, **points: tuple[int, float, float]) -> Run:
    """A run whose suites have (budget, thinking tokens, accuracy)."""
    rules = {
        name: {"source": "math500", "max_tokens": None, "thinking": {"end": "</think>", "max_tokens": budget}}
        for name, (budget, _, _) in points.items()
    }
    measured = {
        name: {8: {"pass_at_1": accuracy, "thinking_tokens": tokens, "control": 1.0, "waits": 0.5, "forced_ends": 0.25,
                   "no_final_answer": 0.125}}
        for name, (_, tokens, accuracy) in points.items()
    }  # fmt: skip
    config = {"reward": {"kind": "outcome"}, "examples": [], "loss": kl, "eval": {"every_steps": 4, "suites": rules}}
    suites = tuple(suite(name, source="math500") for name in points)
    return run(cell, seed, config=config, measured=measured, suites=suites)


CELL = {"arm": "outcome"}
SHORT, MIDDLE, LONG = (500, 400.0, 0.5), (1000, 900.0, 0.6), (2000, 1400.0, 0.65)


def test_scaling_by_hand() -> None:
    # slopes: 0.1 / 500, 0.15 / 1000 and 0.05 / 500, or 20, 15 and 10 points for 100,000 tokens: 15 on average
    assert scaling([(400.0, 0.5), (900.0, 0.6), (1400.0, 0.65)]) == pytest.approx(0.15e-3)
    assert scaling([(400.0, 0.5)]) is None
    # budgets that none of the completions used up are no pair
    assert scaling([(400.0, 0.5), (400.0, 0.6)]) is None


@given(st.lists(st.floats(1, 1e4), min_size=2, max_size=6, unique=True), st.floats(-1e-3, 1e-3), st.randoms())
def test_the_scaling_of_a_straight_line_is_its_slope_in_any_order(
    tokens: list[float], slope: float, shuffler: Any
) -> None:
    points = [(x, 0.5 + slope * x) for x in tokens if all(abs(x - y) > 1 or x == y for y in tokens)]
    shuffler.shuffle(points)
    found = scaling(points)
    assert found is None or found == pytest.approx(slope, abs=1e-9)


def only(runs: Sequence[Run]) -> list[list[tuple[str, int]]]:
    return [[(point.run.label, point.budget) for point in line] for line in budget_lines(runs)]


def test_suites_of_a_cell_are_a_line_in_the_order_of_budgets() -> None:
    runs = [thought(CELL, long=LONG, short=SHORT)]
    assert only(runs) == [[("outcome seed 0", 500), ("outcome seed 0", 2000)]]
    assert line_label(budget_lines(runs)[0]) == "outcome / math500"


def test_cells_that_differ_only_in_the_budget_are_a_line() -> None:
    runs = [
        thought({"arm": arm, "budget": name}, kl=kl, math=point)
        for arm, kl in (("outcome", 0.0), ("kl", 0.1))
        for name, point in (("large", LONG), ("small", SHORT))
    ]
    assert only(runs) == [[(f"{arm}/small seed 0", 500), (f"{arm}/large seed 0", 2000)] for arm in ("outcome", "kl")]
    assert [line_label(line) for line in budget_lines(runs)] == ["outcome / math", "kl / math"]


def test_the_tables_by_hand() -> None:
    # two seeds: 0.5 and 0.6 at 500, with 400 and 420 tokens; 0.7 and 0.8 at 1,000, with 810 each
    runs = [
        thought(CELL, 0, a=(500, 400.0, 0.5), b=(1000, 810.0, 0.7)),
        thought(CELL, 1, a=(500, 420.0, 0.6), b=(1000, 810.0, 0.8)),
    ]
    table = forcing_table(gathered(runs), "a")
    assert table is not None
    assert [row[:8] for row in table.rows] == [
        ("outcome", "a", "500", "410", "0.50", 0.25, 0.125, 1.0),
        ("outcome", "b", "1,000", "810", "0.50", 0.25, 0.125, 1.0),
    ]
    assert [row[8].mean for row in table.rows if isinstance(row[8], Interval)] == pytest.approx([0.55, 0.75])
    summary = scaling_table(gathered(runs), "a")
    assert summary is not None
    ((cells, budgets, control, slope, performance),) = summary.rows
    assert (cells, budgets, control) == ("outcome / math500", "500, 1,000", 1.0)
    assert (slope, performance) == (pytest.approx(0.5), pytest.approx(0.75))  # 20 points over 400 tokens


def test_a_sweep_without_budgets_has_neither_tables_nor_figure() -> None:
    plain = [run(CELL, measured={"arithmetic": {0: {"pass_at_1": 0.2}, 8: {"pass_at_1": 0.4}}})]
    assert not {"forcing", "scaling"} & {table.name for table in tables(gathered(plain))}
    assert "thinking" not in {picture.name for picture in pictures(gathered(plain), [])}


def test_the_figure_has_a_line_for_each_set_of_budgets() -> None:
    runs = [thought({"arm": arm}, kl=kl, a=SHORT, b=MIDDLE, c=LONG) for arm, kl in (("outcome", 0.0), ("kl", 0.1))]
    (picture,) = (each for each in pictures(gathered(runs), []) if each.name == "thinking")
    assert {"outcome / math500", "kl / math500", "thinking tokens (mean)", "accuracy (pass@1)"} <= set(texts(picture))


SWEEP = """\
version: 1
name: budgets
question: Does more thinking help?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 4
  eval: {every_steps: 4, suites: {arithmetic: {num_problems: 4, thinking: {end: So, max_tokens: 10, min_waits: 1}}}}
axes:
  eval.suites.arithmetic.thinking.max_tokens: [10, 20, 40]
seeds: [0, 1]
"""


def test_a_sweep_over_budgets_has_one_line_also_in_a_bundle(tmp_path: Path) -> None:
    found = gather(sweep_run(*make_store(tmp_path, SWEEP)))
    write_bundle(found, tmp_path / "b.oneshot.zip")
    for each in (found, read_bundle(tmp_path / "b.oneshot.zip")):
        (line,) = budget_lines(each.runs)
        assert [point.budget for point in line] == [10, 20, 40]
        assert all(0 < point.thinking_tokens <= point.budget for point in line)
        assert {"forcing", "scaling"} <= {table.name for table in tables(each)}
