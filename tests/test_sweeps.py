"""The shipped sweeps: each plans where no data are, and asks what docs/sweeps.md says it asks."""

from pathlib import Path

import pytest
from catalog import catalog, planned
from conftest import PROJECT

from oneshot.tasks.examples import aliases, identify
from oneshot.tasks.sets import val_rows

FILES = sorted((PROJECT / "sweeps").glob("*.yaml"))
NUM_CELLS = {
    "hpo-tiny": 4,
    "two-processes": 4,
    "hpo_optuna": 4,
    "main_table8": 6,
    "fewshot_ladder": 12,
    "example_panel_table3": 20,
    "loss_ablation_table5": 9,
    "label_table5": 4,
    "entropy_temperature": 15,
    "entropy_only_table6": 3,
    "format_table14": 8,
    "prompt_simplify_table18": 3,
    "models_table4": 23,
    "distill_table12": 4,
    "label_noise_table17": 6,
    "icl_table16": 8,
    "baseline_prompting": 48,
    "spurious_controls": 28,
    "offpolicy_clip": 16,
    "offpolicy_algorithms": 12,
    "fp16_mismatch": 4,
    "grouping": 10,
    "psr_nsr": 8,
    "seeds_ci": 4,  # three, and the base model
    "selector_bench": 12,
    "histvar_collect": 1,
    "saturation": 6,
    "smoke_single_gpu": 1,
    "evening": 6,
    "label_free": 16,
    "one_shot_em": 3,
    "lora_ranks": 19,
    "two_grpo": 4,
    "dr_grpo": 6,
    "bare_prompts": 18,
    "sober": 2,
    "staged_first": 1,
    "staged": 2,
    "shelf-tiny": 23,
    "smollm2_study": 9,
    "transfer": 6,
    "laptop": 2,
    "laptop-sft": 3,
    "less_is_more": 14,
    "less-is-more-tiny": 5,
    "budget-tiny": 5,
    "s1": 36,
    "limo": 9,
    "cft_one_shot": 4,
    "miniature-collect": 1,
    "miniature": 21,
    "quickstart": 6,
}
NUM_SEEDS = {"main_table8": 10, "seeds_ci": 10, "two_grpo": 10, "one_shot_em": 20} | dict.fromkeys(
    ("quickstart", "miniature", "laptop", "laptop-sft", "less-is-more-tiny", "budget-tiny", "s1", "limo", "shelf-tiny"),
    3,
)
NUM_SEEDS |= dict.fromkeys(
    (
        "histvar_collect",
        "miniature-collect",
        "smoke_single_gpu",
        "two-processes",
        "icl_table16",
        "baseline_prompting",
        "bare_prompts",
        "sober",
    ),
    1,
)


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHOT_DATA", str(tmp_path))
    monkeypatch.chdir(PROJECT)


NUM_SEARCH_TRIALS = {"hpo-tiny": 2 * 12, "hpo_optuna": 40}
"""Studies x points x seeds."""


def test_every_sweep_is_counted_here() -> None:
    assert {path.stem for path in FILES} == set(NUM_CELLS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_sweep_plans(path: Path) -> None:
    sweep, plan = planned(path)
    assert sweep.config.name == path.stem
    assert plan.num_cells == NUM_CELLS[path.stem]
    assert len(plan.grid) == plan.num_cells * NUM_SEEDS.get(path.stem, 5)
    assert len(plan.trials) - len(plan.grid) == NUM_SEARCH_TRIALS.get(path.stem, 0)
    assert plan.gpu_hours is not None
    # the cells of offpolicy_clip at one update are there to show that the clip is nothing then
    meant = ("the ratio is always 1",) if path.stem == "offpolicy_clip" else ()
    known = ("keys are provisional", "seeds repeat one training")
    odd = [warning for warning in plan.warnings if not any(words in warning for words in (*known, *meant))]
    assert odd == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_first_line_is_its_question(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    question = planned(path)[0].config.question
    assert first == f"# {question}"
    assert first.endswith("?")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sweep_on_gpus_knows_its_hours_and_fits_its_gpus(path: Path) -> None:
    for trial in planned(path)[1].trials:
        if trial.resources.gpus:
            assert trial.cost.gpu_hours is not None
            assert trial.placement is not None
            assert trial.placement.fits, trial.label


def test_the_papers_larger_models_are_spread_as_they_need() -> None:
    # 7B: weights and optimiser alone are 16 bytes a parameter, 113 GiB; 3B with its reference: 73 GiB of 71
    found = {}
    for trial in planned(PROJECT / "sweeps" / "models_table4.yaml")[1].trials:
        assert trial.placement is not None
        found[trial.cell["model"]] = (trial.resources.gpus, trial.placement.strategy)
    assert found["math-7b"] == (4, "fsdp")
    assert found["llama-3.2-3b"] == (2, "fsdp")
    assert found["qwen2.5-1.5b"] == (1, "single")
    distilled = planned(PROJECT / "sweeps" / "distill_table12.yaml")[1].trials[0]
    assert distilled.resources.gpus == 1


def test_the_arms_of_less_is_more_cost_equal_gpu_hours() -> None:
    hours: dict[str, set[float]] = {}
    for trial in planned(PROJECT / "sweeps" / "less_is_more.yaml")[1].trials:
        assert trial.cost.gpu_hours is not None
        hours.setdefault(trial.cell["model"], set()).add(trial.cost.gpu_hours)
    assert all(max(of_model) < 1.1 * min(of_model) for of_model in hours.values())


@pytest.mark.slow
def test_val_holds_what_no_alias_and_no_shipped_sweep_names() -> None:
    held_out = {f"dsr_sub:{row}" for row in val_rows()}
    assert len(held_out) == 200
    assert not held_out & {str(alias["row"]) for alias in aliases().values()}
    lists = {}
    for path in FILES:
        trials = planned(path)[1].trials
        lists |= {repr(t.config.examples): t.config.examples for t in trials if "history" not in (t.waits_for or "")}
    for examples in lists.values():
        named = [example for example in examples if example != "dsr_sub"]
        whole = [e for e in named if getattr(e, "set", "") == "dsr_sub" and getattr(e, "random", 1) is None]
        assert not held_out & set(identify([example for example in named if example not in whole]).ids), examples


def test_the_committed_list_of_sweeps_is_the_generated_one() -> None:
    committed = (PROJECT / "docs" / "sweeps.md").read_text()
    assert catalog(FILES) == committed, "run `make docs`"
