"""What choosing a checkpoint on the test set adds: by hand, on noise whose truth is known, and in a report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import sweep_run
from hypothesis import given
from hypothesis import strategies as st
from synthetic import SMALL, make_store

from oneshot.report import selection
from oneshot.report.bundle import read_bundle, write_bundle
from oneshot.report.runs import Gathered, Grades, Run, gather
from oneshot.report.selection import cross_fitted, selected, selection_table
from oneshot.report.stats import Interval

# by hand


def test_four_problems_by_hand() -> None:
    """Step 0 is right on problems 0 and 1, step 1 on 2 and 3, step 2 on none.

    Best on test: 2 of 4. The halves {0, 1} and {2, 3} choose the step that is right on them and wrong on the others: 0.
    Each of the other four halves has one problem of each kind; both steps are right on one of two, so step 0 is chosen
    and right on one of the other two: 0.5. Over all three ways to halve: (0 + 0.5 + 0.5) / 3.
    """
    right_TP = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    found = selected(right_TP)
    assert (found.best_on_test, found.last) == (0.5, 0.0)
    assert cross_fitted(right_TP, num_halvings=20_000) == pytest.approx(1 / 3, abs=0.005)


@given(st.integers(2, 9), st.integers(0, 5), st.integers(1, 5))
def test_if_one_step_is_always_chosen_its_accuracy_comes_out(num_problems: int, seed: int, num_halvings: int) -> None:
    """Halves of an odd number of problems differ in size; each problem still counts once."""
    right_TP = np.random.default_rng(seed).integers(0, 2, (3, num_problems)).astype(float)
    right_TP[1] = 2.0  # above all others on every half
    assert cross_fitted(right_TP, num_halvings=num_halvings, seed=seed) == pytest.approx(2.0)


@given(st.integers(0, 10_000))
def test_it_never_exceeds_the_best_on_test(seed: int) -> None:
    """Of a halving, b (chosen by half 2) is at least as right on half 2 as a, which half 1 chose.

    So a on half 2 and b on half 1 are together at most b on both halves.
    """
    right_TP = np.random.default_rng(seed).random((4, 13))
    assert cross_fitted(right_TP) <= selected(right_TP).best_on_test + 1e-12


def test_it_is_the_same_each_time() -> None:
    right_TP = np.random.default_rng(0).random((5, 31))
    assert cross_fitted(right_TP) == cross_fitted(right_TP)


# on noise


def test_on_noise_the_best_on_test_exceeds_the_truth_and_the_cross_fitted_does_not() -> None:
    """800 runs of 20 checkpoints that are right on each of 100 problems with probability 0.4.

    An accuracy has a standard deviation of sqrt(0.4 x 0.6 / 100) = 4.9 points, and the largest of 20 normal draws is
    1.87 standard deviations above the mean on average: 9.2 points. The cross-fitted mean over 800 runs has a standard
    error of about 4.9 / sqrt(800) = 0.17 points.
    """
    rng = np.random.default_rng(1)
    runs = [selected((rng.random((20, 100)) < 0.4).astype(float)) for _ in range(800)]
    best = np.mean([run.best_on_test for run in runs])
    fitted = np.mean([run.cross_fitted for run in runs])
    assert best - 0.4 == pytest.approx(0.092, abs=0.006)
    assert fitted == pytest.approx(0.4, abs=4 * 0.0017)


def test_if_one_step_is_truly_better_the_choice_adds_little() -> None:
    """Step 1 is right on 0.8 of the problems, the others on 0.2: every half finds it."""
    rng = np.random.default_rng(2)
    chance_T = np.array([0.2, 0.8, 0.2])
    runs = [selected((rng.random((3, 200)) < chance_T[:, None]).astype(float)) for _ in range(20)]
    assert all(run.best_on_test == pytest.approx(run.cross_fitted) for run in runs)


# in a report


def flat(_trial: object, _step: int, _problem: int) -> float:
    return 0.4


def gathered_from(folder: Path, text: str = SMALL) -> Gathered:
    sweep, plan, store = make_store(folder, text, accuracy=flat)
    return gather(sweep_run(sweep, plan, store))


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    return gathered_from(tmp_path_factory.mktemp("flat"))


def test_a_report_has_a_row_for_each_cell(gathered: Gathered) -> None:
    table = selection_table(gathered, "arithmetic")
    assert table is not None
    assert [row[:4] for row in table.rows[:2]] == [
        ("tiny-qwen2 / format", "arithmetic", "3", "4"),
        ("tiny-llama / format", "arithmetic", "3", "4"),
    ]
    assert len(table.rows) == 4
    for _, _, _, _, best, fitted, _, added in table.rows:
        assert isinstance(best, Interval)
        assert isinstance(fitted, Interval)
        assert isinstance(added, Interval)
        assert added.mean == pytest.approx(best.mean - fitted.mean)
        assert added.mean > 0


class Without:
    """A record that lacks the grades of one step, as a bundle of an older version does."""

    def __init__(self, gathered: Gathered, step: int) -> None:
        self.record, self.step = gathered.record, step

    def grades(self, run: Run, suite: str, step: int) -> Grades | None:
        return None if step == self.step else self.record.grades(run, suite, step)

    def shown(self, run: Run, suite: str, step: int) -> tuple[()]:
        return ()


def test_runs_without_all_grades_are_left_out(gathered: Gathered) -> None:
    table = selection_table(replace(gathered, record=Without(gathered, 8)), "arithmetic")
    assert table is not None
    assert table.rows == ()


def test_two_evaluations_are_no_choice(tmp_path: Path) -> None:
    table = selection_table(gathered_from(tmp_path, SMALL.replace("every_steps: 4", "every_steps: 12")), "arithmetic")
    assert table is not None
    assert table.rows == ()


def test_no_more_is_read_than_the_limit(gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MOST_EVALUATIONS", 30)  # a cell has 12
    table = selection_table(gathered, "arithmetic")
    assert table is not None
    assert len(table.rows) == 2
    assert table.about.endswith("2 cells and suites are left out: at most 30 evaluations are read.")


def test_a_bundle_has_the_same_table(gathered: Gathered, tmp_path: Path) -> None:
    path = tmp_path / "flat.oneshot.zip"
    write_bundle(gathered, path)
    own, other = (selection_table(each, "arithmetic") for each in (gathered, read_bundle(path)))
    assert own == other
