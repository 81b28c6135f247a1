"""Rewards by functions of one's own: what they get, what they may return, and what becomes of their errors."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import tiny_trial
from verbs import oneshot as verb

import oneshot
from oneshot.config.file import load
from oneshot.config.reward import RewardConfig
from oneshot.errors import DataError, TrialError
from oneshot.sweep.cluster.package import bundle, packed
from oneshot.tasks import foreign
from oneshot.tasks.grading import Grader
from oneshot.tasks.rewards import Example, GroupRewards, judge, rewards

MODULE = '''
import time

seen = []

def shorter(completions, token_ids, strict, lenient, example, *, target=10):
    """1 for a right completion of no tokens, less for each token."""
    return [max(0.0, 1 - len(ids) / target) if right else 0.0 for ids, right in zip(token_ids, strict)]

def echo(completions, token_ids, strict, lenient, example, **more):
    import json
    raise ValueError(json.dumps([completions, token_ids, strict, lenient, example, more]))

def unsure(completions, **_):
    return [None if place else 1 for place in range(len(completions))]

def fails(completions, **_):
    raise ZeroDivisionError("nothing to divide by")

def short(completions, **_):
    return [1.0]

def nan(completions, **_):
    return [float("nan")] * len(completions)

def texts(completions, **_):
    return ["much"] * len(completions)

def sleeps(completions, **_):
    time.sleep(60)

def prints(completions, **_):
    print("this is no reply")
    return [1.0] * len(completions)

def eats(completions, **_):
    return [len(bytearray(5 * 2**30)) * 1.0] * len(completions)
'''
TEXTS = ["So \\boxed{85}.", "So \\boxed{84}.", "So it is 85."]
TRIAL = tiny_trial(num_steps=1)


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of trusted code with one module."""
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.setenv(foreign.FOLDER, str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    foreign.find.cache_clear()
    return tmp_path


Pay = Callable[..., GroupRewards]


@pytest.fixture
def pay(code: Path) -> Pay:
    def paid(config: RewardConfig, texts: Sequence[str] = TEXTS, *, timeout_s: float = 20.0) -> GroupRewards:
        with Grader(timeout_s=timeout_s) as grader:
            judged = [judge(text, "85", config, grader, token_ids=(1,) * len(text)) for text in texts]
            keys = [(0, 0, place) for place in range(len(texts))]
            example = Example(id="arithmetic:47+38", problem="47+38=?", answer="85")
            return rewards(judged, config, grader, keys=keys, example=example)

    return paid


def python(name: str, **arguments: Any) -> RewardConfig:
    return RewardConfig(kind="python", call=f"own_rewards:{name}", with_=arguments)


# what a function gets and gives


def test_a_function_gets_texts_tokens_grades_the_example_and_its_arguments(pay: Pay) -> None:
    (error,) = pay(python("echo", target=3)).errors
    got = json.loads(error.partition("ValueError: ")[2])
    example = {"problem": "47+38=?", "answer": "85", "id": "arithmetic:47+38"}
    lengths = [[1] * len(text) for text in TEXTS]
    assert got == [TEXTS, lengths, [True, False, False], [True, False, True], example, {"target": 3}]


def test_a_reward_is_any_number_and_none_is_ungraded(pay: Pay) -> None:
    # 14 tokens of 28: a half for the right one
    assert pay(python("shorter", target=28)).values == [0.5, 0.0, 0.0]
    assert pay(python("unsure")).values == [1.0, None, None]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fails", "own_rewards:fails: ZeroDivisionError: nothing to divide by"),
        ("short", "own_rewards:short: returned list instead of a list of 3 numbers"),
        ("nan", "own_rewards:nan: returned something that is neither a finite number nor None"),
        ("texts", "own_rewards:texts: returned something that is neither a finite number nor None"),
        ("missing", "own_rewards:missing: AttributeError: module 'own_rewards' has no attribute 'missing'"),
        ("eats", "own_rewards:eats: MemoryError: "),
    ],
)
def test_what_goes_wrong_rewards_nothing_and_is_named(pay: Pay, name: str, error: str) -> None:
    found = pay(python(name))
    assert (found.values, found.errors) == ([None] * 3, (error,))


def test_a_function_that_hangs_is_killed_at_its_deadline(pay: Pay) -> None:
    found = pay(python("sleeps"), timeout_s=2.0)
    assert found.errors == ("own_rewards:sleeps: no verdict within 2 s",)


def test_what_a_function_prints_is_no_reply(pay: Pay) -> None:
    assert pay(python("prints")).values == [1.0] * 3


# sums


def test_a_sum_weighs_its_terms_by_hand(pay: Pay) -> None:
    config = RewardConfig.model_validate(
        {
            "kind": "sum",
            "terms": {
                "right": {"kind": "outcome", "weight": 2.0},
                "box": {"kind": "format", "weight": 0.5},
                "brief": {"kind": "python", "call": "own_rewards:shorter", "with": {"target": 28}, "weight": -1.0},
            },
        }
    )
    found = pay(config)
    # 2 + 0.5 - 0.5, 0.5, 0
    assert found.values == [2.0, 0.5, 0.0]
    assert found.terms == {"right": [1.0, 0.0, 0.0], "box": [1.0, 1.0, 0.0], "brief": [0.5, 0.0, 0.0]}


