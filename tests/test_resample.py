"""Dynamic sampling and penalties for length: which groups are drawn again, and what their update and metrics are."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trl.rewards import get_soft_overlong_punishment

from oneshot.config.trial import TrialConfig
from oneshot.rollout.engine import Completion
from oneshot.tasks.grading import Grader
from oneshot.training.grpo import overlong_penalties, resample, roll_out, train_step
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import new_state
from oneshot.training.update import update

MakeConfig = Callable[..., TrialConfig]
NO_EVAL: dict[str, Any] = {"eval": {"suites": {}}}
COIN = {"reward": {"kind": "random", "probability": 0.15}}
"""A group of four has no spread with probability 0.85^4 + 0.15^4 = 0.52."""


def step_of(config: TrialConfig, grader: Grader, *, seed: int = 0) -> StepMetrics:
    return train_step(config, new_state(config, seed=seed, grader=grader))


def without_spread(config: TrialConfig, grader: Grader, seed: int) -> tuple[Any, Any, Any]:
    state = new_state(config, seed=seed, grader=grader)
    first = roll_out(config, state)
    return state, first, resample(config, state, first)


def test_groups_without_spread_are_drawn_again_and_the_others_are_kept(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(**COIN, **NO_EVAL, rollout={"num_groups": 8, "resample": 1})
    _, first, redrawn = without_spread(config, grader, seed=0)
    num_open = first.spread_N.count(False)
    assert 0 < num_open < 8
    assert redrawn.metrics["rollout/groups_drawn"] == 8 + num_open
    kept = redrawn.kept
    assert redrawn.metrics["rollout/groups_kept"] == len(kept.completions) / 4
    assert 8 - num_open <= len(kept.completions) / 4 <= 8
    assert all(len(set(group)) > 1 for group in kept.rewards_G.view(-1, 4).tolist())
    # groups with spread are those of the first draw
    own = [first.completions[4 * place] for place in range(8) if first.spread_N[place]]
    assert all(completion in kept.completions for completion in own)
    # a new draw has new completions
    new = [completion for completion in kept.completions if completion not in first.completions]
    assert (len(new) > 0) == (len(kept.completions) / 4 > 8 - num_open)
    assert redrawn.num_tokens > first.num_tokens


def test_more_draws_keep_more_groups_and_change_none_of_the_earlier(tiny_config: MakeConfig, grader: Grader) -> None:
    kept = []
    for times in (1, 2, 6):
        config = tiny_config(**COIN, **NO_EVAL, rollout={"num_groups": 8, "resample": times})
        kept.append(without_spread(config, grader, seed=1)[2].kept.completions)
    assert len(kept[0]) < len(kept[1]) <= len(kept[2])
    assert set(kept[0]) <= set(kept[1]) <= set(kept[2])


def test_the_statistics_of_completions_are_those_of_the_first_draws(tiny_config: MakeConfig, grader: Grader) -> None:
    """Drawing until a group differs would pull an accuracy of 1 or 0 towards a half; visits rank examples by it."""
    plain, resampled = (
        step_of(tiny_config(**NO_EVAL, rollout={"resample": times}, examples=["arithmetic:12*7"]), grader)
        for times in (0, 3)
    )
    assert resampled.metrics["rollout/groups_drawn"] > 4
    assert resampled.visits == plain.visits
    assert resampled.sampled == plain.sampled
    names = [name for name in plain.metrics if name.startswith(("reward/", "rollout/")) and "mismatch" not in name]
    assert len(names) >= 8
    assert {name: resampled.metrics[name] for name in names} == {name: plain.metrics[name] for name in names}


def test_without_any_spread_there_is_no_update(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(
        **NO_EVAL, examples=["arithmetic:5-99"], rollout={"resample": 2}, train={"updates_per_rollout": 2}
    )
    state = new_state(config, seed=0, grader=grader)
    before = {name: p.detach().clone() for name, p in state.weights.master.items()}
    metrics = train_step(config, state).metrics
    assert metrics["rollout/groups_drawn"] == 12  # four groups, three times
    assert metrics["rollout/groups_kept"] == 0
    assert metrics["optim/skipped"] == 2
    assert not any(name.startswith("loss/") for name in metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[name], p) for name, p in state.weights.master.items())
    assert state.step == 1


def test_the_update_is_that_of_a_batch_of_the_kept_groups(tiny_config: MakeConfig, grader: Grader) -> None:
    """Groups that stay without spread are in no denominator: neither pg nor KL and entropy count them."""
    sections = {**COIN, **NO_EVAL, "model": {"path": "tiny:qwen2", "dtype": "float64"}}
    config = tiny_config(**sections, rollout={"num_groups": 8, "resample": 1})
    state, _, redrawn = without_spread(config, grader, seed=0)
    num_kept = len(redrawn.kept.completions) // 4
    assert num_kept < 8
    found = update(config, state, redrawn.kept)
    plain = tiny_config(**sections, rollout={"num_groups": num_kept})
    fresh = new_state(plain, seed=0, grader=grader)
    wanted = update(plain, fresh, redrawn.kept)
    names = [name for name in wanted if name.startswith("loss/")]
    assert {name: found[name] for name in names} == {name: wanted[name] for name in names}
    assert found["optim/skipped"] == 0


@pytest.mark.parametrize(("num_groups", "steps"), [(3, 2), (1, 1), (8, 2)])
def test_kept_groups_are_shared_among_the_updates(
    tiny_config: MakeConfig, grader: Grader, num_groups: int, steps: int
) -> None:
    """Two updates: 3 groups are 1 and 2; one group leaves an update without any, which is not taken."""
    config = tiny_config(**COIN, **NO_EVAL, rollout={"num_groups": 8, "resample": 8}, train={"updates_per_rollout": 2})
    state, _, redrawn = without_spread(config, grader, seed=0)
    kept = redrawn.kept
    assert len(kept.completions) == 8 * 4
    size = 4 * num_groups
    for name in ("example_G", "completions", "texts", "correct_G", "rewards_G", "advantages_G"):
        object.__setattr__(kept, name, getattr(kept, name)[:size])
    metrics = update(config, state, kept)
    assert metrics["optim/skipped"] == 2 - steps
    moments = [state.optimizer.state[p]["step"].item() for p in state.weights.master.values()]
    assert set(moments) == {steps}


def test_draws_have_keys_of_their_own(tiny_config: MakeConfig, grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(**NO_EVAL, examples=["arithmetic:5-99", "arithmetic:12*7"], rollout={"resample": 2})
    state = new_state(config, seed=5, grader=grader)
    keys = []
    generate = state.engine.generate

    def spy(policy: Any, requests: Any, *rest: Any) -> Any:
        keys.extend(key for request in requests for key in request.row_keys)
        return generate(policy, requests, *rest)

    monkeypatch.setattr(type(state.engine), "generate", lambda _self, *arguments: spy(*arguments))
    resample(config, state, roll_out(config, state))
    assert len(set(keys)) == len(keys)
    assert {key[2] for key in keys} == set(range(16))
    # groups 0 and 2 never have a right answer, so all their places are drawn three times
    wanted = {(5, 0, place, *draw) for place in (*range(4), *range(8, 12)) for draw in ((), (1,), (2,))}
    assert wanted <= set(keys)


def test_resampling_without_a_baseline_is_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match=r"rollout\.resample: 2 needs advantage\.baseline: group"):
        tiny_config(rollout={"resample": 2}, advantage={"baseline": "none"})


def completion(length: int) -> Completion:
    return Completion(token_ids=(1,) * length, logprobs=(0.0,) * length, truncated=False)


def test_the_penalty_for_length_by_hand_and_by_trl(tiny_config: MakeConfig) -> None:
    # of 100 tokens the last 20 are the buffer: none up to 80, a half at 90, all of it at 100
    config = tiny_config(rollout={"max_tokens": 100}, reward={"overlong": {"buffer": 20, "penalty": 3.0}})
    found = overlong_penalties([completion(length) for length in (1, 80, 81, 90, 100)], config)
    assert found == pytest.approx([0.0, 0.0, -0.15, -1.5, -3.0])
    plain = tiny_config(rollout={"max_tokens": 100}, reward={"overlong": {"buffer": 20}})
    lengths = range(1, 101)
    wanted = get_soft_overlong_punishment(100, 20)([[1] * length for length in lengths])
    assert overlong_penalties([completion(length) for length in lengths], plain) == pytest.approx(wanted)


def test_the_penalty_is_part_of_the_reward_and_not_of_what_is_resampled(
    tiny_config: MakeConfig, grader: Grader
) -> None:
    """All answers to 5-99 are wrong; their lengths, and so their rewards, differ. DAPO draws such groups again."""
    sections = {**NO_EVAL, "examples": ["arithmetic:5-99"], "rollout": {"resample": 1, "max_tokens": 48}}
    _, first, redrawn = without_spread(tiny_config(**sections, reward={"overlong": {"buffer": 48}}), grader, seed=0)
    lengths = [len(completion.token_ids) for completion in first.completions]
    assert first.rewards_G.tolist() == pytest.approx([-length / 48 for length in lengths])
    assert len(set(lengths)) > 1
    assert first.advantages_G.abs().max() > 0
    assert first.spread_N == (False,) * 4
    assert redrawn.metrics["rollout/groups_drawn"] == 8
    metrics = step_of(tiny_config(**sections, reward={"overlong": {"buffer": 48}}), grader).metrics
    assert metrics["reward/overlong"] == pytest.approx(first.rewards_G.mean().item())
    assert metrics["reward/accuracy"] == 0
    assert "reward/errors" not in metrics


def test_a_buffer_beyond_the_largest_length_is_refused(tiny_config: MakeConfig) -> None:
    with pytest.raises(
        ValueError, match=r"reward\.overlong\.buffer: 60 is more than rollout\.max_tokens \(56\); lower it"
    ):
        tiny_config(reward={"overlong": {"buffer": 60}}, rollout={"max_tokens": 56})
