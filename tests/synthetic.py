"""A sweep's text and a rule for what is right -> its store as a run would have left it, without a model.

What is written goes through the store's own functions, and an evaluation's metrics through the engine's own counting.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from builders import begin_attempt

from oneshot.config.evaluation import ThinkingConfig
from oneshot.config.file import load
from oneshot.plan.frozen import FILE as FROZEN
from oneshot.plan.frozen import Frozen, Planned, frozen, record, recorded_digest
from oneshot.plan.pinned import PinnedSweep
from oneshot.plan.plan import Plan, make_plan
from oneshot.plan.trainings import Training, trainings
from oneshot.plan.trial import Trial
from oneshot.store.folder import now_ms
from oneshot.store.records import SAMPLED_COLUMNS, Row
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder
from oneshot.tasks.benchmarks import Suite, due_evaluations, load_suites
from oneshot.tasks.problems import Problem
from oneshot.training.evaluate import summary
from oneshot.training.metrics import EvaluatedCompletion, Forcing
from oneshot.trial.environment import describe
from oneshot.trial.recorder import evaluation_table

Accuracy = Callable[[Trial, int, int], float]
"""(trial, step, index of the problem) -> whether it is right, or with what probability."""
Reward = Callable[[Trial, int], float]
"""(trial, step) -> mean reward of training."""

HOSTILE = "<script>document.title = 'taken'</script> <b>bold</b> & \"quoted\" "
"""How the completion of every evaluation's first problem begins."""
STEP_MS = 4_000
NUM_SAMPLED = 8

FROZEN_H = 1.0  # hours before now at which `put_on_record` freezes

SMALL = """\
version: 1
name: small
question: Does one example lift held-out arithmetic, and is it more than format?
trial:
  model.path: tiny:qwen2
  examples: ["arithmetic:47+38"]
  prompt: {template: plain, train_suffix: ""}
  rollout: {num_groups: 4, group_size: 4, temperature: 1.0, max_tokens: 56}
  train.num_steps: 12
  eval: {every_steps: 4, suites: {arithmetic: {num_problems: 20}}}
axes:
  model:
    tiny-qwen2: {set: {model.path: "tiny:qwen2"}}
    tiny-llama: {set: {model.path: "tiny:llama"}}
  arm:
    outcome: {}
    format: {set: {reward.kind: format}}
seeds: [0, 1, 2]
"""
"""Two models, two arms, three seeds; four evaluations of 60 problems each."""


def lift(trial: Trial, step: int, problem: int) -> float:
    """What a working recipe looks like: all begin at 0.3, and the outcome arm ends at 0.8, the others at 0.4."""
    last = 0.8 if trial.cell.get("arm", "outcome") == "outcome" else 0.4
    return 0.3 + (last - 0.3) * step / trial.config.train.num_steps


def make_store(
    folder: Path,
    text: str = SMALL,
    *,
    accuracy: Accuracy = lift,
    seed: int = 0,
    missing: Collection[str] = (),
    failed: Collection[str] = (),
    reward: Reward | None = None,
    facts: Callable[[Trial], Mapping[str, Any]] = lambda trial: {},
) -> tuple[PinnedSweep, Plan, Store]:
    """Writes `folder/sweep.yaml` and the store `folder/runs`, in which every trial is finished.

    Trials that share a training are what `accuracy` says of the first. `missing`, `failed`: labels of trials that have
    not begun, or broke after half of their steps. `reward`: in place of one that rises with some noise. `facts`: more
    of what an attempt notes of where it runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(text)
    sweep = load(folder / "sweep.yaml")
    plan = make_plan(sweep)
    store = Store(str(folder / "runs"))
    begun = store.sweep(plan.name)
    begun.write("sweep.yaml", text)
    begun.write_json("settings.json", {})
    begun.write_json("plan.json", plan.to_json())
    digest = recorded_digest(begun)
    for training in trainings(plan.trials):
        if training.label not in missing:
            first = training.trials[0]
            _write(
                training,
                store.trial(training.key),
                {"sweep": plan.name, "claims": digest, **facts(first)},
                accuracy,
                None if reward is None else partial(reward, first),
                seed,
                is_failed=training.label in failed,
            )
    return sweep, plan, store


def put_on_record(folder: Path, text: str) -> Frozen:
    """Writes `folder/sweep.yaml`, and freezes it in the store `folder/runs` as a run does that began an hour ago."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(text)
    sweep = load(folder / "sweep.yaml")
    planned = Planned.of(sweep.config, make_plan(sweep))
    record_folder = Store(str(folder / "runs")).sweep(sweep.config.name)
    record_folder.write_json(FROZEN, record(planned, now_ms() - int(FROZEN_H * 3_600_000)))
    return frozen(record_folder, planned)


