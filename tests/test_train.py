"""The trial: it learns, it repeats itself exactly, it goes on from a checkpoint, it fails aloud."""

import json
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, MambaConfig

from oneshot.config.evaluation import GraderName
from oneshot.config.model import ModelConfig
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import ModelError, TrialError, UserError
from oneshot.models.source import local_folder
from oneshot.policy.loading import load_policy
from oneshot.policy.policy import Policy
from oneshot.rollout.engine import Completion, Ended, PromptRequest, Sampling, ignore
from oneshot.rollout.lockstep import Lockstep
from oneshot.tasks.grading import Grade, Grader
from oneshot.tiny.make import make_tokenizer
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.evaluate import evaluate
from oneshot.training.grpo import train_step
from oneshot.training.loop import train
from oneshot.training.metrics import StepMetrics
from oneshot.training.state import TrainingState, lasting_gib, new_state
from oneshot.training.trainer import LocalTrainer

MakeConfig = Callable[..., TrialConfig]


def run(config: TrialConfig, grader: Grader, *, seed: int = 0) -> tuple[list[StepMetrics], TrainingState]:
    state = new_state(config, seed=seed, grader=grader)
    return list(train(config, state)), state


def comparable(steps: list[StepMetrics]) -> list[dict[str, float]]:
    return [{k: v for k, v in s.metrics.items() if not k.startswith(("perf/", "system/"))} for s in steps]


def weights(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in state.policy.model.named_parameters()}


def test_layers_that_are_computed_twice_make_the_same_trial(tiny_config: MakeConfig, grader: Grader) -> None:
    found = []
    for is_on in (False, True):
        model = {"path": "tiny:llama", "dtype": "float64"}
        found.append(comparable(run(tiny_config(model=model, train={"activation_checkpointing": is_on}), grader)[0]))
    assert [pytest.approx(step, abs=1e-7) for step in found[0]] == found[1]


@pytest.mark.slow
def test_one_example_teaches_the_tiny_model_problems_it_never_saw(tiny_config: MakeConfig, grader: Grader) -> None:
    """The learning test: training reward and held-out accuracy rise far beyond their noise (about 0.06 and 0.05)."""
    config = tiny_config(
        rollout={"num_groups": 8, "group_size": 8},
        train={"num_steps": 16},
        optim={"lr": 2e-4},
        eval={"every_steps": 100, "suites": {"arithmetic": {"num_problems": 30, "temperature": 1.0}}},
    )
    steps, _ = run(config, grader)
    first, last = steps[0].metrics, steps[-1].metrics
    reward = [step.metrics["reward/mean"] for step in steps[1:]]
    assert sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.3
    assert last["eval/arithmetic/pass_at_1"] > first["eval/arithmetic/pass_at_1"] + 0.25
    assert last["eval/arithmetic/gain"] == last["eval/arithmetic/pass_at_1"] - first["eval/arithmetic/pass_at_1"]


def test_a_trial_repeats_itself_bit_for_bit(tiny_config: MakeConfig, grader: Grader) -> None:
    first, first_state = run(tiny_config(), grader)
    second, second_state = run(tiny_config(), grader)
    assert comparable(first) == comparable(second)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(first_state).values(), weights(second_state).values(), strict=True)
    )


def test_another_seed_is_another_trial(tiny_config: MakeConfig, grader: Grader) -> None:
    assert comparable(run(tiny_config(), grader, seed=0)[0]) != comparable(run(tiny_config(), grader, seed=1)[0])


def test_a_trial_that_goes_on_from_a_checkpoint_ends_in_the_same_bits(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    config = tiny_config(train={"num_steps": 5})
    whole, whole_state = run(config, grader)
    begun = new_state(config, seed=0, grader=grader)
    steps = []
    for step in train(config, begun):
        steps.append(step)
        if step.step == 3:
            save_state(begun, tmp_path, with_optimizer=True)
            break
    resumed = new_state(config, seed=0, grader=grader)
    load_state(resumed, tmp_path)
    steps += list(train(config, resumed))
    assert [step.step for step in steps] == [0, 1, 2, 3, 4, 5]
    assert comparable(steps) == comparable(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed).values(), weights(whole_state).values(), strict=True))


