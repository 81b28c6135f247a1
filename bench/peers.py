"""Other libraries on our weights: TRL's GRPO steps in seconds, and the tokens of transformers' `generate`."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

NUM_WARMUPS = 1


def trl_steps_s(
    folder: Path, prompt: str, *, rows: int, max_tokens: int, kl_coef: float, lr: float, steps: int, on_gpu: bool
) -> tuple[list[float], dict[str, Any]]:
    """Train on completions of full length; return seconds from one step's end to the next one's, and the settings."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    # on a GPU the logits of all rows at once would not fit
    micro_batch = min(rows, 16) if on_gpu else rows
    settings = {
        "per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": rows // micro_batch,
        "num_generations": 8, "max_completion_length": max_tokens, "temperature": 1.0, "beta": kl_coef,
        "learning_rate": lr, "lr_scheduler_type": "constant", "gradient_checkpointing": on_gpu, "bf16": on_gpu,
        "use_cpu": not on_gpu, "max_steps": NUM_WARMUPS + steps, "generation_kwargs": {"min_new_tokens": max_tokens},
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "seed": 0,
        "dataloader_pin_memory": False, "disable_tqdm": True,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(output_dir=str(folder / "trl"), **settings),
        train_dataset=Dataset.from_dict({"prompt": [prompt] * rows}),
        callbacks=[Clock()],
    )
    trainer.train()
    return [after - before for before, after in pairwise(ends)][NUM_WARMUPS:], settings


def generated_tokens(
    policy: Any, prompt_ids: tuple[int, ...], *, rows: int, max_tokens: int, temperature: float, seed: int
) -> int:
    """Sample by plain `generate`; return the tokens of all completions. Without end tokens none ends early."""
    import torch

    torch.manual_seed(seed)
    ids = torch.tensor([prompt_ids], device=policy.device)
    ends = {"eos_token_id": list(policy.eos_ids)} if policy.eos_ids else {"min_new_tokens": max_tokens}
    with torch.no_grad():
        output = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
            num_return_sequences=rows, max_new_tokens=max_tokens, pad_token_id=policy.pad_id, **ends,
        )[:, ids.shape[1] :]  # fmt: skip
    has_ended = torch.isin(output, torch.tensor(policy.eos_ids or (-1,), device=policy.device)).cumsum(dim=1)
    return int((has_ended == 0).sum() + (has_ended.amax(dim=1) > 0).sum())
