"""What a trial needs of a GPU: worked by hand, as laws, and against what the allocator really gave (weighing.py)."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM
from weighing import Weighed, small_model, weigh, weigh_several

from oneshot.cli.plan_tables import plan_table
from oneshot.config.file import read
from oneshot.config.model import AdapterConfig
from oneshot.config.resources import ResourceConfig
from oneshot.config.trial import TrialConfig
from oneshot.models.activations import MicroBatch, model_bytes
from oneshot.models.memory import Memory, Strategy, footprint
from oneshot.models.placement import alternatives, choose_strategy, place_trial, trial_memory, usable_gib
from oneshot.models.shapes import ModelShape, model_shape
from oneshot.plan.plan import Plan, make_plan
from oneshot.policy import attention, packed_attention
from oneshot.policy.forward import hidden_states, use_packs
from oneshot.policy.packing import pack
from oneshot.tasks.grading import Grader

MATH_7B = "Qwen/Qwen2.5-Math-7B"
ROUND = ModelShape(
    num_layers=60,
    hidden=1024,
    intermediate=4096,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    vocabulary=2**16,
    is_tied=True,
)
"""4 x 2^20 + 12 x 2^20 weights a layer and 2^26 embeddings: 2^30 in all, so that a byte of each is a GiB."""


def config(path: str = MATH_7B, **sections: dict[str, Any]) -> TrialConfig:
    data: dict[str, Any] = {"model": {"path": path}, "examples": ["arithmetic:1+1"]}
    for name, section in sections.items():
        data[name] = {**data.get(name, {}), **section}
    return TrialConfig.model_validate(data)


# by hand


@pytest.mark.parametrize(
    ("model", "kl_coef", "parts"),
    [
        # weights; master where it is apart, and two moments; reference where there is a KL term
        ({}, 0.0, (4, 8, 0)),
        ({}, 0.001, (4, 8, 4)),
        ({"dtype": "bfloat16"}, 0.001, (2, 4, 2)),
        ({"dtype": "float64"}, 0.0, (8, 16, 0)),
        ({"mixed_precision": "bf16"}, 0.0, (2, 12, 0)),
        ({"mixed_precision": "bf16"}, 0.001, (2, 12, 2)),
        ({"mixed_precision": "fp16"}, 0.001, (2, 12, 2)),
    ],
)
def test_what_lasts_by_hand(model: dict[str, Any], kl_coef: float, parts: tuple[float, float, float]) -> None:
    found = footprint(config(model=model, loss={"kl_coef": kl_coef}), ROUND)
    assert (found.weights, found.optimiser, found.reference) == parts
    assert found.lasting_gib == sum(parts)


def test_a_critic_of_its_own_is_another_model_without_a_head() -> None:
    critic = {"advantage": {"baseline": "critic"}, "loss": {"kl_coef": 0.0}, "model": {"mixed_precision": "bf16"}}
    found = footprint(config(**critic), ROUND)
    body = 1 if ROUND.is_tied else 1 - ROUND.head_params / ROUND.num_params
    assert (found.weights, found.optimiser) == (2 * (1 + body), 12 * (1 + body))
    shared = footprint(config(**critic, critic={"share": "body"}), ROUND)
    assert (shared.weights, shared.optimiser) == (2, 12)


def test_shards_are_divided_and_what_decodes_is_whole() -> None:
    bf16 = config(model={"mixed_precision": "bf16"}, loss={"kl_coef": 0.0})
    found = footprint(bf16, ROUND, strategy="fsdp", num_processes=4)
    # float32 master and two moments over 4 processes; no weights but the copy that decodes
    assert (found.weights, found.optimiser, found.decoding) == (0, 12 / 4, 2)
    offloaded = footprint(bf16, ROUND, strategy="fsdp", num_processes=4, cpu_offload=True)
    assert (offloaded.optimiser, offloaded.decoding) == (0, 2)


def test_an_adapter_trains_its_own_weights_alone() -> None:
    lora = config(model={"mixed_precision": "bf16", "adapter": {"r": 16, "targets": ["q_proj"]}})
    found = footprint(lora, ROUND)
    # 60 layers x 16 x (1024 + 1024) are 1.875 x 2^20: 2 bytes that compute, 4 of the master and 8 of moments each
    added = 1.875 / 1024
    assert found.weights == pytest.approx(2 + 2 * added)
    assert found.optimiser == pytest.approx(12 * added)
    assert found.reference == 0


def test_an_evaluation_alone_needs_the_weights_alone() -> None:
    found = footprint(config(train={"num_steps": 0}), ROUND)
    assert found.peak_gib == found.weights == 4


def test_keys_and_values_by_hand() -> None:
    # 2 x 60 x 1024 numbers of 4 bytes a token: 480 KiB; 4 x 4 completions of 64 tokens behind a prompt of 64: 960 MiB,
    # and one of 120 keys or values while it moves
    few = {"num_groups": 4, "group_size": 4, "max_tokens": 64}
    found = footprint(config(rollout=few), ROUND, prompt_tokens=64)
    assert found.kv == pytest.approx(0.9375 * (1 + 1 / 120))
    # no more than half a GiB
    halved = footprint(config(rollout={**few, "kv_gib": 0.5}), ROUND, prompt_tokens=64)
    assert halved.kv == pytest.approx(0.5 * (1 + 1 / 120))


def test_what_a_7b_model_takes_by_hand() -> None:
    bf16 = config(model={"mixed_precision": "bf16"}, loss={"kl_coef": 0.0})
    found = trial_memory(bf16, ResourceConfig(gpus=1))
    # 7.6154e9 weights x (2 + 4 + 8) bytes are 99.3 GiB; two moments and float32 weights alone 91.4 GB
    assert found is not None
    assert found.optimiser * 2**30 / 1e9 == pytest.approx(91.4, abs=0.1)
    assert found.lasting_gib == pytest.approx(99.3, abs=0.1)


# what is chosen


def test_a_7b_model_takes_shards_over_four_gpus_or_an_adapter_on_one() -> None:
    whole = config(model={"mixed_precision": "bf16"}, train={"activation_checkpointing": True})
    fitting = {
        (way.resources.gpus, way.strategy, way.adapter is not None): way.fits
        for way in alternatives(whole, ResourceConfig(gpus=4))
    }
    assert fitting == {
        (1, "single", False): False,
        (2, "ddp", False): False,
        (2, "fsdp", False): False,
        (4, "fsdp", False): True,
        (8, "fsdp", False): True,
        (1, "single", True): True,
    }
    assert choose_strategy(whole, ResourceConfig(gpus=4)) == "fsdp"


def test_copies_where_they_fit_and_shards_where_they_do_not() -> None:
    small = config("Qwen/Qwen2.5-Math-1.5B", model={"mixed_precision": "bf16"})
    small = small.model_copy(update={"train": small.train.model_copy(update={"activation_checkpointing": True})})
    assert choose_strategy(small, ResourceConfig(gpus=2)) == "ddp"
    assert choose_strategy(small, ResourceConfig(gpus=2, accelerator=["A10G"])) == "fsdp"
    assert choose_strategy(small, ResourceConfig(gpus=2, gpu_gib=20)) == "fsdp"
    assert choose_strategy(small, ResourceConfig(gpus=2, strategy="fsdp")) == "fsdp"
    assert choose_strategy(config(), ResourceConfig(gpus=4, strategy="ddp")) == "ddp"


def test_one_process_is_single_and_without_gpus_each_has_a_copy() -> None:
    assert choose_strategy(config(), ResourceConfig(gpus=1)) == "single"
    assert choose_strategy(config(), ResourceConfig(num_processes=2)) == "ddp"


def test_a_model_of_which_nothing_is_known_is_sharded() -> None:
    unknown = config("someone/unknown")
    assert choose_strategy(unknown, ResourceConfig(gpus=2)) == "fsdp"
    assert place_trial(unknown, ResourceConfig(gpus=2)) is None


def test_the_smallest_accelerator_that_will_do_is_planned_with() -> None:
    # 22 GiB of an L4, a tenth of them left free; half of it for half a GPU
    assert usable_gib(ResourceConfig(gpus=1, accelerator=["H100", "L4"])) == pytest.approx(19.8)
    assert usable_gib(ResourceConfig(gpus=0.5, accelerator=["L4"])) == pytest.approx(9.9)
    assert usable_gib(ResourceConfig(gpus=2)) == pytest.approx(71.1)
    assert usable_gib(ResourceConfig(gpus=1, gpu_gib=30)) == pytest.approx(27)
    assert usable_gib(ResourceConfig()) is None


# what the plan says

BASE = (PROJECT / "tests" / "cases" / "base.yaml").read_text()
SEVEN = BASE.replace(
    "  model.path: tiny:qwen2\n",
    f"  model: {{path: {MATH_7B}, mixed_precision: bf16}}\n  train.activation_checkpointing: true\n",
)


def planned(text: str) -> Plan:
    return make_plan(read(text, name="s.yaml"))


def shown(plan: Plan) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(plan_table(plan))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_trial_that_does_not_fit_is_a_warning_with_the_mend() -> None:
    (warning,) = planned(SEVEN + "resources: {gpus: 1}\n").warnings
    assert warning.startswith(f"{MATH_7B} needs about")
    assert "set resources: {gpus: 4} or model.adapter: {kind: lora}" in warning
    assert planned(SEVEN + "resources: {gpus: 4, cpus: 8}\n").warnings == ()


def test_a_mend_is_one_that_mends() -> None:
    whole = planned(SEVEN + "resources: {gpus: 4, cpus: 4, strategy: ddp}\n").warnings[0]
    assert "set resources: {gpus: 4, strategy: auto} or model.adapter: {kind: lora}" in whole
    adapted = SEVEN.replace("model: {path", "model: {adapter: {targets: [q_proj]}, path")
    half = planned(adapted + "resources: {gpus: 0.2}\n")
    assert "set resources: {gpus: 1} (" in half.warnings[0]
    assert "1 GPU" in shown(half)
    share = planned(adapted + "resources: {gpu_gib: 17}\n")
    assert "GiB of a GPU (single), and has 15 usable; set resources: {gpu_gib: 24} (" in share.warnings[0]


def test_an_accelerator_of_unknown_memory_is_a_warning() -> None:
    (warning,) = planned(SEVEN + "resources: {gpus: 8, cpus: 8, accelerator: [P100]}\n").warnings
    assert warning.startswith("resources.accelerator: the memory of P100 is unknown")


def test_of_experts_and_of_fewer_bits_nothing_is_estimated(
    tmp_path: Path, tiny_config: Callable[..., TrialConfig]
) -> None:
    facts = json.loads((PROJECT / "oneshot" / "tiny" / "llama" / "config.json").read_text())
    for more, is_known in (
        ({}, True),
        ({"num_local_experts": 8}, False),
        ({"quantization_config": {"bits": 4}}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**facts, **more}))
        assert (model_shape(tiny_config(model={"path": str(tmp_path)})) is not None) == is_known


def test_processes_without_a_core_each_are_a_warning() -> None:
    (warning,) = planned(SEVEN + "resources: {gpus: 4, cpus: 3}\n").warnings
    assert warning.startswith("resources.cpus: 4 processes share 3 cores; set cpus to 4 or more")


def test_host_memory_that_loading_does_not_fit_is_a_warning() -> None:
    # 7.6e9 weights of 4 bytes in each of 4 processes: 113 GiB
    (warning,) = planned(SEVEN + "resources: {gpus: 4, cpus: 4, memory_gib: 100}\n").warnings
    assert warning.startswith("resources.memory_gib: 100, but 4 processes load about 113 GiB")


def test_the_plan_of_a_7b_model_shows_what_fits() -> None:
    text = shown(planned(SEVEN + "resources: {gpus: 4}\n"))
    rows = {line.split("  ")[1]: line for line in text.splitlines() if line.startswith("  ")}
    assert rows["1 GPU"].rstrip().endswith("does not fit")
    assert rows["2 GPUs, fsdp"].rstrip().endswith("does not fit")
    assert rows["4 GPUs, fsdp"].rstrip().endswith("this sweep")
    assert "does not fit" not in rows["1 GPU, lora r 32"]


def test_a_plan_without_gpus_has_no_memory_table() -> None:
    assert "GiB of a GPU" not in shown(planned(BASE))


def test_the_plan_s_json_says_how_each_trial_is_spread_and_what_it_needs() -> None:
    (trial, *_) = planned(SEVEN + "resources: {gpus: 4}\n").to_json()["trials"]
    assert (trial["strategy"], trial["num_processes"]) == ("fsdp", 4)
    assert 40 < trial["memory_gib"] < 71.1
    (tiny, *_) = planned(BASE).to_json()["trials"]
    assert (tiny["strategy"], tiny["num_processes"]) == ("single", 1)
    assert 0 < tiny["memory_gib"] < 1
    unknown = planned(BASE.replace("tiny:qwen2", "someone/unknown")).to_json()["trials"][0]
    assert "memory_gib" not in unknown and unknown["strategy"] == "single"


@pytest.mark.parametrize(
    ("resources", "warnings"),
    [
        ("strategy: fsdp", ["resources.strategy has no effect"]),
        ("strategy: fsdp, num_processes: 2", []),
        ("cpu_offload: true", ["resources.cpu_offload has no effect"]),
        ("cpu_offload: true, num_processes: 2, strategy: ddp", ["resources.cpu_offload has no effect"]),
        ("cpu_offload: true, num_processes: 2, strategy: fsdp", []),
    ],
)
def test_resources_that_change_nothing_are_warnings(resources: str, warnings: list[str]) -> None:
    found = planned(BASE + f"resources: {{cpus: 2, {resources}}}\n").warnings
    assert [warning.partition(":")[0] for warning in found] == warnings


# laws

SHAPES = st.builds(
    ModelShape,
    num_layers=st.integers(1, 64),
    hidden=st.integers(64, 8192),
    intermediate=st.integers(64, 32768),
    num_heads=st.integers(1, 64),
    num_kv_heads=st.integers(1, 64),
    head_dim=st.sampled_from([32, 64, 128]),
    vocabulary=st.integers(100, 200_000),
    is_tied=st.booleans(),
)
PRECISIONS = st.sampled_from([{}, {"mixed_precision": "bf16"}, {"dtype": "bfloat16"}])


@given(shape=SHAPES, model=PRECISIONS, num_processes=st.integers(1, 64))
def test_more_processes_never_need_more_each(shape: ModelShape, model: dict[str, Any], num_processes: int) -> None:
    made = config(model=model, rollout={"kv_gib": 2.0})
    for strategy in ("ddp", "fsdp"):
        fewer, more = (
            footprint(made, shape, strategy=strategy, num_processes=n, gpu_gib=70)
            for n in (num_processes, num_processes + 1)
        )
        assert more.peak_gib <= fewer.peak_gib * (1 + 1e-9)


@given(shape=SHAPES, model=PRECISIONS)
def test_an_adapter_never_needs_more_than_all_weights(shape: ModelShape, model: dict[str, Any]) -> None:
    whole = footprint(config(model=model, rollout={"kv_gib": 2.0}), shape)
    rank = AdapterConfig(r=1).model_dump()
    adapted = footprint(config(model={**model, "adapter": rank}, rollout={"kv_gib": 2.0}), shape)
    assert adapted.lasting_gib < whole.lasting_gib


@given(shape=SHAPES, model=PRECISIONS, tokens=st.integers(2, 8000))
def test_longer_completions_need_more_to_decode(shape: ModelShape, model: dict[str, Any], tokens: int) -> None:
    short, long = (
        footprint(config(model=model, rollout={"max_tokens": n, "kv_gib": 1e6}), shape) for n in (tokens, tokens + 1)
    )
    assert short.rollout_gib < long.rollout_gib


@given(shape=SHAPES, model=PRECISIONS, tokens=st.integers(500, 100_000))
def test_larger_micro_batches_never_need_less(shape: ModelShape, model: dict[str, Any], tokens: int) -> None:
    small, large = (
        footprint(config(model=model, rollout={"max_tokens": 64}, train={"microbatch_tokens": n}), shape)
        for n in (tokens, 2 * tokens)
    )
    # one micro-batch that holds all has no sum of earlier ones beside it
    assert small.update_gib <= large.update_gib or large.gradients < small.gradients


def learning(*, path: str = MATH_7B, **sections: dict[str, Any]) -> TrialConfig:
    return config(path, **{**sections, "train": {"method": "sft", **sections.get("train", {})}})


def test_sft_has_neither_rollout_nor_reference() -> None:
    grpo, sft = (footprint(made, ROUND) for made in (config(loss={"kl_coef": 0.1}), learning(loss={"kl_coef": 0.1})))
    # in float32: 4 GiB of weights, and as many of a reference
    assert (grpo.reference, sft.reference) == (4.0, 0.0)
    assert sft.rollout_gib == sft.lasting_gib < grpo.rollout_gib


@given(shape=SHAPES, model=PRECISIONS, length=st.integers(600, 20_000))
def test_longer_solutions_never_need_less(shape: ModelShape, model: dict[str, Any], length: int) -> None:
    short, long = (
        footprint(learning(model=model, train={"max_length": n, "batch_size": 1}), shape) for n in (length, 2 * length)
    )
    assert short.update_gib <= long.update_gib


@given(shape=SHAPES, model=PRECISIONS, number=st.integers(1, 64))
def test_larger_batches_of_solutions_never_need_less(shape: ModelShape, model: dict[str, Any], number: int) -> None:
    few, many = (
        footprint(learning(model=model, train={"max_length": 2000, "batch_size": n}), shape)
        for n in (number, number + 1)
    )
    assert few.update_gib <= many.update_gib


@given(shape=SHAPES, model=PRECISIONS)
def test_checkpointing_never_needs_more(shape: ModelShape, model: dict[str, Any]) -> None:
    deep = replace(shape, num_layers=shape.num_layers + 1)
    plain, again = (
        footprint(config(model=model, train={"activation_checkpointing": on}), deep) for on in (False, True)
    )
    assert again.update_gib <= plain.update_gib


# what is measured

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 2000,  # few completions end before they are cut
}
WIDE = {"hidden_size": 256, "intermediate_size": 1024}
MANY_ROWS = {"hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 4, "vocab_size": 99}
MIXED = {"mixed_precision": "bf16"}
LORA = {"adapter": {"r": 8, "alpha": 16.0}}
SOLUTIONS = [{"problem": f"{n}+{n}=?", "answer": "1", "solution": "x" * 55} for n in range(10, 26)]
"""16 solutions of 8 tokens' prompt: with the end, all have 64 tokens."""
SFT: dict[str, Any] = {"examples": SOLUTIONS, "train": {"method": "sft", "batch_size": 16, "max_length": 64}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sft": ("llama", {}, SFT),
    "sft, several micro-batches": ("qwen2", {}, {**SFT, "train": {**SFT["train"], "microbatch_tokens": 260}}),
    "sft, bf16, adapter": ("llama", {}, {**SFT, "model": {**LORA, **MIXED}}),
    "llama": ("llama", {}, {}),
    "qwen2, untied": ("qwen2", {"tie_word_embeddings": False}, {}),
    "bf16": ("llama", {}, {"model": MIXED}),
    "no reference": ("llama", {}, {"loss": {"kl_coef": 0.0}}),
    "checkpointing": ("llama", {}, {"train": {"activation_checkpointing": True}}),
    "checkpointing, bf16": ("llama", {}, {"model": MIXED, "train": {"activation_checkpointing": True}}),
    "several micro-batches": ("llama", {}, {"train": {"microbatch_tokens": 200}}),
    "several micro-batches, bf16": ("llama", {}, {"model": MIXED, "train": {"microbatch_tokens": 200}}),
    "weights above all": ("llama", WIDE, {"rollout": {"num_groups": 1, "max_tokens": 16}}),
    "weights above all, bf16": ("llama", WIDE, {"model": MIXED, "rollout": {"num_groups": 1, "max_tokens": 16}}),
    "keys and values above all": (
        "llama",
        MANY_ROWS,
        {
            "rollout": {"num_groups": 16, "max_tokens": 64},
            "loss": {"kl_coef": 0.0, "entropy_coef": 0.0},  # nothing is right, so that nothing is trained on
            "train": {"microbatch_tokens": 64},
        },
    ),
    "critic": ("llama", {}, {"advantage": {"baseline": "critic"}}),
    "critic, bf16": ("qwen2", {"tie_word_embeddings": False}, {"advantage": {"baseline": "critic"}, "model": MIXED}),
    "critic on the policy": ("llama", {}, {"advantage": {"baseline": "critic"}, "critic": {"share": "body"}}),
    "adapter": ("llama", {}, {"model": LORA}),
    "adapter, bf16": ("qwen2", {}, {"model": LORA | MIXED}),
    "adapter of few": ("llama", {}, {"model": {"adapter": {"r": 8, "targets": ["q_proj", "v_proj"]}}}),
}
SEVERAL: dict[str, tuple[Strategy, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "ddp": ("ddp", {}, {}),
    "ddp, bf16, weights above all": ("ddp", WIDE, {"model": MIXED, "rollout": {"num_groups": 2, "max_tokens": 16}}),
    "fsdp": ("fsdp", {}, {}),
    "fsdp, bf16": ("fsdp", {"tie_word_embeddings": False}, {"model": MIXED}),
    "fsdp, adapter": ("fsdp", {}, {"model": LORA}),
    "fsdp, bf16, checkpointing": ("fsdp", {}, {"model": MIXED, "train": {"activation_checkpointing": True}}),
    "fsdp, weights above all": ("fsdp", WIDE, {"rollout": {"num_groups": 2, "max_tokens": 16}}),
    "fsdp, bf16, weights above all": ("fsdp", WIDE, {"model": MIXED, "rollout": {"num_groups": 2, "max_tokens": 16}}),
}


@pytest.fixture
def make(tmp_path: Path, tiny_config: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    """A tiny trial on a fresh model, without evaluations."""

    def made(kind: str, sizes: dict[str, Any], sections: dict[str, dict[str, Any]]) -> TrialConfig:
        folder = small_model(tmp_path / "model", kind, **{**SIZES, **sizes})
        own: dict[str, dict[str, Any]] = {"model": {"path": str(folder)}, "rollout": {"max_tokens": 32}}
        for name, section in sections.items():
            own[name] = {**own.get(name, {}), **section} if isinstance(section, dict) else section
        return TrialConfig.model_validate(tiny_config(**own).model_dump() | {"eval": {"suites": {}}})

    return made


def assert_close(found: Memory, weighed: Weighed) -> None:
    """The peak within 15%; what lasts, and which phase is the worse, as well."""
    assert found.peak_gib * 2**30 == pytest.approx(weighed.peak, rel=0.15)
    assert (found.lasting_gib + found.decoding) * 2**30 == pytest.approx(weighed.lasting, rel=0.03)
    assert (found.update_gib > found.rollout_gib) == (weighed.update > weighed.rollout)


class Kernel(torch.autograd.Function):
    """What a GPU's attention of a whole pack keeps: its inputs, its output and a normaliser for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.zeros_like(query)
        ctx.save_for_backward(query, key, value, output, torch.zeros(query.shape[:2]))
        return output


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"num_key_value_heads": 4}])
def test_the_estimate_of_activations_is_what_a_forward_pass_keeps(
    kind: str, on_gpu: bool, sizes: dict[str, int], make: Callable[..., TrialConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(kind, sizes, {})
    model = AutoModelForCausalLM.from_pretrained(made.model.path, dtype=torch.bfloat16)
    assert use_packs(model)
    if on_gpu:
        monkeypatch.setattr(attention, "_takes_whole_packs", lambda *_: True)
        monkeypatch.setattr(packed_attention, "varlen_attn", lambda *args, **_: Kernel.apply(*args[:3]))
    num_prompt, num_rows, width = 20, 6, 31
    batch = pack(
        [[5] * num_prompt], [0] * num_rows, [[6] * (width + 1)] * num_rows, range(num_rows), device=torch.device("cpu")
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_MH = hidden_states(model, batch)
    assert hidden_MH.requires_grad
    shape = model_shape(made)
    assert shape is not None
    estimate = model_bytes(
        made,
        shape,
        MicroBatch(num_tokens=len(batch.ids_N), num_rows=num_rows, prompt=num_prompt, width=width, is_only=True),
        compute_bytes=2,
        on_gpu=on_gpu,
    )
    assert sum(size for place, size in kept.items() if place not in weights) == pytest.approx(estimate, rel=0.05)


FEW = ("llama", "sft")
"""Of the measured cases those that are always run; the others are slow for their number."""
FEW_OF_SEVERAL = ("fsdp", "fsdp, adapter", "ddp, bf16, weights above all")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*")
@pytest.mark.parametrize("name", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in CASES])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    name: str, make: Callable[..., TrialConfig], grader: Grader
) -> None:
    made = make(*CASES[name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # memory does not depend on it, and a busy machine's time does
    try:
        weighed = weigh(made, grader)
    finally:
        torch.set_num_threads(threads)
    shape = model_shape(made)
    assert shape is not None
    assert_close(footprint(made, shape, prompt_tokens=weighed.prompt_tokens), weighed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [one if one in FEW_OF_SEVERAL else pytest.param(one, marks=pytest.mark.soak) for one in SEVERAL]
)
def test_so_it_is_in_each_of_two_processes(name: str, make: Callable[..., TrialConfig]) -> None:
    strategy, sizes, sections = SEVERAL[name]
    made = make("llama", sizes, sections)
    shape = model_shape(made)
    assert shape is not None
    for weighed in weigh_several(made, strategy):
        found = footprint(made, shape, strategy=strategy, num_processes=2, prompt_tokens=weighed.prompt_tokens)
        assert_close(found, weighed)
