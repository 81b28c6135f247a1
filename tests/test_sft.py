"""Supervised fine-tuning: its loss and gradient, the order of solutions, learning rates, and trials that resume."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spread import norms_as_wide_as_their_input
from test_plan import trial
from test_runner import training
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, get_scheduler

from oneshot.config.trial import ScheduleConfig, TrialConfig
from oneshot.errors import TrialError
from oneshot.models.source import local_folder
from oneshot.store.store import Store
from oneshot.tasks.grading import Grader
from oneshot.tiny.make import make_tokenizer
from oneshot.training import sft
from oneshot.training.checkpoint import load_state, save_state
from oneshot.training.loop import train
from oneshot.training.metrics import StepMetrics
from oneshot.training.order import batch_of_step
from oneshot.training.schedule import factor
from oneshot.training.state import TrainingState, new_state
from oneshot.trial.recorder import record

MakeConfig = Callable[..., TrialConfig]
TEXTS = {"1+1=?": ("It is \\boxed{2}.", "\\boxed{2}", "Two"), "2*3=?": ("\\boxed{6}: 2+2+2.",)}
EXAMPLES = [{"problem": problem, "answer": "2", "solution": {"texts": list(texts)}} for problem, texts in TEXTS.items()]
NO_SUITES = {"eval": {"suites": {}}}


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("perf/", "system/"))}


@pytest.fixture(scope="module")
def neox(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small GPT-NeoX, which computes in float64 throughout, and the organisms' tokenizer."""
    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).double().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sft_config(tiny_config: MakeConfig) -> MakeConfig:
    """A tiny trial of SFT without evaluations."""

    def make(**sections: Any) -> TrialConfig:
        train = {"method": "sft", "num_steps": 3, "batch_size": 2, **sections.pop("train", {})}
        return tiny_config(**{**NO_SUITES, "examples": EXAMPLES, "train": train, **sections})

    return make


def learned(config: TrialConfig, grader: Grader, *, seed: int = 0) -> tuple[list[StepMetrics], TrainingState]:
    state = new_state(config, seed=seed, grader=grader)
    return list(train(config, state)), state