def _write(
    training: Training,
    folder: TrialFolder,
    noted: Mapping[str, Any],
    accuracy: Accuracy,
    reward: Callable[[int], float] | None,
    seed: int,
    *,
    is_failed: bool,
) -> None:
    draw = random.Random(f"{seed} {training.label}")
    folder.write_json("trial.json", describe(training))
    started_ms = now_ms() - STEP_MS * training.config.train.num_steps
    facts = {"started_ms": started_ms, "gpu": "", "env_digest": "0" * 16, "host": "synthetic", "pid": 1}
    attempt = begin_attempt(folder, {**facts, **noted})
    due = due_evaluations(training.config)
    baseline: dict[str, float] = {}
    rows = []
    for step in range(training.config.train.num_steps // (2 if is_failed else 1) + 1):
        metrics = _train_metrics(step, training.config.train.num_steps, draw) if step else {}
        if step and reward is not None:
            metrics["reward/mean"] = reward(step)
        for suite in load_suites(training.config):
            if (suite.digest, step) not in due:
                continue
            found = _write_evaluation(training.trials[0], folder, suite, step, accuracy, draw)
            baseline.setdefault(suite.name, found["pass_at_1"])
            if training.config.eval.at_start:
                found["gain"] = found["pass_at_1"] - baseline[suite.name]
            folder.write_evaluation(suite.name, suite.digest, step, found)
            metrics |= {f"eval/{suite.name}/{name}": value for name, value in found.items()}
            if step:
                _write_sampled(folder, step, draw)
        if metrics:
            rows.append(Row(step=step, time_ms=started_ms + step * STEP_MS, metrics=metrics))
    if rows:
        folder.write_segment(attempt, rows)
    if is_failed:
        reason = "TrialError: the loss is not finite"
        folder.end_attempt(attempt, "failed", kind="nan", reason=reason, traceback=f"Traceback\n{reason}\n")
    else:
        folder.end_attempt(attempt, "finished")


def _train_metrics(step: int, num_steps: int, draw: random.Random) -> dict[str, float]:
    reward = min(1.0, max(0.0, 0.2 + 0.7 * step / num_steps + draw.gauss(0, 0.05)))
    rollout_s, update_s = draw.uniform(1.0, 1.2), draw.uniform(0.8, 1.0)
    return {
        "reward/mean": reward,
        "reward/accuracy": reward,
        "reward/frac_groups_zero_std": reward**4,
        "reward/ungraded": 0.0,
        "rollout/entropy": 0.9 - 0.5 * step / num_steps + draw.gauss(0, 0.02),
        "rollout/length_mean": 24.0 + draw.gauss(0, 2),
        "rollout/truncated": 0.0,
        "rollout/empty": 0.0,
        "rollout/boxed": 0.5 + 0.5 * reward,
        "loss/total": draw.gauss(0, 0.01),
        "optim/grad_norm": draw.uniform(0.2, 0.6),
        "perf/step_s": rollout_s + update_s,
        "perf/rollout_s": rollout_s,
        "perf/update_s": update_s,
        "perf/tokens_per_s": 384 / (rollout_s + update_s),
        "perf/efficiency": 0.4,
    }


def _write_evaluation(
    trial: Trial, folder: TrialFolder, suite: Suite, step: int, accuracy: Accuracy, draw: random.Random
) -> dict[str, float]:
    records = [
        _record(problem, draw, is_right=draw.random() < accuracy(trial, step, index), is_first=index == sample == 0)
        for index, problem in enumerate(suite.problems)
        for sample in range(suite.samples)
    ]
    if suite.thinking is not None:
        records = [replace(each, forcing=_forcing(suite.thinking, draw)) for each in records]
    folder.write_completions(
        f"eval-{suite.digest}-{step}", *evaluation_table(records), suite=suite.name, digest=suite.digest, step=step
    )
    return summary(records, samples=suite.samples, graders=suite.graders, thinking=suite.thinking)


def _forcing(thinking: ThinkingConfig, draw: random.Random) -> Forcing:
    used = draw.randint(thinking.max_tokens // 2, thinking.max_tokens)
    is_forced = used == thinking.max_tokens
    return Forcing(
        thinking_tokens=used, waits=thinking.min_waits, forced_end=is_forced, no_final_answer=draw.random() < 0.1
    )


def _record(problem: Problem, draw: random.Random, *, is_right: bool, is_first: bool) -> EvaluatedCompletion:
    answer = problem.answer if is_right else str(draw.randrange(1000, 1010))  # no answer of arithmetic is this large
    completion = f"{HOSTILE if is_first else ''}{problem.prompt} Let us see. The answer is \\boxed{{{answer}}}."
    return EvaluatedCompletion(
        problem_id=problem.id,
        category=problem.category,
        level=problem.level,
        problem=problem.prompt,
        answer=problem.answer,
        family=problem.family,
        completion=completion,
        strict=is_right,
        lenient=is_right or draw.random() < 0.05,
        released=is_right,
        reason="",
        num_tokens=len(completion) // 2,
        truncated=False,
    )


def _write_sampled(folder: TrialFolder, step: int, draw: random.Random) -> None:
    answers = [draw.choice(["85", "75"]) for _ in range(NUM_SAMPLED)]
    rows = [
        ["arithmetic:47+38", f"47+38 is \\boxed{{{answer}}}.", float(answer == "85"), 12, False] for answer in answers
    ]
    folder.write_completions(f"step-{step:06d}", SAMPLED_COLUMNS, rows)
