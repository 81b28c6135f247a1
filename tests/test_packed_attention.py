"""A pack's attention in one call is that block by block, with the call's gradients, and a probe finds one that is not.

torch's kernel runs on GPUs only. What stands for it here computes what its documentation says, in float64.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_model
from test_gradient import CONFIG, SPLITS, gradient, plain_gradient
from torch import Tensor

from oneshot.policy import attention, packed_attention
from oneshot.policy.forward import use_packs
from oneshot.policy.packed_attention import attend_at_once, attend_by_block
from oneshot.policy.packing import pack

CPU = torch.device("cpu")


def documented(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, shift: int = 0,
) -> Tensor:  # fmt: skip
    """Attend sequence by sequence, `[T, heads, D]` each; with a `shift` a query sees so many keys too many."""
    assert {cu_seq_q.dtype, cu_seq_k.dtype} == {torch.int32}
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key)) and len(key) == len(value)
    assert (cu_seq_q.diff().max(), cu_seq_k.diff().max()) == (max_q, max_k)
    assert cu_seq_q.diff().min() > 0
    assert window_size == (-1, 0)
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa or repeats == 1
    outputs = []
    for queries, keys, values in zip(
        query.split(cu_seq_q.diff().tolist()), key.split(cu_seq_k.diff().tolist()),
        value.split(cu_seq_k.diff().tolist()), strict=True,
    ):  # fmt: skip
        keys, values = (rows.repeat_interleave(repeats, dim=1) for rows in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (query.shape[2] ** -0.5 if scale is None else scale)
        seen = torch.ones(len(queries), len(keys), dtype=torch.bool).tril(len(keys) - len(queries) + shift)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


def told_nothing_of_groups(*args: Any, scale: float | None, window_size: tuple[int, int]) -> Tensor:
    """torch 2.11's: its kernel takes fewer key heads, its Python function has no word for it."""
    return documented(*args, scale=scale, window_size=window_size, enable_gqa=True)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """A function that replaces torch's kernel."""

    def replace(by: Any, *, grouped: bool = True) -> None:
        monkeypatch.setattr(packed_attention, "varlen_attn", by)
        monkeypatch.setattr(packed_attention, "_GROUPED", {"enable_gqa": True} if grouped else {})

    return replace


BLOCKS: dict[str, tuple[list[int], list[list[int]]]] = {
    "even": ([3], [[4, 4, 4]]),
    "uneven": ([3], [[1, 6, 2]]),
    "empty completions": ([3], [[0, 5, 0]]),
    "nothing but empty ones": ([2], [[0, 0]]),
    "a prompt of one token, a completion of one": ([1], [[1]]),
    "several blocks": ([5, 1, 2], [[4, 0, 7], [0], [1, 1]]),
}


@pytest.mark.parametrize("lengths", BLOCKS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("is_told", [True, False])
def test_one_call_gives_the_outputs_and_gradients_of_sdpa(
    lengths: str, heads: tuple[int, int], scaling: float | None, is_told: bool, kernel: Callable[..., None]
) -> None:
    kernel(documented if is_told else told_nothing_of_groups, grouped=is_told)
    prompts, of_prompts = BLOCKS[lengths]
    completions = [[0] * (length + 1) for of_prompt in of_prompts for length in of_prompt]
    prompt_of = [number for number, of_prompt in enumerate(of_prompts) for _ in of_prompt]
    batch = pack([[0] * n for n in prompts], prompt_of, completions, range(len(completions)), device=CPU)
    torch.manual_seed(0)
    num_tokens = len(batch.ids_N)
    leaves = [
        torch.randn(1, num_tokens, number, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for number in (heads[0], heads[1], heads[1])
    ]
    out_grad = torch.randn(1, num_tokens, heads[0], 8, dtype=torch.float64)
    found, wanted = (
        [output, *torch.autograd.grad(output, leaves, out_grad)]
        for output in (attend(batch, *leaves, scaling=scaling) for attend in (attend_at_once, attend_by_block))
    )
    assert [x.shape for x in found] == [x.shape for x in wanted]
    assert max((ours - theirs).abs().max() for ours, theirs in zip(found, wanted, strict=True)) < 1e-13


@pytest.mark.parametrize("split", SPLITS)
def test_a_model_that_takes_whole_packs_has_the_plain_gradient(
    split: str, kernel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(documented)
    model = small_model("gpt_neox")
    wanted_loss, wanted = plain_gradient(model, CONFIG)
    monkeypatch.setattr(attention, "_takes_whole_packs", lambda *_: True)
    assert use_packs(model)
    loss, found = gradient(model, SPLITS[split](), CONFIG)
    assert loss == pytest.approx(wanted_loss, abs=1e-10)
    assert max((found[name] - wanted[name]).abs().max() for name in wanted) < 1e-10


def test_a_window_never_goes_through_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_takes_whole_packs", lambda *_: True)  # torch's own kernel, which a CPU has not
    assert use_packs(small_model("mistral, a window of 4"))


SHAPE = (4, 2, 16)


def test_the_probe_accepts_a_kernel_that_agrees_with_sdpa(kernel: Callable[..., None]) -> None:
    kernel(documented)
    assert attention.reason_against(CPU, torch.bfloat16, SHAPE) is None


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_probe_finds_a_kernel_that_is_off_by_one(shift: int, kernel: Callable[..., None]) -> None:
    kernel(lambda *args, **options: documented(*args, **options, shift=shift).nan_to_num())
    assert "from SDPA" in (attention.reason_against(CPU, torch.bfloat16, SHAPE) or "")


def test_the_probe_finds_one_wrong_token(kernel: Callable[..., None]) -> None:
    def wrong(*args: Any, **options: Any) -> Tensor:
        output = documented(*args, **options)
        return output.index_fill(0, torch.tensor([200]), 1.0)

    kernel(wrong)
    assert "from SDPA" in (attention.reason_against(CPU, torch.bfloat16, SHAPE) or "")


def test_the_probe_finds_a_kernel_whose_gradient_is_nan(kernel: Callable[..., None]) -> None:
    # the square root's slope at 0 is infinite
    kernel(lambda *args, **options: documented(*args, **options) + 0 * (args[0] - args[0]).sqrt())
    assert "nan from SDPA" in (attention.reason_against(CPU, torch.bfloat16, SHAPE) or "")


def test_the_reason_names_what_a_kernel_raised_and_precisions_without_one() -> None:
    # torch's own kernel, without a GPU
    assert (attention.reason_against(CPU, torch.bfloat16, SHAPE) or "").startswith("NotImplementedError: ")
    assert attention.reason_against(CPU, torch.float32, SHAPE) == "there is none for torch.float32"


def test_the_probe_leaves_random_numbers_and_gradient_mode_alone(kernel: Callable[..., None]) -> None:
    kernel(documented)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert attention.reason_against(CPU, torch.bfloat16, SHAPE) is None
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())