def test_the_size_of_micro_batches_does_not_change_the_gradient(tiny_config: MakeConfig, grader: Grader) -> None:
    settings = {"model": {"path": "tiny:qwen2", "dtype": "float64"}, "optim": {"lr": 1e-3}}
    whole, _ = run(tiny_config(**settings, train={"num_steps": 1}), grader)
    split, _ = run(tiny_config(**settings, train={"num_steps": 1, "microbatch_tokens": 100}), grader)
    for name in ("loss/total", "loss/pg", "loss/kl", "loss/entropy", "loss/grad_norm", "rollout/entropy"):
        assert split[1].metrics[name] == pytest.approx(whole[1].metrics[name], abs=1e-10)


def test_two_updates_a_rollout_use_the_old_policys_ratio(tiny_config: MakeConfig, grader: Grader) -> None:
    """At this rate the second update starts off-policy, so that some tokens leave the clip; one update never does."""
    settings = {"optim": {"lr": 3e-3}, "rollout": {"num_groups": 8, "group_size": 8}}
    one, _ = run(tiny_config(**settings, train={"num_steps": 1}), grader)
    two, _ = run(tiny_config(**settings, train={"num_steps": 1, "updates_per_rollout": 2}), grader)
    assert one[1].metrics["loss/clip_fraction"] == 0.0
    assert two[1].metrics["loss/clip_fraction"] > 0.0


def test_several_examples_share_the_groups_in_turn(tiny_config: MakeConfig, grader: Grader) -> None:
    steps, _ = run(tiny_config(examples=["arithmetic:47+38", "arithmetic:12*7"], train={"num_steps": 1}), grader)
    ids = [sampled.example_id for sampled in steps[1].sampled]
    assert ids == (["arithmetic:47+38"] * 4 + ["arithmetic:12*7"] * 4) * 2


def test_a_step_without_any_reward_says_so(tiny_config: MakeConfig, grader: Grader) -> None:
    # the answer to 5-99 is below zero, which no text of the organism's corpus ends in: no group has any signal
    steps, _ = run(
        tiny_config(examples=["arithmetic:5-99"], train={"num_steps": 1}, loss={"kl_coef": 0.0, "entropy_coef": 0.0}),
        grader,
    )
    assert steps[1].metrics["reward/mean"] == 0.0
    assert steps[1].metrics["reward/frac_groups_zero_std"] == 1.0
    assert steps[1].metrics["loss/grad_norm"] == 0.0


def test_no_steps_is_an_evaluation_alone(tiny_config: MakeConfig, grader: Grader) -> None:
    steps, _ = run(tiny_config(train={"num_steps": 0}), grader)
    assert [step.step for step in steps] == [0]
    assert "eval/arithmetic/pass_at_1" in steps[0].metrics
    assert "reward/mean" not in steps[0].metrics


def test_weights_that_are_not_finite_end_the_trial_and_the_step_is_named(
    tiny_config: MakeConfig, grader: Grader
) -> None:
    config = tiny_config()
    state = new_state(config, seed=0, grader=grader)
    with torch.no_grad():
        state.policy.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(TrialError, match=r"at completion token 1 .* in the rollout of step 1"):
        train_step(config, state)
    with pytest.raises(TrialError, match=r"at completion token 1 .* in the evaluation of arithmetic after step 0"):
        next(train(config, state))


