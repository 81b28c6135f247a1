"""Advantages against numbers worked by hand, and laws over all rewards."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneshot.config.advantage import AdvantageConfig
from oneshot.training.advantage import group_advantages, zero_std_groups


def advantages(rewards: list[float], group_size: int, **settings: object) -> list[float]:
    config = AdvantageConfig.model_validate(settings)
    return group_advantages(torch.tensor(rewards, dtype=torch.float64), group_size=group_size, config=config).tolist()


def test_one_right_of_four_by_hand() -> None:
    # mean 1/4; sum of squares 9/16 + 3/16 = 3/4; ddof 1: sqrt(1/4) = 1/2; so 0.75 / 0.5 and -0.25 / 0.5
    assert advantages([1, 0, 0, 0], 4, eps=0.0) == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_eps_is_added_to_the_deviation() -> None:
    # rewards 1, 0: mean 1/2, std sqrt(1/2); 0.5 / (0.70710678 + 0.1)
    assert advantages([1, 0], 2, eps=0.1) == pytest.approx([0.6194967, -0.6194967], abs=1e-6)


def test_without_the_deviation_only_the_mean_is_taken_away() -> None:
    assert advantages([1, 0, 0, 0], 4, normalize_std=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_groups_do_not_see_each_other() -> None:
    alone = advantages([1, 0], 2)
    assert advantages([1, 0, 1, 1], 2) == pytest.approx([*alone, 0.0, 0.0])


def test_a_group_without_spread_is_exactly_zero() -> None:
    # 0.1 summed eight times is not 0.8: rounding must not be taken for signal
    assert advantages([0.1] * 8, 8, eps=0.0) == [0.0] * 8


def test_an_ungraded_completion_has_no_advantage_and_no_say() -> None:
    found = advantages([1, 0, math.nan, 0], 4)
    assert found[2] == 0.0
    assert [found[0], found[1], found[3]] == pytest.approx(advantages([1, 0, 0], 3))


def test_a_group_with_one_graded_completion_is_zero() -> None:
    assert advantages([1, math.nan, math.nan, math.nan], 4) == [0.0] * 4


def test_zero_std_groups_are_found_by_equality() -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0], [math.nan, 1.0], [math.nan, math.nan]])
    assert zero_std_groups(rewards).tolist() == [True, False, True, True]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16), st.floats(-3, 3))
def test_a_shift_of_all_rewards_changes_nothing(rewards: list[float], shift: float) -> None:
    moved = [reward + shift for reward in rewards]
    assert advantages(moved, len(rewards)) == pytest.approx(advantages(rewards, len(rewards)), abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16))
def test_advantages_of_a_group_sum_to_zero(rewards: list[float]) -> None:
    assert sum(advantages(rewards, len(rewards))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("case", "group_size"), [("hand_2x3", 2), ("rand_4x6", 4)])
def test_trl_gives_the_same_advantages(shared: Path, case: str, group_size: int) -> None:
    given = json.loads((shared / "golden" / "grpo_losses.json").read_text())["cases"][case]["inputs"]
    found = advantages(given["rewards"], group_size, eps=1e-4)
    assert max(abs(a - b) for a, b in zip(found, given["advantages"], strict=True)) < 1e-6
