"""Budget forcing: the loop against an engine whose completions a test says, and a suite on a tiny model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import trial

from oneshot.config.evaluation import ThinkingConfig
from oneshot.config.trial import ModelConfig, TrialConfig
from oneshot.errors import DataError
from oneshot.plan.trainings import trainings
from oneshot.policy.loading import load_policy
from oneshot.policy.policy import Policy
from oneshot.policy.weights import Weights
from oneshot.rollout.budget import Forced, force, rule_of
from oneshot.rollout.engine import Completion, Ended, PromptRequest, Sampling, ignore
from oneshot.store.records import EVALUATION_COLUMNS, FORCING_COLUMNS
from oneshot.store.store import Store
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.grading import Grader
from oneshot.training.evaluate import evaluate, forcing_measures
from oneshot.training.metrics import Evaluation, Forcing
from oneshot.training.state import new_state
from oneshot.trial.recorder import record

MakeConfig = Callable[..., TrialConfig]
PROMPT = "47+38=?"
EOS = "<eos>"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(ModelConfig(path="tiny:qwen2"))


class Scripted:
    """An engine that says given texts, one for each call of a row, cut at a stop string and at the limit."""

    def __init__(self, texts: Mapping[tuple[int, ...], Sequence[str]]) -> None:
        self._texts = {key: iter(said) for key, said in texts.items()}
        self.prompts: list[tuple[int, ...]] = []
        self.keys: list[tuple[int, ...]] = []

    def wake(self, policy: Policy, weights: Weights) -> None:
        """Do nothing."""

    def rest(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        completions = []
        for index, request in enumerate(requests):
            self.prompts.append(request.prompt_ids)
            (key,) = request.row_keys
            self.keys.append(key)
            ids = policy.tokenizer.encode(next(self._texts[key[:1]]), add_special_tokens=False)
            completions.append([_cut(policy, ids, request.max_tokens, sampling.stop)])
            ended(index, 0, completions[-1][0])
        return completions


def _cut(policy: Policy, ids: list[int], limit: int, stop: Sequence[str]) -> Completion:
    """Characters are tokens, so that the text tells where a stop string ends."""
    ids = ids[:limit]
    text = policy.tokenizer.decode(ids)
    ends = [text.index(string) + len(string) for string in stop if string in text]
    ids = ids[: min(ends)] if ends else ids
    has_end = bool(ends) or ids[-1] in policy.eos_ids
    return Completion(token_ids=tuple(ids), logprobs=(0.0,) * len(ids), truncated=not has_end, stopped=bool(ends))


def forced(policy: Policy, config: ThinkingConfig, budget: int, *texts: str) -> tuple[Forced, Scripted]:
    """What one row gives, whose calls say these texts."""
    engine = Scripted({(5,): texts})
    prompt = tuple(policy.tokenizer.encode(PROMPT))
    kept: list[Forced] = []
    force(
        engine,
        policy,
        [PromptRequest(prompt_ids=prompt, row_keys=((5,),), max_tokens=budget)],
        Sampling(temperature=1.0),
        config,
        lambda request, row, completion: kept.append(completion),
    )
    (completion,) = kept
    return completion, engine


def rule(**changes: Any) -> ThinkingConfig:
    return ThinkingConfig.model_validate({"end": "So", "then": "Out:", "max_tokens": 20, "answer_tokens": 8, **changes})


@pytest.mark.parametrize(
    ("config", "texts", "expected", "thinking_tokens", "waits", "forced_end"),
    [
        # it ends by itself: its own end is kept, nothing is appended
        (rule(), ["abc.So it", f" is 85{EOS}"], f"abc.So is 85{EOS}", 4, 0, False),
        # twice the end becomes `Wait`, the third is kept; 2 + 4 + 2 + 4 + 1 = 13 tokens
        (rule(min_waits=2), ["abSo", "cdSo", "eSo", f"1{EOS}"], f"abWaitcdWaiteSo1{EOS}", 13, 2, False),
        # an end token before the waits is dropped, and after them it is an end of thinking
        (rule(min_waits=1), [f"ab{EOS}", f"c{EOS}", f"1{EOS}"], f"abWaitcSo\nOut:1{EOS}", 7, 1, False),
        # the budget of 20 is used up
        (rule(), ["x" * 30, f"1{EOS}"], f"{'x' * 20}So\nOut:1{EOS}", 20, 0, True),
        # ... after a wait: 10 + 4 + 6
        (rule(min_waits=1), ["x" * 10 + "So", "y" * 30, "1" * 9], "xxxxxxxxxxWaityyyyyySo\nOut:11111111", 20, 1, True),
        # after 16 tokens `Wait` would leave no room for another: thinking ends
        (rule(min_waits=1), ["x" * 16 + "So", f"1{EOS}"], f"{'x' * 16}So\nOut:1{EOS}", 16, 0, True),
        # after 15 there is room for one
        (rule(min_waits=1), ["x" * 15 + "So", "y" * 3, "1"], f"{'x' * 15}WaitySo\nOut:1", 20, 1, True),
        # nothing is thought
        (rule(), ["So", f"1{EOS}"], f"So1{EOS}", 0, 0, False),
        # the budget does not count the end: all 20 are thought, and it ends by itself
        (rule(), ["x" * 20 + "So", f"1{EOS}"], f"{'x' * 20}So1{EOS}", 20, 0, False),
        # ... but after 21 it is too late
        (rule(), ["x" * 21 + "So", f"1{EOS}"], f"{'x' * 20}So\nOut:1{EOS}", 20, 0, True),
        (rule(), ["x" * 21 + EOS, f"1{EOS}"], f"{'x' * 20}So\nOut:1{EOS}", 20, 0, True),
    ],
)  # fmt: skip
def test_the_loop_by_hand(
    policy: Policy,
    config: ThinkingConfig,
    texts: list[str],
    expected: str,
    thinking_tokens: int,
    waits: int,
    forced_end: bool,
) -> None:
    found, engine = forced(policy, config, 20, *texts)
    assert policy.tokenizer.decode(found.token_ids) == expected
    assert (found.thinking_tokens, found.waits, found.forced_end) == (thinking_tokens, waits, forced_end)
    # each call continues what is there, with a key of its own
    prompts = [policy.tokenizer.decode(prompt) for prompt in engine.prompts]
    assert all(f"{PROMPT}{expected}".startswith(prompt) for prompt in prompts)
    assert engine.keys == [(5,), *((5, call) for call in range(1, len(prompts)))]
    assert found.truncated == (not expected.endswith(EOS))


THOUGHTS = st.lists(
    st.lists(st.sampled_from(["x", "1", "So", EOS, "W"]), min_size=1, max_size=12).map("".join),
    min_size=12,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(texts=THOUGHTS, budget=st.integers(1, 14), min_waits=st.integers(0, 3), answer=st.integers(1, 4))
def test_thinking_never_exceeds_its_budget_and_the_answer_has_its_reserve(
    policy: Policy, texts: list[str], budget: int, min_waits: int, answer: int
) -> None:
    config = rule(max_tokens=14, min_waits=min_waits, wait="W", answer_tokens=answer)
    # a text ends at its end token, or is cut by the limit
    said = [text.partition(EOS)[0] + EOS if EOS in text else text + "x" * 14 for text in texts]
    found, engine = forced(policy, config, budget, *said)
    assert found.thinking_tokens <= budget
    assert found.waits <= min_waits
    assert found.waits == min_waits or found.forced_end
    assert len(found.token_ids) <= budget + rule_of(policy, config).num_reserved
    assert len(engine.prompts) == found.waits + 2
    assert 1 <= len(found.answer_ids) <= answer
    assert "So" not in policy.tokenizer.decode(found.token_ids[: found.thinking_tokens])


def test_measures_of_forcing_by_hand() -> None:
    kept = Forcing(thinking_tokens=10, waits=1, forced_end=False, no_final_answer=False)
    cut = Forcing(thinking_tokens=20, waits=0, forced_end=True, no_final_answer=True)
    long = Forcing(thinking_tokens=21, waits=1, forced_end=True, no_final_answer=True)
    early = Forcing(thinking_tokens=5, waits=0, forced_end=False, no_final_answer=False)
    assert forcing_measures([kept, cut, long, early], rule(min_waits=1)) == {
        "thinking_tokens": 14.0,
        "forced_ends": 0.5,
        "waits": 0.5,
        "no_final_answer": 0.5,
        "control": 0.5,  # `long` is above its budget, `early` has not waited
    }


# a suite

THINKING = {"end": "So", "max_tokens": 30, "min_waits": 1, "wait": "Work", "then": r"\boxed{", "answer_tokens": 12}


def evaluated(config: TrialConfig, grader: Grader) -> Evaluation:
    state = new_state(config, seed=0, grader=grader)
    (suite,) = state.suites
    return evaluate(state.policy, suite, engine=state.engine, grader=grader, seed=0, step=0, world=state.world)


def with_suite(make: MakeConfig, **rule: Any) -> TrialConfig:
    suite = {"num_problems": 2, "temperature": 1.0, "samples": 3, **rule}
    return make(eval={"suites": {"arithmetic": suite}}, train={"num_steps": 0})


@pytest.mark.parametrize("engine", ["lockstep", "hf"])
def test_a_suite_with_a_budget_has_its_measures(tiny_config: MakeConfig, grader: Grader, engine: str) -> None:
    config = with_suite(tiny_config, thinking=THINKING).model_copy(
        update={"rollout": tiny_config(rollout={"engine": engine}).rollout}
    )
    found = evaluated(config, grader)
    metrics = {name.rpartition("/")[2]: value for name, value in found.metrics.items()}
    assert metrics["control"] == 1.0
    assert 0 < metrics["thinking_tokens"] <= 30
    assert len(found.records) == len([each for each in found.records if each.forcing is not None]) > 0
    assert metrics["waits"] > 0
    for each in found.records:
        assert each.forcing is not None
        assert "So" in each.completion
        assert each.num_tokens >= each.forcing.thinking_tokens


def test_a_suite_without_a_budget_has_none_of_them(tiny_config: MakeConfig, grader: Grader) -> None:
    found = evaluated(with_suite(tiny_config), grader)
    assert not {"control", "waits", "forced_ends"} & {name.rpartition("/")[2] for name in found.metrics}
    assert all(each.forcing is None for each in found.records)


def test_a_stop_string_is_not_in_the_graded_text(tiny_config: MakeConfig, grader: Grader) -> None:
    texts = [each.completion for each in evaluated(with_suite(tiny_config), grader).records]
    stopped = evaluated(with_suite(tiny_config, stop=["So"]), grader).records
    # another rule is another suite, so other draws: what is common is that nothing follows
    assert any("So" in text for text in texts)
    assert not any("So" in each.completion for each in stopped)
    assert any(not each.truncated and each.num_tokens > len(each.completion) for each in stopped)


def test_thinking_shrinks_so_that_the_answer_fits_the_model(tiny_config: MakeConfig, grader: Grader) -> None:
    # 256 positions, of which 12 and `So\n\boxed{` (10) are kept: prompts of 10 tokens or fewer leave more than 224
    rule = {**THINKING, "end": "zz", "min_waits": 40, "max_tokens": 5000}
    found = evaluated(with_suite(tiny_config, thinking=rule), grader)
    assert all(each.forcing is not None and each.forcing.forced_end for each in found.records)
    assert all(each.forcing is not None and 200 < each.forcing.thinking_tokens <= 240 for each in found.records)
    assert all(each.num_tokens <= 256 for each in found.records)


def test_an_answer_that_leaves_no_room_for_thinking_is_refused(tiny_config: MakeConfig, grader: Grader) -> None:
    message = r"positions for thinking, since 310 are kept for the answer; lower thinking\.answer_tokens"
    with pytest.raises(DataError, match=rf"eval\.suites\.arithmetic: a prompt of \d+ tokens leaves .* 256 {message}"):
        evaluated(with_suite(tiny_config, thinking={**THINKING, "answer_tokens": 300}), grader)


def test_the_store_has_how_each_completion_thought_only_with_a_budget(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    for name, rule in (("with", {"thinking": THINKING}), ("without", {})):
        (training,) = trainings([trial(with_suite(tiny_config, **rule))])
        folder = Store(str(tmp_path / name)).trial(training.key)
        for _ in record(training, folder, grader=grader, origin="test"):
            pass
        (suite,) = load_suites(training.config)
        table = folder.completions(f"eval-{suite.digest}-0")
        assert table is not None
        expected = (*EVALUATION_COLUMNS, *FORCING_COLUMNS) if rule else EVALUATION_COLUMNS
        assert tuple(table["columns"]) == expected
        assert all(len(row) == len(expected) for row in table["data"])
        recorded = folder.evaluation(suite.digest, 0)
        assert recorded is not None
        assert ("control" in recorded["metrics"]) == bool(rule)