def plain_gradient(state: TrainingState, aggregation: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient by autograd on all logits: a row a solution, its end token last, its prompt not learned."""
    model, tokenizer = state.policy.model, state.policy.tokenizer
    model.zero_grad()
    logprobs = []
    for problem, texts in TEXTS.items():
        for text in texts:
            prompt_ids = tokenizer.encode(f"{problem}\n")
            solution = torch.tensor([*tokenizer.encode(text), tokenizer.eos_token_id])
            ids = torch.tensor([[*prompt_ids, *solution.tolist()]])
            log_softmax = model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(dim=-1)
            logprobs.append(log_softmax.gather(1, solution[:, None])[:, 0])
    each = torch.cat(logprobs) if aggregation == "token_mean" else torch.stack([one.mean() for one in logprobs])
    loss = -each.mean()
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradient


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("microbatch_tokens", [1, 20, 1000])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_gradient_is_that_of_the_solutions_log_probabilities(
    sft_config: MakeConfig, grader: Grader, neox: str, aggregation: str, microbatch_tokens: int, is_packed: bool
) -> None:
    config = sft_config(
        model={"path": neox, "dtype": "float64"},
        loss={"aggregation": aggregation},
        train={"microbatch_tokens": microbatch_tokens},
    )
    state = new_state(config, seed=0, grader=grader)
    packs = state.policy.model.config._attn_implementation
    state.policy.model.set_attn_implementation("sdpa")
    wanted_loss, wanted = plain_gradient(state, aggregation)
    if is_packed:
        state.policy.model.set_attn_implementation(packs)
    metrics = sft.add_gradient(config, state, [3, 0, 2, 1])
    assert metrics["loss/total"] == pytest.approx(wanted_loss, abs=1e-10)
    found = {name: p.grad for name, p in state.weights.master.items()}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert gradient is not None
        assert (gradient - wanted[name]).abs().max() < 1e-10, name


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_loss_and_gradient_are_those_of_trl(sft_config: MakeConfig, grader: Grader, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = sft_config(model={"path": "tiny:qwen2", "dtype": "float64"}, train={"batch_size": 4})
    folder = local_folder("tiny:qwen2")
    with norms_as_wide_as_their_input():
        state = new_state(config, seed=0, grader=grader)
        metrics = sft.add_gradient(config, state, range(4))
        pairs = [(f"{problem}\n", text) for problem, texts in TEXTS.items() for text in texts]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        trainer = SFTTrainer(
            model=model,
            processing_class=state.policy.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": prompt, "completion": text} for prompt, text in pairs]),
            args=SFTConfig(
                output_dir=str(tmp_path), per_device_train_batch_size=4, completion_only_loss=True, use_cpu=True,
                report_to="none", bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False,
            ),
        )  # fmt: skip
        trainer.model.eval()
        loss: Any = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
        loss.backward()
    assert metrics["loss/total"] == pytest.approx(loss.item(), rel=1e-6)  # its logits are in float32
    theirs = dict(trainer.model.named_parameters())
    for name, master in state.weights.master.items():
        assert master.grad is not None
        assert (master.grad - theirs[name].grad).abs().max() < 1e-6, name


def test_a_step_on_two_tokens_by_hand(sft_config: MakeConfig, grader: Grader) -> None:
    """The loss is -(log p(7) + log p(end)) / 2, and AdamW's first step moves each weight by lr * g / (|g| + eps)."""
    example = {"problem": "3+4=?", "answer": "7", "solution": "7"}
    config = sft_config(examples=[example], optim={"lr": 1e-3, "grad_clip": 1e9}, model={"dtype": "float64"})
    state = new_state(config, seed=0, grader=grader)
    seven, end = state.solutions[0]
    assert (state.policy.tokenizer.decode([seven]), end) == ("7", state.policy.tokenizer.eos_token_id)
    sft.add_gradient(config, state, [0])
    before = {name: p.detach().clone() for name, p in state.weights.master.items()}
    gradient = {name: p.grad.clone() for name, p in state.weights.master.items() if p.grad is not None}
    state.optimizer.zero_grad()
    logprobs = state.policy.model(torch.tensor([[*state.prompts[0], seven]])).logits[0, -2:].log_softmax(dim=-1)
    metrics = sft.train_step(config, state).metrics
    by_hand = -(logprobs[0, seven] + logprobs[1, end]).item() / 2
    assert metrics["loss/total"] == pytest.approx(by_hand, abs=1e-6)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert metrics["loss/grad_norm"] == pytest.approx(norm, rel=1e-9)
    assert (metrics["sft/num_tokens"], metrics["sft/epoch"], metrics["sft/cut"]) == (2.0, 1.0, 0.0)
    for name, master in state.weights.master.items():
        moved = -1e-3 * gradient[name] / (gradient[name].abs() + 1e-8)
        assert (master.detach() - before[name] - moved).abs().max() < 1e-9, name


def test_worked_solutions_teach_an_organism_to_box_its_answers(tiny_config: MakeConfig, grader: Grader) -> None:
    """tiny:qwen2 boxes less than half of its answers; after SFT on worked solutions of 24 problems nearly all."""
    config = tiny_config(
        examples=[{"set": "arithmetic", "random": 24, "seed": 1}],
        train={"method": "sft", "num_steps": 12},
        optim={"lr": 1e-3},
        eval={"every_steps": 100, "suites": {"arithmetic": {"num_problems": 20, "temperature": 1.0}}},
    )
    first, *_, last = (step.metrics for step in learned(config, grader)[0])
    assert last["eval/arithmetic/boxed"] > 0.9 > 0.5 > first["eval/arithmetic/boxed"]
    assert last["loss/total"] < 0.1


def test_a_loss_that_is_not_finite_keeps_the_weights(sft_config: MakeConfig, grader: Grader) -> None:
    config = sft_config()
    state = new_state(config, seed=0, grader=grader)
    head = state.policy.model.get_output_embeddings().weight
    with torch.no_grad():
        head[0, 0] = torch.nan
    before = head.detach().clone()
    with pytest.raises(TrialError, match="loss/total is nan at step 1; the weights of step 0 are kept"):
        sft.train_step(config, state)
    assert torch.equal(before.nan_to_num(), head.detach().nan_to_num())


# order


@given(number=st.integers(1, 40), batch_size=st.integers(1, 12), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_every_epoch_learns_each_solution_once(number: int, batch_size: int, seed: int, epoch: int) -> None:
    per_epoch = math.ceil(number / batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    batches = [batch_of_step(number, batch_size, seed=seed, step=step) for step in steps]
    assert sorted(place for batch in batches for place in batch) == list(range(number))
    # the last batch has what is left
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (per_epoch - 1)
    assert len(batches[-1]) == number - batch_size * (per_epoch - 1)


def test_seeds_and_epochs_have_their_own_order() -> None:
    orders = [batch_of_step(30, 30, seed=seed, step=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_a_trial_counts_its_epochs_and_tokens(sft_config: MakeConfig, grader: Grader) -> None:
    steps, state = learned(sft_config(train={"batch_size": 3, "num_steps": 4}), grader)
    assert [step.metrics["sft/epoch"] for step in steps] == [0.5, 1.0, 1.5, 2.0]
    tokens = [step.metrics["sft/num_tokens"] for step in steps]
    # one token a character, and the end
    every = sum(len(text) + 1 for texts in TEXTS.values() for text in texts)
    assert tokens[0] + tokens[1] == tokens[2] + tokens[3] == sum(map(len, state.solutions)) == every


# learning rates


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(10, 0.0), (10, 0.25), (7, 0.5), (1, 0.0)])
def test_the_learning_rate_is_transformers(kind: Any, total: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    name = "constant_with_warmup" if kind == "constant" else kind
    num_warmup = math.ceil(warmup * total)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=num_warmup, num_training_steps=total)
    for done in range(total):
        mine = factor(done, total, ScheduleConfig(kind=kind, warmup=warmup))
        assert mine == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_learning_rate_ends_at_its_final_share_by_hand() -> None:
    # 8 steps: 2 of warm-up, then 0.1 + 0.9 * course; half way, after 5 of 8 steps, a course of 1/2
    linear, cosine = (ScheduleConfig(kind=kind, warmup=0.25, final=0.1) for kind in ("linear", "cosine"))
    for config in (linear, cosine):
        found = [factor(done, 8, config) for done in (0, 1, 2, 5, 8)]
        assert found == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])
    # after 1 of 6 steps: 1 - 1/6; (1 + cos(30 degrees)) / 2
    assert factor(3, 8, linear) == pytest.approx(0.1 + 0.9 * 5 / 6)
    assert factor(3, 8, cosine) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(3) / 2) / 2)


