"""The arms, what they make of rewards, and which example each group of a step is of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneshot.config.advantage import AdvantageConfig
from oneshot.config.reward import RewardConfig
from oneshot.tasks.grading import Grader, Verdict
from oneshot.tasks.rewards import answer_entropy, elect, judge, rewards
from oneshot.training.advantage import advantages, group_advantages
from oneshot.training.order import first_visits, groups_of_step

Key = tuple[int, ...]


def paid(texts: list[str], config: RewardConfig, grader: Grader, *, keys: list[Key] | None = None) -> list[Verdict]:
    judged = [judge(text, "85", config, grader) for text in texts]
    return rewards(judged, config, grader, keys=keys or [(0, 0, place) for place in range(len(texts))]).values


def boxed(*answers: str) -> list[str]:
    return [f"So \\boxed{{{answer}}}." for answer in answers]


# the random arm


def coins(keys: list[Key], grader: Grader, *, probability: float = 0.5) -> list[Verdict]:
    return paid(["x"] * len(keys), RewardConfig(kind="random", probability=probability), grader, keys=keys)


def test_a_coin_is_decided_by_its_key_and_by_nothing_else(grader: Grader) -> None:
    keys = [(0, 3, place) for place in range(64)]
    arm = RewardConfig(kind="random")
    first = coins(keys, grader)
    assert paid(boxed(*map(str, range(64))), arm, grader, keys=keys) == first
    assert coins(keys[::-1], grader) == first[::-1]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_another_seed_step_or_place_is_another_coin(grader: Grader, part: int) -> None:
    def of(value: int) -> list[Verdict]:
        keys = [[1, 2, 100 + index] for index in range(64)]
        for key in keys:
            key[part] += value
        return coins([tuple(key) for key in keys], grader)

    assert of(0) != of(1000)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_coins_pay_at_their_probability(grader: Grader, probability: float) -> None:
    keys = [(0, step, place) for step in range(50) for place in range(80)]
    rate = sum(bool(coin) for coin in coins(keys, grader, probability=probability)) / len(keys)
    # 4,000 coins: four standard deviations are at most 4 x sqrt(0.25 / 4000) = 0.032
    assert rate == pytest.approx(probability, abs=0.032)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, False), (1.0, True)])
def test_a_coin_of_no_doubt_is_certain(grader: Grader, probability: float, expected: bool) -> None:
    assert set(coins([(0, 0, place) for place in range(200)], grader, probability=probability)) == {expected}


def test_a_likelier_coin_pays_whatever_a_less_likely_one_does(grader: Grader) -> None:
    keys = [(7, 0, place) for place in range(200)]
    less, more = (coins(keys, grader, probability=probability) for probability in (0.3, 0.6))
    assert all(m or not el for el, m in zip(less, more, strict=True))


def test_whatever_is_paid_it_is_known_what_was_right(grader: Grader) -> None:
    for kind in ("outcome", "format", "random", "majority"):
        config = RewardConfig.model_validate({"kind": kind})
        assert [judge(text, "85", config, grader).correct for text in boxed("85", "84")] == [True, False]


# the majority arm


def test_the_commonest_answer_is_paid_right_or_wrong(grader: Grader) -> None:
    texts = [*boxed("84", "85", "84"), "84", ""]
    assert paid(texts, RewardConfig(kind="majority"), grader) == [True, False, True, False, False]


def test_equal_answers_vote_together_however_they_are_spelt(grader: Grader) -> None:
    # 3 votes for a half, in three spellings, against 2 for 7
    texts = boxed("7", "0.5", "1/2", r"\frac{1}{2}", "7")
    assert paid(texts, RewardConfig(kind="majority"), grader) == [False, True, True, True, False]


def test_of_two_answers_as_common_the_one_spelt_first_is_elected(grader: Grader) -> None:
    assert elect(boxed("9", "10", "9", "10"), grader) == "10"
    assert elect(boxed("b", "a"), grader) == "a"


def test_an_election_does_not_depend_on_the_order_of_votes(grader: Grader) -> None:
    texts = boxed("0.5", "7", r"\frac{1}{2}", "7", "3")
    assert {elect([*texts[turn:], *texts[:turn]], grader) for turn in range(5)} == {elect(texts, grader)}


def test_without_a_box_nobody_is_elected_and_nobody_paid(grader: Grader) -> None:
    texts = ["85", "", r"\boxed{}", r"\boxed{ }"]
    assert elect(texts, grader) is None
    assert paid(texts, RewardConfig(kind="majority"), grader) == [False] * 4


def test_the_answer_that_is_right_has_no_say_in_an_election(grader: Grader) -> None:
    arm, texts = RewardConfig(kind="majority"), boxed("1", "2", "2")
    judged = [[judge(text, answer, arm, grader) for text in texts] for answer in ("1", "2")]
    keys = [(0, 0, place) for place in range(3)]
    assert rewards(judged[0], arm, grader, keys=keys) == rewards(judged[1], arm, grader, keys=keys)


# how much answers differ


def disagreement(texts: list[str], grader: Grader) -> float:
    return answer_entropy(texts, [grader.strict(text, "85") for text in texts])


def test_equal_answers_do_not_differ(grader: Grader) -> None:
    assert disagreement(boxed("85", "85.0", r"\frac{170}{2}"), grader) == 0.0
    assert disagreement(boxed("1000", r"{1000}", " 1000. "), grader) == 0.0
    # wrong answers are compared as normalised texts
    assert disagreement(boxed("0.5", "1/2"), grader) == pytest.approx(math.log(2), abs=1e-15)
    assert disagreement(["85", "", r"\boxed{}", r"\boxed{ }"], grader) == 0.0


def test_an_entropy_of_answers_is_that_of_their_shares(grader: Grader) -> None:
    # four answers, each its own: log 4
    assert disagreement(boxed("1", "2", "3", "85"), grader) == pytest.approx(math.log(4), abs=1e-15)
    # a half twice, 85 in two spellings, seven once, and three without a box: shares 2/8, 2/8, 1/8, 3/8
    texts = [*boxed("1/2", "85", "7", "1/2", "85.0"), "85", "", r"\boxed{"]
    expected = 2 * 0.25 * math.log(4) + 0.125 * math.log(8) + 0.375 * math.log(8 / 3)
    assert disagreement(texts, grader) == pytest.approx(expected, abs=1e-15)


def test_examples_with_equal_shares_have_the_same_entropy_to_the_bit(grader: Grader) -> None:
    # shares 1/7, 2/7 and 4/7, of which the right answer has one or the other
    counts = [(1, 2, 4), (4, 1, 2), (2, 4, 1)]
    answers = ("85", "84", "83")
    texts = [boxed(*(a for a, count in zip(answers, of, strict=True) for _ in range(count))) for of in counts]
    assert len({disagreement(each, grader) for each in texts}) == 1


# the other arms


def test_the_format_arm_pays_any_answer_in_a_box(grader: Grader) -> None:
    texts = [*boxed("85", "84", r"\frac{1}{2}", "-3"), "85", r"\boxed{"]
    assert paid(texts, RewardConfig(kind="format"), grader) == [True, True, True, True, False, False]


def test_the_outcome_arm_pays_what_equals_the_label(grader: Grader) -> None:
    texts = [*boxed("85", r"\frac{170}{2}", "84"), "85"]
    assert paid(texts, RewardConfig(), grader) == [True, True, False, False]


# advantages without baseline, and weights


def found(rewards_: list[float], *, group_size: int = 4, **settings: object) -> list[float]:
    config = AdvantageConfig.model_validate(settings)
    return advantages(torch.tensor(rewards_, dtype=torch.float64), group_size=group_size, config=config).tolist()


def test_without_baseline_a_right_one_is_plus_1_a_wrong_one_minus_1_an_ungraded_one_0() -> None:
    assert found([1, 0, math.nan, 1], baseline="none") == [1, -1, 0, 1]


def test_without_baseline_a_group_of_one_kind_still_teaches() -> None:
    assert found([1, 1, 1, 1], baseline="none") == [1, 1, 1, 1]
    assert found([1, 1, 1, 1]) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [(1, 1, [1, -1, 0, -1]), (1, 0, [1, 0, 0, 0]), (0, 1, [0, -1, 0, -1]), (0.1, 1, [0.1, -1, 0, -1]), (0, 0, [0] * 4)],
)
def test_each_sign_has_its_weight(positive: float, negative: float, expected: list[float]) -> None:
    # only positive samples (PSR), only negative ones (NSR), W-REINFORCE
    weights = {"positive_weight": positive, "negative_weight": negative}
    assert found([1, 0, math.nan, 0], baseline="none", **weights) == pytest.approx(expected)


def test_weights_of_group_advantages_by_hand() -> None:
    # mean 1/4; raw 3/4 and -1/4; x 2 above 0, x 0.5 below
    settings = {"normalize_std": False, "positive_weight": 2.0, "negative_weight": 0.5}
    assert found([1, 0, 0, 0], **settings) == pytest.approx([1.5, -0.125, -0.125, -0.125])


REWARDS = st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=4, max_size=4)


@given(REWARDS)
def test_weights_of_1_are_no_weights(rewards_: list[float]) -> None:
    config = AdvantageConfig()
    raw = group_advantages(torch.tensor(rewards_, dtype=torch.float64), group_size=4, config=config)
    assert found(rewards_) == raw.tolist()


@given(REWARDS, st.sampled_from(["group", "none"]), st.floats(0, 3), st.floats(0, 3))
def test_a_weight_changes_the_size_of_one_sign_and_nothing_else(
    rewards_: list[float], baseline: str, positive: float, negative: float
) -> None:
    raw = found(rewards_, baseline=baseline)
    weighted = found(rewards_, baseline=baseline, positive_weight=positive, negative_weight=negative)
    expected = [value * (positive if value > 0 else negative) for value in raw]
    assert weighted == pytest.approx(expected)


@given(REWARDS, st.sampled_from(["group", "none"]))
def test_an_ungraded_completion_has_no_advantage(rewards_: list[float], baseline: str) -> None:
    assert all(a == 0 for r, a in zip(rewards_, found(rewards_, baseline=baseline), strict=True) if math.isnan(r))


# which example each group is of


def test_few_examples_take_turns() -> None:
    assert groups_of_step(1, 4, seed=0, step=0) == [0, 0, 0, 0]
    assert groups_of_step(2, 4, seed=0, step=9) == [0, 1, 0, 1]
    assert groups_of_step(4, 4, seed=5, step=9) == [0, 1, 2, 3]


def epoch(num_examples: int, num_groups: int, *, seed: int, number: int) -> list[int]:
    """Examples of every step of one epoch, in order."""
    num_steps = num_examples // num_groups
    steps = range(number * num_steps, (number + 1) * num_steps)
    return [e for step in steps for e in groups_of_step(num_examples, num_groups, seed=seed, step=step)]


@given(st.integers(1, 16), st.integers(1, 60), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_no_example_twice(num_groups: int, more: int, seed: int, number: int) -> None:
    num_examples = num_groups + more
    visited = epoch(num_examples, num_groups, seed=seed, number=number)
    assert len(set(visited)) == len(visited) == num_examples // num_groups * num_groups
    assert set(visited) <= set(range(num_examples))


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 3))
def test_the_first_visits_are_those_of_examples_that_no_earlier_step_has_seen(
    num_examples: int, num_groups: int, seed: int
) -> None:
    seen: set[int] = set()
    for step in range(12):
        visited = set(groups_of_step(num_examples, num_groups, seed=seed, step=step))
        assert first_visits(num_examples, num_groups, seed=seed, step=step) == visited - seen
        seen |= visited


def test_what_an_epoch_leaves_out_is_less_than_a_step() -> None:
    # 1,209 examples in steps of 128: 9 steps see 1,152 of them, 57 are left out
    assert len(epoch(1209, 128, seed=0, number=0)) == 1152


def test_each_epoch_has_an_order_of_its_own_and_leaves_out_others() -> None:
    first, second = (epoch(10, 3, seed=0, number=number) for number in (0, 1))
    assert first != second
    left_out = {tuple(set(range(10)) - set(epoch(10, 3, seed=0, number=number))) for number in range(20)}
    assert len(left_out) > 3


def test_the_order_is_the_seeds() -> None:
    assert epoch(100, 8, seed=1, number=0) == epoch(100, 8, seed=1, number=0)
    assert epoch(100, 8, seed=1, number=0) != epoch(100, 8, seed=2, number=0)


def test_over_many_epochs_every_example_is_visited() -> None:
    assert {e for number in range(20) for e in epoch(10, 3, seed=0, number=number)} == set(range(10))
