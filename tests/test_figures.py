"""The report's figures: of which runs they are, how large matrices are drawn, and how odd names are."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import unescape
from typing import Any
from xml.etree import ElementTree

import pytest
from told import gathered, run, suite

from oneshot.report import figures
from oneshot.report.figures import Picture, pictures
from oneshot.report.plots import MAX_CHARS, inline, short, sweep_curves, trial_curve
from oneshot.report.runs import Gathered, Run
from oneshot.store.records import Row


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A warning would be on a user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trained(cell: Mapping[str, str], seed: int = 0, *, last: float = 0.75, entropy: float = 0.5, **more: Any) -> Run:
    rows = tuple(
        Row(
            step=step,
            time_ms=0,
            metrics={"reward/mean": step / 8, "rollout/entropy": entropy, "rollout/length_mean": 20},
        )
        for step in range(1, 9)
    )
    suites = more.pop("suites", (suite(),))
    measured = {suites[0].name: {0: {"pass_at_1": 0.25}, 8: {"pass_at_1": last}}}
    return run(cell, seed, rows=rows, measured=measured, suites=suites, **more)


def drawn(runs: Sequence[Run], **more: Any) -> dict[str, Picture]:
    return {one.name: one for one in pictures(gathered(runs, **more), [])}


def texts(picture: Picture) -> list[str]:
    """All that a figure says, as a reader of the SVG finds it."""
    ElementTree.fromstring(picture.svg)
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)]


def test_the_curves_file_is_called_so_whatever_the_suite_is() -> None:
    found = drawn([trained({"arm": arm}, suites=(suite("../../x y"),)) for arm in ("outcome", "format")])
    assert set(found) == {"curves", "gains", "cost", "training"}


def test_curves_are_of_finished_runs_where_a_cell_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = [trained({"arm": "outcome"}, seed) for seed in (0, 1)]
    broke = trained({"arm": "outcome"}, 2, last=0.0, entropy=9.0, state="failed")
    alone = drawn(finished)
    with_broken = drawn([*finished, broke])
    for name in ("curves", "training"):
        assert with_broken[name].svg == alone[name].svg
        assert "inished runs only; a cell without finished runs shows all its runs" in with_broken[name].caption
    only_broken = drawn([broke])
    assert "outcome" in texts(only_broken["training"])  # a cell without any shows what there is
    assert only_broken["training"].svg != alone["training"].svg


def matrix(num_rows: int, num_columns: int) -> Gathered:
    return gathered(
        [trained({"model": f"m{y}", "example": f"e{x}"}) for y in range(num_rows) for x in range(num_columns)]
    )


def test_a_small_matrix_is_one() -> None:
    found = [one for one in pictures(matrix(2, 12), []) if one.name.startswith("transfer")]
    assert [one.name for one in found] == ["transfer-0"]
    assert "of 1" not in found[0].caption


@pytest.mark.slow
def test_a_large_matrix_is_drawn_in_parts_and_nothing_is_left_out() -> None:
    # 25 rows are 24 and 1, 13 columns 12 and 1: four parts
    whole = matrix(25, 13)
    found = [one for one in pictures(whole, []) if one.name.startswith("transfer")]
    assert [one.name for one in found] == ["transfer-0", "transfer-1", "transfer-2", "transfer-3"]
    assert found[0].caption.startswith("Transfer (1 of 4): ")
    shown = [(y, x) for one in found for y in re.findall(r"^m\d+$", "\n".join(texts(one)), re.M)
             for x in re.findall(r"^e\d+$", "\n".join(texts(one)), re.M)]  # fmt: skip
    assert sorted(shown) == sorted((r.cell["model"], r.cell["example"]) for r in whole.runs)
    assert sum(text == "+50.0" for one in found for text in texts(one)) == 25 * 13


def test_parts_share_their_colours_and_empty_ones_are_left_out() -> None:
    # m0..m24 on e0, and only m0 on e1..e12: of the part with m24 and e12 nothing is known
    cells = [(f"m{y}", "e0") for y in range(25)] + [("m0", f"e{x}") for x in range(1, 13)]
    runs = [trained({"model": y, "example": x}, last=1.0 if y == "m24" else 0.5) for y, x in cells]
    found = [one for one in pictures(gathered(runs), []) if one.name.startswith("transfer")]
    assert len(found) == 3
    # the largest gain, 75, is opaque to 0.55 in its part; 25 is a third of that in each
    opacities = [set(re.findall(r"opacity: (0\.\d+)", one.svg)) for one in found]
    assert [{round(float(each), 3) for each in one} for one in opacities] == [{0.183}, {0.183}, {0.55}]


LONG = "a very long name of a cell " * 8


def test_a_long_name_is_shortened_in_its_middle() -> None:
    assert short("x" * MAX_CHARS) == "x" * MAX_CHARS
    found = short(LONG + "the end")
    assert len(found) == MAX_CHARS
    assert found.startswith("a very long name") and "…" in found and found.endswith("the end")
    assert short("two\nlines") == "two lines"
    assert short("\x1b[31m") == "\\x1b[31m"


@pytest.mark.parametrize("num", [1, 2, 5, 9])
def test_long_names_leave_every_figure_whole(num: int) -> None:
    runs = [
        trained({"model": f"{LONG}{model}", "example": f"{LONG}{one}", "arm": LONG}, seed)
        for model in range(2)
        for one in range(num)
        for seed in (0, 1)
    ]
    found = drawn(runs, name="n" * 200)
    assert {"curves", "gains", "training", "transfer-0"} <= set(found)
    assert all(len(text) < 150 for one in found.values() for text in texts(one))


HOSTILE = ["$x$", "a<b>&amp;", "\"q\" 'p'", "日本語 ñ", "_under", "</svg><script>alert(1)</script>"]


def test_odd_names_come_out_as_text() -> None:
    runs = [trained({"model": f"m{name}", "example": name}) for name in HOSTILE]
    found = drawn(runs)
    for name in HOSTILE:
        line = f"\u200b{name}" if name.startswith("_") else name
        for picture in ("curves", "transfer-0"):
            assert line in texts(found[picture]), (name, picture)
    for one in found.values():
        page = inline(one.svg, label=one.caption)
        assert "<script>" not in page and page.count("<svg") == page.count("</svg>") == 1


def test_a_name_with_an_underscore_first_is_in_the_legend() -> None:
    runs = [trained({"arm": name}) for name in ("_one", "two")]
    assert "\u200b_one" in texts(drawn(runs)["training"])
    assert "\u200b_one" in texts(drawn(runs)["cost"])


def test_a_measure_that_an_evaluation_lacks_is_no_point() -> None:
    whole = trained({"arm": "outcome"})
    runs = [replace(whole, measured={"arithmetic": {**whole.measured["arithmetic"], 4: {"boxed": 1.0}}})]
    assert drawn(runs)["curves"].svg == drawn([whole])["curves"].svg


@pytest.mark.parametrize(
    ("rewards", "expected", "label"),
    [
        ((0.25, 1.0), [0.25, 1.0], "training reward"),
        ((-30.0, -20.0, -10.0), [0.0, 0.5, 1.0], "training reward, scaled to 0 to 1"),
        ((3.0, 3.0), [0.0, 0.0], "training reward, scaled to 0 to 1"),
    ],
)
def test_a_reward_that_is_no_share_is_drawn_on_the_axis_of_shares(
    rewards: Sequence[float], expected: list[float], label: str
) -> None:
    rows = [Row(step=step, time_ms=0, metrics={"reward/mean": reward}) for step, reward in enumerate(rewards, 1)]
    (axes,) = trial_curve(rows, title="one").axes
    (line,) = axes.lines
    assert (list(line.get_ydata()), line.get_label()) == (expected, label)
    (axes,) = sweep_curves([run({}, rows=tuple(rows))], suite="arithmetic", name="one").axes
    dotted = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert list(dotted.get_ydata()) == expected


def test_the_largest_matrix_is_of_24_by_12() -> None:
    assert (figures.MAX_ROWS, figures.MAX_COLUMNS) == (24, 12)