def test_a_sum_with_a_term_that_is_not_known_is_not_known(pay: Pay) -> None:
    terms = {"right": {"kind": "outcome"}, "own": {"kind": "python", "call": "own_rewards:unsure"}}
    assert pay(RewardConfig.model_validate({"kind": "sum", "terms": terms})).values == [2.0, None, None]


def test_every_term_has_its_curve_and_errors_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    terms = {"right": {"kind": "outcome"}, "brief": {"kind": "python", "call": "own_rewards:shorter", "weight": 0.5}}
    (step,) = oneshot.train({**TRIAL, "reward": {"kind": "sum", "terms": terms}})
    assert step.metrics["reward/right"] == step.metrics["reward/accuracy"]
    assert {"reward/brief", "reward/errors"} <= set(step.metrics)
    with caplog.at_level(logging.WARNING), pytest.raises(TrialError, match="no completion of step 1 has a reward"):
        list(oneshot.train({**TRIAL, "reward": {"kind": "python", "call": "own_rewards:fails"}}))
    assert "ZeroDivisionError: nothing to divide by" in caplog.text


def test_other_rewards_have_no_curves_of_terms() -> None:
    (step,) = oneshot.train(TRIAL)
    assert "reward/errors" not in step.metrics


# keys


SWEEP = """\
version: 1
name: own
question: Does it plan?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 2, group_size: 4, max_tokens: 56}
  reward: {kind: python, call: "own_rewards:shorter", with: {target: 12}}
  train.num_steps: 1
seeds: [0]
"""


def keys(folder: Path, *settings: str) -> list[str]:
    options = [part for setting in settings for part in ("--set", setting)]
    said = verb("plan", "own.yaml", "--json", "--trust-code", *options, cwd=folder)
    assert said.code == 0, said.err
    return [trial["key"] for trial in json.loads(said.out)["trials"]]


def test_the_source_is_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SWEEP)
    before = keys(tmp_path)
    assert keys(tmp_path) == before
    assert keys(tmp_path, "reward.with.target=13") != before
    (tmp_path / "own_rewards.py").write_text(MODULE.replace("1 - len(ids)", "2 - len(ids)"))
    foreign.find.cache_clear()
    assert keys(tmp_path) != before


def test_plan_names_the_foreign_code_that_a_sweep_runs(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(SWEEP)
    said = verb("plan", "own.yaml", "--trust-code", cwd=tmp_path)
    digest = foreign.find("own_rewards:shorter").digest[:16]
    assert f"runs foreign code: own_rewards:shorter of {tmp_path / 'own_rewards.py'} (sha256 {digest})" in said.err


def test_code_beside_the_file_is_not_run_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "untrusted_rewards.py").write_text(MODULE)
    (folder / "own.yaml").write_text(SWEEP.replace("own_rewards", "untrusted_rewards"))
    monkeypatch.delenv(foreign.FOLDER)
    said = verb("plan", "own.yaml", cwd=folder)
    assert said.code == 2
    assert said.err.startswith("oneshot: own.yaml:9: trial.reward.call: untrusted_rewards:shorter: no module named")
    assert "--trust-code" in said.err


def test_a_job_takes_the_trusted_code_along_and_no_other(code: Path) -> None:
    (code / "own.yaml").write_text(SWEEP)
    (code / "other.py").write_text("raise SystemExit")
    shipped = bundle(code / "own.yaml", load(code / "own.yaml"))
    assert shipped.code == (code / "own_rewards.py",)
    with packed(shipped) as folder:
        assert (folder / "own_rewards.py").read_text() == MODULE
        assert not (folder / "other.py").exists()


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        ("{kind: python}", "`kind: python` and `call` belong together; set both or none"),
        ("{call: 'a:b'}", "`kind: python` and `call` belong together; set both or none"),
        ("{kind: sum}", "`kind: sum` and `terms` belong together; set both or none"),
        ("{with: {x: 1}}", "`with` has the arguments of a function; set `kind: python` and `call`"),
        ("{kind: python, call: 'no colon'}", "'no colon' is not a valid name"),
        ("{kind: sum, terms: {mean: {}}}", "reward.terms.mean: is the name of another curve"),
        ("{kind: sum, terms: {a: {weights: 1}}}", "unknown key"),
    ],
)
def test_a_wrong_reward_is_one_clear_error(tmp_path: Path, reward: str, error: str) -> None:
    text = SWEEP.replace('{kind: python, call: "own_rewards:shorter", with: {target: 12}}', reward)
    (tmp_path / "own.yaml").write_text(text)
    said = verb("plan", "own.yaml", cwd=tmp_path)
    assert said.code == 2 and error in said.err, said.err
    assert len(said.err.splitlines()) == 1


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(DataError, match="no_such_lab:reward: no module named 'no_such_lab'; install its package"):
        foreign.find("no_such_lab:reward")
