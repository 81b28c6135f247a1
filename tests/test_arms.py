"""Every arm, and every kind of example, end to end on the tiny model: sampled, judged, rewarded, learnt from."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.grading import Grader
from oneshot.training.loop import train
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import new_state

MakeConfig = Callable[..., TrialConfig]
NO_EVAL: dict[str, Any] = {"at_start": False, "suites": {}}


def run(config: TrialConfig, grader: Grader, *, seed: int = 0) -> list[StepMetrics]:
    return list(train(config, new_state(config, seed=seed, grader=grader)))


ARMS: dict[str, dict[str, Any]] = {
    "outcome": {},
    "format": {"reward": {"kind": "format"}},
    "random": {"reward": {"kind": "random"}},
    "majority": {"reward": {"kind": "majority"}},
    "self-certainty": {"reward": {"kind": "certainty", "by": "self_certainty"}},
    "token entropy": {"reward": {"kind": "certainty", "by": "token_entropy"}},
    "sequence entropy": {"reward": {"kind": "certainty", "by": "sequence_entropy"}},
    "probability": {"reward": {"kind": "certainty", "by": "probability"}},
    "outcome and certainty": {
        "reward": {
            "kind": "sum",
            "terms": {"right": {}, "sure": {"kind": "certainty", "by": "token_entropy", "weight": 0.1}},
        }
    },
    "positive only": {"advantage": {"baseline": "none", "negative_weight": 0.0}},
    "negative only": {"advantage": {"baseline": "none", "positive_weight": 0.0}},
    "weighted": {"advantage": {"baseline": "none", "positive_weight": 0.1}},
    "entropy only": {"loss": {"pg_coef": 0.0, "kl_coef": 0.0}},
    "wrong label": {"examples": [{"row": "arithmetic:47+38", "answer": "84"}]},
    "written": {"examples": [{"problem": "2+2=?", "answer": "4"}]},
    "drawn set": {"examples": [{"set": "arithmetic", "random": 4, "seed": 1}]},
    "noisy set": {"examples": [{"set": "arithmetic", "random": 8, "wrong": 0.5}]},
    "worked problem": {"prompt": {"shots": [{"row": "arithmetic:12+31", "completion": "So \\boxed{43}"}]}},
}


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_trains(tiny_config: MakeConfig, grader: Grader, name: str) -> None:
    config = tiny_config(eval=NO_EVAL, **ARMS[name])
    steps = run(config, grader)
    assert [step.step for step in steps] == [1, 2]
    for step in steps:
        assert all(math.isfinite(value) for value in step.metrics.values())
        assert 0 <= step.metrics["reward/accuracy"] <= 1
        assert step.visits


@pytest.mark.parametrize("name", ["format", "random", "majority"])
def test_whatever_is_rewarded_accuracy_is_that_of_the_answer(
    tiny_config: MakeConfig, grader: Grader, name: str
) -> None:
    # the first rollout is of the same policy in every arm
    outcome = run(tiny_config(eval=NO_EVAL, train={"num_steps": 1}), grader)[0]
    other = run(tiny_config(eval=NO_EVAL, train={"num_steps": 1}, **ARMS[name]), grader)[0]
    assert [one.completion for one in other.sampled] == [one.completion for one in outcome.sampled]
    assert other.metrics["reward/accuracy"] == outcome.metrics["reward/accuracy"] == outcome.metrics["reward/mean"]
    assert other.visits == outcome.visits
    # here the majority is right
    assert ([one.reward for one in other.sampled] == [one.reward for one in outcome.sampled]) is (name == "majority")


def test_a_set_larger_than_a_step_is_visited_in_epochs(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(eval=NO_EVAL, examples=[{"set": "arithmetic", "random": 9, "seed": 0}], train={"num_steps": 4})
    visits = [set(step.visits) for step in run(config, grader)]
    assert [len(those) for those in visits] == [4, 4, 4, 4]
    # two steps of four make an epoch of nine, of which one is left out
    assert not visits[0] & visits[1]
    assert not visits[2] & visits[3]
    assert visits[:2] != visits[2:]


def test_the_disagreement_about_an_example_is_recorded_at_its_first_visit_alone(
    tiny_config: MakeConfig, grader: Grader
) -> None:
    examples = [{"set": "arithmetic", "random": 9, "seed": 0}]
    steps = run(tiny_config(eval=NO_EVAL, examples=examples, train={"num_steps": 12}), grader)
    seen: set[str] = set()
    for step in steps:
        assert set(step.answer_entropies) == set(step.visits) - seen
        seen |= set(step.visits)
        for example, entropy in step.answer_entropies.items():
            texts = [one.completion for one in step.sampled if one.example_id == example]
            boxes = [extract_boxed(text) for text in texts]
            # sums are numerals, which are equal if they are spelt the same
            shares = [count / len(texts) for count in Counter(boxes).values()]
            assert entropy == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)
    assert len(seen) == 9
    assert max(entropy for step in steps for entropy in step.answer_entropies.values()) > 0


def test_a_label_that_is_right_after_all_is_refused(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(examples=[{"row": "arithmetic:47+38", "answer": "170/2"}])
    with pytest.raises(DataError, match="arithmetic:47\\+38: the label '170/2' is not wrong: the strict grader finds"):
        new_state(config, seed=0, grader=grader)


def test_a_real_suite_is_evaluated_through_the_real_path(
    tiny_config: MakeConfig, grader: Grader, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(shared / "data"))
    config = tiny_config(train={"num_steps": 0}, eval={"suites": {"aime25": {"num_problems": 1}}})
    (start,) = run(config, grader)
    (evaluation,) = start.evaluations
    assert len(evaluation.records) == 8
    assert evaluation.records[0].answer == "70"
    assert evaluation.records[0].problem.startswith("Find the sum of all integer bases")
    assert {"avg_at_k", "pass_at_k", "pass_at_2", "pass_at_4", "repetition", "reflection", "code"} <= {
        name.rpartition("/")[2] for name in evaluation.metrics
    }


def test_a_suite_that_does_not_fit_the_model_is_refused(
    tiny_config: MakeConfig, grader: Grader, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(shared / "data"))
    config = tiny_config(train={"num_steps": 0}, eval={"suites": {"math500": {}}})
    with pytest.raises(DataError, match="a prompt of 1734 tokens leaves none of the model's 256 positions"):
        run(config, grader)


def test_a_suite_that_is_not_at_hand_says_how_to_get_it(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(tmp_path))
    config = tiny_config(eval={"suites": {"minerva": {}}})
    with pytest.raises(DataError, match=r"minerva: not in .*; run `oneshot fetch minerva`"):
        new_state(config, seed=0, grader=grader)


def test_a_prompt_that_leaves_less_room_gets_a_shorter_completion(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    # 256 positions: the second problem, with its newline, leaves 6 of them
    problems = [{"problem": "1+1=?", "answer": "2"}, {"problem": "1" * 249, "answer": "2"}]
    path.write_text("\n".join(json.dumps(problem) for problem in problems))
    suite = {"source": str(path), "temperature": 1.0}
    (start,) = run(tiny_config(train={"num_steps": 0}, eval={"suites": {"long": suite}}), grader)
    short, long = start.evaluations[0].records
    assert long.num_tokens <= 6 < short.num_tokens
