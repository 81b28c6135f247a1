"""A suite's `top_p`, `stop` and `thinking`: what they change, how they are written, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_plan import trial
from test_sweepfile import edited, plan

from oneshot.config.paths import Setting, SettingError, flatten, layered, unflatten
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.trainings import trainings
from oneshot.tasks.benchmarks import Suite, load_suites

MakeConfig = Callable[..., TrialConfig]
THINKING = {"max_tokens": 100}


def suite(make: MakeConfig, **rule: Any) -> Suite:
    return load_suites(make(eval={"suites": {"arithmetic": {"num_problems": 4, "temperature": 1.0, **rule}}}))[0]


def test_the_digest_of_a_known_suite_stays(tiny_config: MakeConfig) -> None:
    """Recorded evaluations are found by it."""
    assert suite(tiny_config).digest.startswith("2507083713f959f3")


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top_p": {"top_p": 0.95},
    "a stop string": {"stop": ["So"]},
    "two stop strings": {"stop": ["So", "Work"]},
    "thinking": {"thinking": THINKING},
    **{
        f"thinking.{name}": {"thinking": {**THINKING, name: value}}
        for name, value in (
            ("max_tokens", 50), ("min_waits", 2), ("wait", "Hm"), ("end", "So"), ("then", "A:"), ("answer_tokens", 9)
        )
    },
}  # fmt: skip


def test_each_new_setting_is_another_suite(tiny_config: MakeConfig) -> None:
    digests = [suite(tiny_config, **change).digest for change in CHANGES.values()]
    assert len(set(digests)) == len(CHANGES)


def test_settings_at_their_defaults_are_the_same_suite(tiny_config: MakeConfig) -> None:
    plain = suite(tiny_config).digest
    assert suite(tiny_config, top_p=1.0, stop=[], thinking=None).digest == plain
    spelled = {"end": "</think>", "min_waits": 0, "wait": "Wait", "then": "Final Answer:", "answer_tokens": 512}
    assert suite(tiny_config, thinking={**THINKING, **spelled}).digest == suite(tiny_config, thinking=THINKING).digest


def test_a_completion_with_thinking_has_up_to_budget_and_answer(tiny_config: MakeConfig) -> None:
    assert suite(tiny_config, thinking={"max_tokens": 100, "answer_tokens": 20}).max_tokens == 120


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_training_that_two_trials_share_keeps_each_suites_rule(
    tiny_config: MakeConfig, change: dict[str, Any]
) -> None:
    def with_rule(**rule: Any) -> TrialConfig:
        rules = {"num_problems": 4, "temperature": 1.0, **rule}
        return tiny_config(eval={"suites": {"arithmetic": rules}})

    configs = [with_rule(**change), with_rule(samples=2), with_rule(**change, every_steps=3)]
    (training,) = trainings([trial(config) for config in configs])
    served = {suite.digest for suite in load_suites(training.config)}
    assert served == {suite.digest for config in configs for suite in load_suites(config)}


def test_top_p_of_a_greedy_suite_has_no_effect_and_is_told(tmp_path: Path, tiny_config: MakeConfig) -> None:
    assert suite(tiny_config, temperature=0.0, top_p=0.9).digest == suite(tiny_config, temperature=0.0).digest
    text = edited("  train.num_steps: 2", "  train.num_steps: 2\n  eval.suites: {arithmetic: {top_p: 0.9}}")
    warnings = plan(tmp_path, text).warnings
    assert "eval.suites.arithmetic.top_p has no effect at temperature 0" in warnings


BAD = {
    "top_p: 0": "eval.suites.arithmetic.top_p: must be greater than 0",
    "top_p: 1.5": "eval.suites.arithmetic.top_p: must be at most 1",
    "stop: So": "eval.suites.arithmetic.stop: must be a list",
    'stop: [""]': "eval.suites.arithmetic.stop.0: must not be empty",
    "thinking: {}": "eval.suites.arithmetic.thinking.max_tokens: missing",
    "thinking: {max_tokens: 0}": "eval.suites.arithmetic.thinking.max_tokens: must be at least 1",
    'thinking: {max_tokens: 9, end: ""}': "eval.suites.arithmetic.thinking.end: must not be empty",
    "thinking: {max_tokens: 9, waits: 2}": "eval.suites.arithmetic.thinking.waits: unknown key",
    "thinking: {max_tokens: 9}, stop: [So]": "eval.suites.arithmetic.thinking: the suite also sets stop; remove it",
    "thinking: {max_tokens: 9}, max_tokens: 9": "thinking: the suite also sets max_tokens; remove it",
}


def test_a_budget_beyond_the_models_positions_is_told(tmp_path: Path) -> None:
    def warnings(tokens: int) -> list[str]:
        rule = f"  eval.suites: {{arithmetic: {{thinking: {{max_tokens: {tokens}, answer_tokens: 56}}}}}}"
        made = plan(tmp_path, edited("  train.num_steps: 2", f"  train.num_steps: 2\n{rule}"))
        return [warning for warning in made.warnings if "the budget shrinks" in warning]

    assert warnings(200) == []
    (warning,) = warnings(201)
    assert warning.startswith("eval.suites.arithmetic.thinking: a budget of 201 and an answer of 56 tokens are longer")


@pytest.mark.parametrize("rule", BAD)
def test_a_bad_rule_gets_one_clear_error(tmp_path: Path, rule: str) -> None:
    text = edited("  train.num_steps: 2", f"  train.num_steps: 2\n  eval.suites: {{arithmetic: {{{rule}}}}}")
    with pytest.raises(UserError) as caught:
        plan(tmp_path, text)
    assert BAD[rule] in str(caught.value)
    assert "yaml:10" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# a sweep over budgets: the keys of an optional section are paths

SUITE = "  train.num_steps: 2\n  eval.suites: {arithmetic: {temperature: 1.0, thinking: {end: So, max_tokens: 100}}}"
PATH = "eval.suites.arithmetic.thinking"


def budgets(made: Any) -> list[int]:
    suites = (load_suites(trial.config)[0] for trial in made.trials)
    return sorted({suite.thinking.max_tokens for suite in suites if suite.thinking is not None})


def test_budgets_are_an_axis_and_leave_the_rest_of_the_rule(tmp_path: Path) -> None:
    text = edited("  train.num_steps: 2", SUITE).replace("axes:\n", f"axes:\n  {PATH}.max_tokens: [10, 20]\n")
    made = plan(tmp_path, text)
    assert budgets(made) == [10, 20]
    assert {suite.thinking.end for trial in made.trials for suite in load_suites(trial.config) if suite.thinking} == {
        "So"
    }
    # they share their trainings
    assert len(trainings(made.trials)) == len(made.trials) / 2


def test_a_budget_can_be_set_and_removed_on_the_command_line(tmp_path: Path) -> None:
    text = edited("  train.num_steps: 2", SUITE)
    assert budgets(plan(tmp_path, text)) == [100]
    assert budgets(plan(tmp_path, text, f"{PATH}.max_tokens=7")) == [7]
    assert budgets(plan(tmp_path, text, f"{PATH}=null")) == []
    assert budgets(plan(tmp_path, text, f"{PATH}={{max_tokens: 5}}")) == [5]


def test_later_levels_replace_a_section_whole_or_a_key_of_it() -> None:
    def level(**settings: Any) -> dict[str, Setting]:
        return flatten({path.replace("_", "."): value for path, value in settings.items()}, ())

    def merged(*levels: dict[str, Setting]) -> Any:
        return unflatten({path: setting.value for path, setting in layered(*levels).items()})["model"]

    whole, key, none = level(model_adapter={"r": 4, "alpha": 8.0}), level(model_adapter_r=2), level(model_adapter=None)
    assert merged(whole, key) == {"adapter": {"r": 2, "alpha": 8.0}}
    assert merged(key, whole) == {"adapter": {"r": 4, "alpha": 8.0}}
    assert merged(none, key) == {"adapter": {"r": 2}}
    assert merged(key, none) == {"adapter": None}
    with pytest.raises(SettingError, match=r"model\.adapter\.r is set, but model\.adapter is null; remove one of them"):
        layered({**none, **key})
