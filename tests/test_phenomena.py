"""The paper's phenomena as tables: each against numbers worked by hand, and none where there is nothing to say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import sweep_run
from synthetic import make_store
from told import claim, gathered, grades, run, suite

from oneshot.config.claims import PublishedConfig
from oneshot.report.cells import cell_lines, gains
from oneshot.report.contrast import paired_difference, share_of
from oneshot.report.controls import format_table, label_table, ranking_table
from oneshot.report.phenomena import (
    category_table,
    collapse_table,
    cost_table,
    pass_at_k_table,
    saturation_table,
    strictness_table,
    tables,
    text_table,
)
from oneshot.report.published import published_tables
from oneshot.report.runs import Gathered, Grades, Run, gather, primary_suite
from oneshot.report.stats import Interval
from oneshot.report.table import Table
from oneshot.store.records import Row

T = 4.302653  # t(0.975, 2)
OUTCOME, FORMAT = {"arm": "outcome"}, {"arm": "format"}
AS_FORMAT = {"reward": {"kind": "format"}, "examples": []}


def measured(start: Mapping[str, float], last: Mapping[str, float]) -> dict[str, dict[int, dict[str, float]]]:
    return {"arithmetic": {0: dict(start), 8: dict(last)}}


def gaining(cell: Mapping[str, str], *gains: float, **changes: Any) -> list[Run]:
    """A seed for each gain; all begin at 0.25."""
    return [
        run(cell, seed, measured=measured({"pass_at_1": 0.25}, {"pass_at_1": 0.25 + gain}), **changes)
        for seed, gain in enumerate(gains)
    ]


def made(table: Table | None) -> Table:
    assert table is not None
    return table


def ends(value: Any) -> tuple[float, float | None, float | None]:
    assert isinstance(value, Interval)
    return value.mean, value.low, value.high


def rewards(*values: float) -> tuple[Row, ...]:
    return tuple(Row(step=n, time_ms=n, metrics={"reward/mean": value}) for n, value in enumerate(values, 1))


# saturation


def test_what_is_gained_before_and_after_saturation_by_hand() -> None:
    # seed 0 saturates at 3, evaluated at 4: 0.2 -> 0.5 -> 0.6; seed 1 at 5, evaluated at 8: 0.2 -> 0.4 -> 0.4;
    # seed 2 is still rising as it ends
    scores = [{0: 0.2, 4: 0.5, 8: 0.6}, {0: 0.2, 4: 0.3, 8: 0.4}, {0: 0.0, 4: 0.0, 8: 1.0}]
    curves = [(0.1, 0.1, 1, 1, 1, 1, 1, 1), (0.1, 0.1, 0.1, 0.1, 1, 1, 1, 1), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    runs = [
        run(
            OUTCOME,
            seed,
            rows=rewards(*curves[seed]),
            measured={"arithmetic": {step: {"pass_at_1": score} for step, score in scores[seed].items()}},
        )
        for seed in range(3)
    ]
    (row,) = made(saturation_table(gathered(runs), "arithmetic")).rows
    assert row[:3] == ("outcome", "3 to 8", "2 of 3")
    assert ends(row[3])[0] == pytest.approx((0.3 + 0.2) / 2)
    assert ends(row[4])[0] == pytest.approx((0.1 + 0.0) / 2)


def test_cells_that_never_had_a_reward_have_no_saturation() -> None:
    runs = [run(OUTCOME, seed, rows=rewards(*[0.0] * 8)) for seed in range(3)]
    assert made(saturation_table(gathered(runs), "arithmetic")).rows == ()
    assert tables(gathered(runs)) == []


# collapse


def test_when_accuracy_collapses_by_hand() -> None:
    # seed 0 falls from 0.5 at step 2 to 0.3 at step 4 and 0.2 at step 8, seed 1 from 0.7 at 4 to 0.1 at 8; seed 2 keeps
    # what it has
    scores = [{0: 0.2, 2: 0.5, 4: 0.3, 8: 0.2}, {0: 0.2, 2: 0.3, 4: 0.7, 8: 0.1}, {0: 0.2, 2: 0.3, 4: 0.5, 8: 0.5}]
    runs = [
        run(
            OUTCOME,
            seed,
            rows=rewards(*range(-8, 0)),
            measured={"arithmetic": {step: {"pass_at_1": score} for step, score in by_step.items()}},
        )
        for seed, by_step in enumerate(scores)
    ]
    (row,) = made(collapse_table(gathered(runs), "arithmetic")).rows
    assert row[:4] == ("outcome", "2 of 3", "4 to 8", "2 to 4")
    assert [ends(value)[0] for value in row[4:]] == [pytest.approx(mean) for mean in (0.6, 0.2, 0.15)]
    assert "collapse" in {table.name for table in tables(gathered(runs))}


def test_cells_that_do_not_collapse_are_left_out_and_so_is_their_table() -> None:
    falling = {"arithmetic": {step: {"pass_at_1": score} for step, score in {0: 0.2, 4: 0.5, 8: 0.1}.items()}}
    runs = [run(OUTCOME, rows=rewards(8, 7, 6, 5, 4, 3, 2, 1), measured=falling), run(FORMAT, rows=rewards(*[1.0] * 8))]
    assert made(collapse_table(gathered(runs), "arithmetic")).rows == ()
    assert "collapse" not in {table.name for table in tables(gathered(runs))}


# categories


def test_gain_by_category_beside_what_was_trained_on() -> None:
    start = {"pass_at_1": 0.2, "addition/pass_at_1": 0.1, "subtraction/pass_at_1": 0.3, "level 1/pass_at_1": 0.2}
    last = {"pass_at_1": 0.5, "addition/pass_at_1": 0.9, "subtraction/pass_at_1": 0.4, "level 1/pass_at_1": 0.7}
    runs = [
        run({"example": "sum"}, trained=("addition",), measured=measured(start, last)),
        run({"example": "other"}, measured=measured(start, start)),
    ]
    table = made(category_table(gathered(runs), "arithmetic"))
    assert table.columns == ("cell", "trained on", "addition", "subtraction")
    assert [row[:2] for row in table.rows] == [("sum", "addition"), ("other", "unknown")]
    assert [ends(value)[0] for value in table.rows[0][2:]] == [pytest.approx(0.8), pytest.approx(0.1)]
    assert [ends(value)[0] for value in table.rows[1][2:]] == [0.0, 0.0]


def test_a_suite_of_one_category_has_no_transfer() -> None:
    numbers = {"pass_at_1": 0.2, "addition/pass_at_1": 0.1, "level 1/pass_at_1": 0.2}
    assert category_table(gathered([run(OUTCOME, measured=measured(numbers, numbers))]), "arithmetic") is None


# format


def test_the_share_of_format_by_hand() -> None:
    # outcome gains 0.4, 0.5, 0.6 (0.5 -+ 0.248, clear of 0), format 0.1, 0.2, 0.3: share 0.2/0.5 = 0.4.
    # format - r outcome at each seed: 0.2 - 0.5 r and -+ 0.1 (1 - r), so its interval is -+ 0.248414 (1 - r)
    # 0.2 - 0.5 r is 0.248414 (1 - r) at r = -0.192435, and -0.248414 (1 - r) at r = 0.599152
    runs = gaining(OUTCOME, 0.4, 0.5, 0.6) + gaining(FORMAT, 0.1, 0.2, 0.3, config=AS_FORMAT)
    (row,) = made(format_table(gathered(runs), "arithmetic")).rows
    assert row[:2] == ("outcome", "format")
    assert ends(row[2]) == tuple(pytest.approx(0.5 + sign * T * 0.1 / 3**0.5, abs=1e-6) for sign in (0, -1, 1))
    assert ends(row[3])[0] == pytest.approx(0.2)
    assert ends(row[4]) == tuple(pytest.approx(end, abs=1e-4) for end in (0.4, -0.192435, 0.599152))


def test_the_share_of_format_counts_problems_if_their_grades_are_stored() -> None:
    rng = np.random.default_rng(8)
    runs = gaining(OUTCOME, 0.5, 0.5, 0.5, 0.5) + gaining(FORMAT, 0.2, 0.2, 0.2, 0.2, config=AS_FORMAT)
    chance_of = {"outcome": 0.8, "format": 0.45}
    right_of = {one.label: (rng.random(80) < chance_of[one.cell["arm"]]).astype(int) for one in runs}
    graded: dict[tuple[str, str, int], Grades] = {}
    for one in runs:
        for step, right in ((0, np.arange(80) % 4 == 0), (8, right_of[one.label])):
            graded[one.label, "arithmetic", step] = grades(right.astype(int).tolist(), categories=["x"] * 80)
    (row,) = made(format_table(gathered(runs, tables=graded), "arithmetic")).rows
    outcome_SP, format_SP = (
        np.array([right_of[f"{arm} seed {seed}"] for seed in range(4)]) - (np.arange(80) % 4 == 0)
        for arm in ("outcome", "format")
    )
    expected = share_of(
        lambda ratio: paired_difference(format_SP - ratio * outcome_SP), format_SP.mean() / outcome_SP.mean()
    )
    assert ends(row[4]) == pytest.approx((expected.mean, expected.low, expected.high), abs=1e-3)


def test_the_share_of_a_gain_that_is_not_clear_of_0_is_not_told() -> None:
    # 0.1, 0.2, 0.6: 0.3 -+ 0.66
    runs = gaining(OUTCOME, 0.1, 0.2, 0.6) + gaining(FORMAT, 0.1, 0.2, 0.3, config=AS_FORMAT)
    (row,) = made(format_table(gathered(runs), "arithmetic")).rows
    assert row[4] is None


def test_a_format_arm_stands_beside_the_cells_that_differ_in_one_axis() -> None:
    cells = [{"model": model, "arm": arm} for model in ("small", "large") for arm in ("outcome", "format")]
    runs = [
        one
        for cell in cells
        for one in gaining(cell, 0.5, **({"config": AS_FORMAT} if cell["arm"] == "format" else {}))
    ]
    table = made(format_table(gathered(runs), "arithmetic"))
    assert [row[:2] for row in table.rows] == [
        ("small / outcome", "small / format"),
        ("large / outcome", "large / format"),
    ]


# texts


def test_strict_less_lenient_within_each_run() -> None:
    # strict 0.2 -> 0.6 and 0.2 -> 0.8, lenient 0.4 -> 0.6 at both: 0.4 - 0.2, 0.6 - 0.2
    runs = [
        run(
            OUTCOME,
            seed,
            measured=measured(
                {"pass_at_1": 0.2, "pass_at_1_lenient": 0.4}, {"pass_at_1": 0.6 + 0.2 * seed, "pass_at_1_lenient": 0.6}
            ),
        )
        for seed in (0, 1)
    ]
    (row,) = made(strictness_table(gathered(runs), "arithmetic")).rows
    assert [ends(value)[0] for value in row[1:]] == [pytest.approx(0.5), pytest.approx(0.2), pytest.approx(0.3)]


def test_pass_at_k_before_and_after_of_suites_with_several_completions() -> None:
    start = {"pass_at_1": 0.2, "pass_at_2": 0.3, "pass_at_k": 0.6}
    last = {"pass_at_1": 0.4, "pass_at_2": 0.45, "pass_at_k": 0.5}
    suites = (suite(samples=4), suite("greedy"))
    runs = [run(OUTCOME, suites=suites, measured=measured(start, last))]
    table = made(pass_at_k_table(gathered(runs), "arithmetic"))
    assert [row[:3] for row in table.rows] == [("outcome", "arithmetic", k) for k in ("1", "2", "4")]
    assert [[ends(value)[0] for value in row[3:]] for row in table.rows] == [
        [0.2, 0.4, pytest.approx(0.2)],
        [0.3, 0.45, pytest.approx(0.15)],
        [0.6, 0.5, pytest.approx(-0.1)],
    ]


def test_measures_of_text_that_are_0_before_and_after_are_left_out() -> None:
    start = {"pass_at_1": 0.2, "boxed": 0.5, "reflection": 0.0, "code": 0.0, "length_mean": 30.0}
    last = {"pass_at_1": 0.2, "boxed": 1.0, "reflection": 0.25, "code": 0.0, "length_mean": 20.0}
    table = made(text_table(gathered([run(OUTCOME, measured=measured(start, last))]), "arithmetic"))
    assert [(row[1], ends(row[2])[0], ends(row[3])[0]) for row in table.rows] == [
        ("boxed", 0.5, 1.0),
        ("reflection words", 0.0, 0.25),
        ("tokens", 30.0, 20.0),
    ]


def test_a_share_on_which_seeds_agree_has_wilsons_interval_over_problems() -> None:
    # 0 of 20 problems: 0 to 0.1611 (Newcombe, Statistics in Medicine 17, 1998, table I), however many completions each
    suites = (replace(suite(samples=4), num_problems=20),)
    runs = [run(OUTCOME, seed, suites=suites, measured=measured({"boxed": 0.5}, {"boxed": 0.0})) for seed in (0, 1)]
    (row,) = made(text_table(gathered(runs), "arithmetic")).rows
    assert ends(row[3]) == (0.0, pytest.approx(0.0), pytest.approx(0.1611, abs=5e-5))
    assert gains(runs, "arithmetic", measure="boxed") == Interval(mean=-0.5, low=None, high=None, num=2)
    (line,) = cell_lines([replace(each, measured=measured({"pass_at_1": 0.0}, {"pass_at_1": 0.0})) for each in runs])
    assert line.last.high == pytest.approx(0.1611, abs=5e-5)


def test_a_share_near_its_end_has_no_interval_beyond_it() -> None:
    # 0.02, 0.04: 0.03 -+ 12.7062 x 0.01
    last = [measured({"boxed": 0.5}, {"boxed": share}) for share in (0.02, 0.04)]
    runs = [run(OUTCOME, seed, measured=each) for seed, each in enumerate(last)]
    (row,) = made(text_table(gathered(runs), "arithmetic")).rows
    assert ends(row[3]) == (pytest.approx(0.03), 0.0, pytest.approx(0.157062, abs=1e-6))


# labels


def labelled(*examples: Any) -> dict[str, Any]:
    return {"reward": {"kind": "outcome"}, "examples": list(examples)}


@pytest.mark.parametrize(
    "example", [{"row": "dsr_sub:124", "answer": "4"}, {"set": "dsr_sub", "random": 4, "wrong": 0.5, "seed": 0}]
)
def test_what_another_label_costs_by_hand(example: dict[str, Any]) -> None:
    # 0.5, 0.6 and 0.1, 0.4: -0.4 and -0.2
    runs = [
        *gaining({"example": "own"}, 0.5, 0.6, config=labelled("dsr_sub:124"), examples=("dsr_sub:124",)),
        *gaining({"example": "wrong"}, 0.1, 0.4, config=labelled(example), examples=("dsr_sub:124=4",)),
    ]
    (row,) = made(label_table(gathered(runs), "arithmetic")).rows
    assert row[:3] == ("own", "wrong", "dsr_sub:124=4")
    assert [ends(value)[0] for value in row[3:]] == [pytest.approx(0.55), pytest.approx(0.25), pytest.approx(-0.3)]


@pytest.mark.parametrize(
    "example",
    ["dsr_sub:1209", {"problem": "1+1=?", "answer": "2"}, {"set": "dsr_sub", "random": 4, "wrong": 0.0, "seed": 0}],
)
def test_what_carries_its_own_label_is_not_told_as_another(example: Any) -> None:
    runs = gaining({"example": "one"}, 0.5, config=labelled("dsr_sub:124"))
    runs += gaining({"example": "other"}, 0.1, config=labelled(example))
    assert made(label_table(gathered(runs), "arithmetic")).rows == ()


# rankings


def ranked(*by_seed: Sequence[float]) -> Gathered:
    examples = [f"e{number}" for number in range(len(by_seed[0]))]
    each = zip(examples, zip(*by_seed, strict=True), strict=True)
    return gathered([one for name, gains in each for one in gaining({"example": name}, *gains, examples=(name,))])


def test_how_alike_seeds_rank_examples_by_hand() -> None:
    # 1 2 3, 1 2 3 and 1 3 2: tau 1, and twice 2 of 3 pairs alike: (2 - 1) / 3
    found = made(ranking_table(ranked([0.1, 0.2, 0.3], [0.0, 0.4, 0.5], [0.1, 0.3, 0.2]), "arithmetic"))
    ((cells, examples, seeds, mean, least),) = found.rows
    assert (cells, examples, seeds) == ("all", "3", "3")
    assert (mean, least) == (pytest.approx((1 + 1 / 3 + 1 / 3) / 3), pytest.approx(1 / 3))


def test_seeds_that_rank_nothing_and_sweeps_without_examples_say_nothing() -> None:
    assert made(ranking_table(ranked([0.1, 0.1], [0.2, 0.3]), "arithmetic")).rows == ()
    assert ranking_table(gathered(gaining(OUTCOME, 0.1, 0.2)), "arithmetic") is None


# costs


def test_points_an_hour_by_hand() -> None:
    # 2 GPUs for an hour: 10 points for 2 GPU-hours; a worker without one for half an hour: 10 points for 0.5
    runs = gaining(OUTCOME, 0.1, 0.1, gpus=2.0) + gaining(FORMAT, 0.1, 0.1, spent_h=0.5)
    table = made(cost_table(gathered(runs), "arithmetic"))
    assert [(row[0], row[1], row[2], row[4]) for row in table.rows] == [
        ("outcome", "GPU", 2.0, pytest.approx(5.0)),
        ("format", "CPU worker", 0.5, pytest.approx(20.0)),
    ]


def test_what_cost_nothing_has_no_price() -> None:
    (row,) = made(cost_table(gathered(gaining(OUTCOME, 0.1, spent_h=0.0)), "arithmetic")).rows
    assert row[4] is None


# published numbers


def published(at: str = "last", cell: Mapping[str, Any] | None = None, value: float | None = 0.5) -> PublishedConfig:
    return PublishedConfig.model_validate(
        {
            "by": "Someone",
            "how": "best checkpoint, one seed",
            "columns": ["arithmetic", "other"],
            "rows": [{"cell": dict(cell or {}), "at": at, "values": [value, None]}],
        }
    )


def test_ours_less_what_was_published_by_hand() -> None:
    # 0.55, 0.65, 0.75 at the end: 0.65 -+ 4.302653 * 0.1 / sqrt(3), less 0.5
    runs = gaining(OUTCOME, 0.3, 0.4, 0.5) + gaining(FORMAT, 0.0, 0.0, 0.0)
    (table,) = published_tables(gathered(runs, published=(published(cell={"arm": "outcome"}),)))
    ((cell, of, at, theirs, ours, apart, grader),) = table.rows
    assert (cell, of, at, theirs) == ("outcome", "arithmetic", "last", 0.5)
    assert grader == "strict, without released"
    assert ends(ours)[0] == pytest.approx(0.65)
    half = T * 0.1 / 3**0.5
    assert ends(apart) == (
        pytest.approx(0.15),
        pytest.approx(0.15 - half, abs=1e-6),
        pytest.approx(0.15 + half, abs=1e-6),
    )
    assert "best checkpoint, one seed" in table.about


def test_published_before_training_and_of_every_cell() -> None:
    runs = gaining(OUTCOME, 0.3) + gaining(FORMAT, 0.0)
    (table,) = published_tables(gathered(runs, published=(published("start"),)))
    assert table.rows[0][:4] == ("all cells", "arithmetic", "start", 0.5)
    # two cells of one seed are one number, not two
    assert ends(table.rows[0][5]) == (-0.25, None, None)


def test_a_published_number_stands_alone_until_there_is_ours() -> None:
    runs = gaining(OUTCOME, 0.3, state="failed")
    (table,) = published_tables(gathered(runs, published=(published(),)))
    assert table.rows[0][4:6] == (None, None)
    assert published_tables(gathered(runs, published=(published(value=None),))) == []


# all of them


def test_the_suite_of_the_tables_is_the_first_claims_else_the_first_that_judges() -> None:
    suites = (suite("val", source="val"), suite("more"), suite("arithmetic"))
    runs = [run(OUTCOME, suites=suites)]
    assert primary_suite(gathered(runs)) == "more"
    assert primary_suite(gathered(runs, [claim({}, {"at": "start"}, metric="reward/mean")])) == "more"
    assert primary_suite(gathered(runs, [claim({}, {"at": "start"})])) == "arithmetic"
    assert primary_suite(gathered([run(OUTCOME, suites=suites[:1])])) == "val"
    assert primary_suite(gathered([run(OUTCOME, suites=())])) is None


@pytest.mark.parametrize("state", ["failed", "stopped", "missing"])
def test_trials_that_did_not_finish_are_in_no_table(state: str) -> None:
    assert tables(gathered(gaining(OUTCOME, 0.1, 0.2, 0.3, state=state))) == []
    assert tables(gathered([run(OUTCOME, suites=())])) == []


def test_tables_are_data(tmp_path: Path) -> None:
    text = """\
version: 1
name: all
question: Is there something to say?
trial:
  model.path: tiny:qwen2
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 8
  eval: {every_steps: 4, suites: {arithmetic: {num_problems: 4, samples: 2, temperature: 1.0}}}
axes:
  example:
    sum: {set: {examples: ["arithmetic:47+38"]}}
    product: {set: {examples: ["arithmetic:12*7"]}}
    wrong: {set: {examples: [{row: "arithmetic:47+38", answer: "3"}]}}
  arm: {outcome: {}, format: {set: {reward.kind: format}}}
seeds: [0, 1, 2]
"""
    found = {table.name: table for table in tables(gather(sweep_run(*make_store(tmp_path, text))))}
    assert list(found) == [
        "saturation",
        "collapse",  # by chance: four problems
        "categories",
        "format",
        "strictness",
        "pass_at_k",
        "selection",
        "texts",
        "labels",
        "ranking",
        "cost",
    ]
    assert {row[1] for row in found["categories"].rows} == {"addition", "multiplication"}
    assert {row[2] for row in found["labels"].rows} == {"arithmetic:47+38=3"}
    for table in found.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert json.loads(json.dumps(table.to_json(), allow_nan=False)) == table.to_json()