@pytest.mark.parametrize(
    ("train", "rates"), [({}, [1.0, 0.75, 0.5, 0.25]), ({"updates_per_rollout": 2}, [0.875, 0.375])]
)
def test_a_trial_of_grpo_has_a_schedule_over_its_updates(
    tiny_config: MakeConfig, grader: Grader, train: dict[str, int], rates: list[float]
) -> None:
    """Steps of two updates report the mean of theirs: of 4 updates, (1 + 3/4) / 2 and (1/2 + 1/4) / 2."""
    config = tiny_config(
        **NO_SUITES,
        rollout={"num_groups": 2, "group_size": 2, "max_tokens": 8},
        optim={"lr": 1e-4, "schedule": {"kind": "linear"}},
        train={"num_steps": len(rates), **train},
    )
    found = [step.metrics["optim/lr"] for step in learned(config, grader)[0]]
    assert found == pytest.approx([1e-4 * rate for rate in rates])


def test_the_first_step_of_a_warm_up_changes_no_weight(sft_config: MakeConfig, grader: Grader) -> None:
    config = sft_config(optim={"lr": 1e-2, "schedule": {"warmup": 0.9}})
    state = new_state(config, seed=0, grader=grader)
    weights = [p.detach().clone() for p in state.weights.master.values()]
    sft.train_step(config, state)
    assert all(torch.equal(a, b) for a, b in zip(weights, state.weights.master.values(), strict=True))
    sft.train_step(config, state)
    assert not all(torch.equal(a, b) for a, b in zip(weights, state.weights.master.values(), strict=True))


def test_a_schedule_puts_the_number_of_steps_into_the_key(tiny_config: MakeConfig) -> None:
    def key(num_steps: int, **schedule: Any) -> str | None:
        return trial(tiny_config(train={"num_steps": num_steps}, optim={"schedule": schedule})).key

    assert key(2) == key(3) == trial(tiny_config()).key
    assert len({key(2), key(2, kind="linear"), key(3, kind="linear"), key(2, warmup=0.1), key(3, warmup=0.1)}) == 5


# resuming

ADAPTER = {"adapter": {"kind": "lora", "r": 2, "alpha": 4.0}}
COSINE = {"lr": 1e-3, "schedule": {"kind": "cosine", "warmup": 0.2, "final": 0.1}}


@pytest.mark.parametrize("model", [{}, ADAPTER], ids=["whole", "adapter"])
def test_a_trial_that_resumes_ends_in_the_same_bits(
    sft_config: MakeConfig, grader: Grader, tmp_path: Path, model: dict[str, Any]
) -> None:
    config = sft_config(model=model, optim=COSINE, train={"num_steps": 7, "batch_size": 3})
    whole, whole_state = learned(config, grader, seed=5)
    begun = new_state(config, seed=5, grader=grader)
    steps = []
    for step in train(config, begun):
        steps.append(step)
        if step.step == 3:
            break
    save_state(begun, tmp_path, with_optimizer=True)
    resumed = new_state(config, seed=5, grader=grader)
    load_state(resumed, tmp_path)
    steps += train(config, resumed)
    assert [comparable(step.metrics) for step in steps] == [comparable(step.metrics) for step in whole]
    masters = (state.weights.master.values() for state in (whole_state, resumed))
    assert all(torch.equal(a, b) for a, b in zip(*masters, strict=True))


def test_a_recorded_trial_that_is_closed_early_resumes(sft_config: MakeConfig, grader: Grader, tmp_path: Path) -> None:
    made = training(sft_config(optim=COSINE, train={"num_steps": 5}))
    whole, cut = (Store(str(tmp_path)).trial(name) for name in ("whole", "cut"))
    wanted = [comparable(step.metrics) for step in record(made, whole, grader=grader, origin="test")]
    steps = record(made, cut, grader=grader, origin="test")
    while next(steps).step < 2:
        pass
    steps.close()
    assert [step.step for step in record(made, cut, grader=grader, origin="test")] == [3, 4, 5]
    assert [comparable(row.metrics) for row in cut.rows()] == wanted
    assert "rollout/entropy" not in wanted[0]