def test_a_loss_that_is_not_finite_ends_the_trial(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config()
    state = new_state(config, seed=0, grader=grader)
    steps = train(config, state)
    next(steps)
    reference = state.reference
    assert reference is not None
    with torch.no_grad():
        next(reference.parameters()).fill_(torch.nan)
    before = weights(state)
    with pytest.raises(TrialError, match=r"loss/total is nan at step 1; the weights of step 0 are kept"):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(state).values(), strict=True))


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"model": {"path": "tiny:gpt"}}, ModelError, "not shipped; use one of tiny:blank, tiny:llama, tiny:qwen2"),
        (
            {"rollout": {"max_tokens": 300}},
            UserError,
            "longer than the model's 256 positions; lower rollout.max_tokens",
        ),
        ({"prompt": {"template": "chat"}}, ModelError, "no chat template; use plain or auto"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(
    tiny_config: MakeConfig, grader: Grader, sections: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        new_state(tiny_config(**sections), seed=0, grader=grader)


def test_a_model_that_bends_its_logits_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.01, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"its logits are not head\(hidden state\)"):
        load_policy(ModelConfig(path=str(tmp_path)))


def tiny_folder(folder: Path, *, leave_out: tuple[str, ...] = ()) -> str:
    """The qwen2 organism as a folder of its own, whose tokenizer lacks some special tokens."""
    source = local_folder("tiny:qwen2")
    assert source is not None
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        if (folder / name).exists():
            kept = json.loads((folder / name).read_text())
            changed = {
                key: None if any(key.startswith(token) for token in leave_out) else value for key, value in kept.items()
            }
            (folder / name).write_text(json.dumps(changed))
    return str(folder)


def test_a_model_without_an_end_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no EOS token in its generation config or tokenizer"):
        load_policy(ModelConfig(path=tiny_folder(tmp_path, leave_out=("eos",))))


def test_without_a_padding_token_the_end_token_stands_in(
    tiny_config: MakeConfig, grader: Grader, tmp_path: Path
) -> None:
    path = tiny_folder(tmp_path, leave_out=("pad",))
    policy = load_policy(ModelConfig(path=path))
    assert policy.pad_id in policy.eos_ids
    bare, _ = run(tiny_config(model={"path": path}), grader)
    assert comparable(bare) == comparable(run(tiny_config(), grader)[0])


def test_a_cache_without_keys_and_values_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=99, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its cache has no keys and values per layer"):
        load_policy(ModelConfig(path=str(tmp_path)))


def test_completions_without_any_text_are_counted(tiny_config: MakeConfig, grader: Grader) -> None:
    config = tiny_config(train={"num_steps": 1})
    state = new_state(config, seed=0, grader=grader)
    state.policy.eos_ids = tuple(range(99))  # whatever comes first is the end
    special = state.policy.tokenizer.all_special_ids
    steps = list(train(config, state))
    assert steps[-1].metrics["rollout/length_mean"] == 1.0
    empty = [not sampled.completion.strip() for sampled in steps[-1].sampled]
    assert steps[-1].metrics["rollout/empty"] == sum(empty) / len(empty)
    state.policy.eos_ids = tuple(special)
    head = state.policy.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
        head.weight[1] = state.policy.model.base_model(torch.tensor([state.prompts[0]])).last_hidden_state[0, -1] * 100
    assert train_step(config, state).metrics["rollout/empty"] == 1.0


def test_a_trainer_that_is_closed_leaves_no_model_in_memory(tiny_config: MakeConfig, grader: Grader) -> None:
    trainer = LocalTrainer(tiny_config(), seed=0, resources=ResourceConfig(), grader=grader)
    model = weakref.ref(trainer._state.policy.model)
    for _ in trainer.train():
        pass
    trainer.close()
    assert model() is None


def test_the_memory_that_lasts_is_that_of_weights_moments_and_reference(
    tiny_config: MakeConfig, grader: Grader
) -> None:
    cpu = torch.device("cpu")
    for coef, trains, copies in ((0.0, False, 1), (0.0, True, 3), (0.1, True, 4)):
        state = new_state(tiny_config(loss={"kl_coef": coef}), seed=0, grader=grader)
        num_bytes = sum(parameter.nbytes for parameter in state.policy.model.parameters())
        lasting = lasting_gib(state.weights, state.reference, None, device=cpu, trains=trains)
        assert lasting == pytest.approx(copies * num_bytes / 2**30)


class TwoParts:
    """An engine that hands over one completion, and the others only when that one has been graded."""

    def __init__(self, is_graded: threading.Event) -> None:
        self._is_graded = is_graded

    def generate(
        self, policy: Policy, requests: Sequence[PromptRequest], sampling: Sampling, ended: Ended = ignore
    ) -> list[list[Completion]]:
        by_request = Lockstep(kv_gib=1.0).generate(policy, requests, sampling)
        places = [(request, row) for request, row_of in enumerate(by_request) for row in range(len(row_of))]
        for request, row in places:
            ended(request, row, by_request[request][row])
            assert self._is_graded.wait(timeout=60), "nothing is graded while others are decoded"
        return by_request


class Watched(Grader):
    """A grader that says when it has graded."""

    has_graded: threading.Event

    def grade(self, completion: str, answer: str, *, graders: Sequence[GraderName] = ("strict",)) -> Grade:
        grade = super().grade(completion, answer, graders=graders)
        self.has_graded.set()
        return grade


def test_an_evaluation_grades_while_others_are_still_decoded(tiny_config: MakeConfig, grader: Grader) -> None:
    state = new_state(tiny_config(), seed=0, grader=grader)
    (suite,) = state.suites
    with Watched(timeout_s=5.0) as watched:
        watched.has_graded = threading.Event()
        found = evaluate(
            state.policy, suite, engine=TwoParts(watched.has_graded), grader=watched, seed=0, step=0, world=state.world
        )
    plain = evaluate(state.policy, suite, engine=state.engine, grader=grader, seed=0, step=0, world=state.world)
    assert found == plain
