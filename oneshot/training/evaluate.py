"""Policy and suite -> accuracy, overall and by category, and every completion with both its grades.

pass@1 is the mean over problems of the share of right completions. avg@k is the same number at k samples. pass@k is the
unbiased estimate that any of k completions is right. A completion that could not be graded counts as wrong, and is
counted in `ungraded`. Further measures of completions (boxed, repetition, reflection, code) are in `tasks/measures.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from statistics import fmean
from typing import TypeVar

from oneshot.config.evaluation import GRADERS, GraderName, ThinkingConfig, grader_label
from oneshot.errors import DataError, TrialError
from oneshot.policy.policy import Policy, check_ids, decode
from oneshot.policy.world import World
from oneshot.rollout.budget import Forced, force, rule_of
from oneshot.rollout.engine import Completion, Engine, NotFiniteError, PromptRequest, Sampling
from oneshot.rollout.stops import cut_at_stop
from oneshot.tasks import prompts
from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.benchmarks import Suite
from oneshot.tasks.grading import Grade, Grader
from oneshot.tasks.measures import category_key, measures, pass_at_k
from oneshot.tasks.problems import Problem
from oneshot.tasks.prompts import Shot
from oneshot.training.metrics import EvaluatedCompletion, Evaluation, Forcing

Graded = TypeVar("Graded")
AnyCompletion = TypeVar("AnyCompletion", bound=Completion | Forced)


def evaluate(
    policy: Policy,
    suite: Suite,
    *,
    engine: Engine,
    grader: Grader,
    shots: Sequence[Shot] = (),
    seed: int,
    step: int,
    world: World,
) -> Evaluation:
    """Sample, grade and measure. The random table depends on seed, suite, problem and sample, not on the step.

    Each process evaluates a share of the problems; all processes return the whole.
    """
    stream = int(suite.digest[:8], 16)
    share = world.share(list(enumerate(suite.problems)))
    asked = [prompt_ids(policy, suite, problem, shots=shots) for _, problem in share]
    for ids in asked:
        check_ids(policy, ids)
    requests = [
        PromptRequest(
            prompt_ids=ids,
            row_keys=tuple((seed, stream, index, sample) for sample in range(suite.samples)),
            max_tokens=limit,
        )
        for (index, _), ids, limit in zip(share, asked, _limits(policy, suite, asked), strict=True)
    ]

    def grade(request: int, completion: Completion | Forced) -> EvaluatedCompletion:
        problem, text = share[request][1], _text(policy, suite, completion)
        grade = grader.grade(text, problem.answer, graders=suite.graders)
        return _record(problem, completion, text, grade, forcing=_forcing(policy, completion))

    complete = partial(_complete, policy, suite, requests, engine)
    graded: dict[tuple[int, int], EvaluatedCompletion] = {}
    try:
        if world.reports:
            graded = grade_each(complete, grade, grader=grader)
        else:
            complete(lambda *_: None)
    except NotFiniteError as error:
        raise TrialError(f"{error}, in the evaluation of {suite.name} after step {step}") from error
    indexed = world.gather((share[request][0], record) for (request, _), record in sorted(graded.items()))
    records = [record for _, record in sorted(indexed, key=itemgetter(0))]
    return Evaluation(
        suite=suite.name,
        digest=suite.digest,
        step=step,
        metrics={
            f"eval/{suite.name}/{name}": value
            for name, value in summary(
                records, samples=suite.samples, graders=suite.graders, thinking=suite.thinking
            ).items()
        },
        records=tuple(records),
    )


def prompt_ids(policy: Policy, suite: Suite, problem: Problem, *, shots: Sequence[Shot]) -> tuple[int, ...]:
    """Return the token ids of a suite's prompt."""
    return tuple(
        prompts.encode(
            problem.prompt, suffix=suite.suffix, template=suite.template, shots=shots, tokenizer=policy.tokenizer
        )
    )


def grade_each(
    generate: Callable[[Callable[[int, int, AnyCompletion], None]], object],
    grade: Callable[[int, AnyCompletion], Graded],
    *,
    grader: Grader,
) -> dict[tuple[int, int], Graded]:
    """Grade each completion that `generate` hands over, while others are still decoded; return them by place."""
    futures: dict[tuple[int, int], Future[Graded]] = {}
    # each thread waits for one of the grader's processes
    with ThreadPoolExecutor(max_workers=grader.num_children) as pool:

        def ended(request: int, row: int, completion: AnyCompletion) -> None:
            futures[request, row] = pool.submit(grade, request, completion)

        generate(ended)
    return {place: future.result() for place, future in futures.items()}


def _text(policy: Policy, suite: Suite, completion: Completion | Forced) -> str:
    """Return the text that is graded."""
    if isinstance(completion, Completion) and completion.stopped:
        return cut_at_stop(policy.tokenizer, completion.token_ids, suite.stop)
    return decode(policy, completion.token_ids)


def _forcing(policy: Policy, completion: Completion | Forced) -> Forcing | None:
    """Return how thinking went, or None without a budget."""
    if isinstance(completion, Completion):
        return None
    answer = decode(policy, completion.answer_ids)
    return Forcing(
        thinking_tokens=completion.thinking_tokens,
        waits=completion.waits,
        forced_end=completion.forced_end,
        no_final_answer=not answer.strip() or (completion.truncated and extract_boxed(answer) is None),
    )


def _record(
    problem: Problem, completion: Completion | Forced, text: str, grade: Grade, *, forcing: Forcing | None
) -> EvaluatedCompletion:
    return EvaluatedCompletion(
        problem_id=problem.id,
        category=problem.category,
        level=problem.level,
        family=problem.family,
        problem=problem.prompt,
        answer=problem.answer,
        completion=text,
        strict=grade.strict,
        lenient=grade.lenient,
        reason=grade.reason,
        released=grade.released,
        others=grade.others,
        num_tokens=len(completion.token_ids),
        truncated=completion.truncated,
        forcing=forcing,
    )


def longest_completion(policy: Policy, suite: Suite) -> int:
    """Return the largest number of tokens after a prompt, appended ones included."""
    if suite.thinking is None:
        return suite.max_tokens
    return suite.thinking.max_tokens + rule_of(policy, suite.thinking).num_reserved


def _limits(policy: Policy, suite: Suite, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return for each prompt the largest number of tokens in its completions, or in their thinking if it has a budget.

    If a prompt leaves fewer of the model's positions than the suite allows, these are the limit, as in vLLM.

    Raises DataError: a prompt leaves no position.
    """
    most, longest = policy.max_positions, max(map(len, prompts), default=0)
    if suite.thinking is None:
        limit, reserved, use, hint = suite.max_tokens, 0, "an answer", "use another suite or model"
    else:
        limit, reserved = suite.thinking.max_tokens, rule_of(policy, suite.thinking).num_reserved
        use = f"thinking, since {reserved} are kept for the answer"
        hint = "lower thinking.answer_tokens, or use another suite or model"
    if longest + reserved >= most:
        raise DataError(
            f"eval.suites.{suite.name}: a prompt of {longest} tokens leaves none of the model's {most} positions for "
            f"{use}; {hint}"
        )
    return [min(limit, most - reserved - len(prompt)) for prompt in prompts]


def _complete(
    policy: Policy,
    suite: Suite,
    requests: Sequence[PromptRequest],
    engine: Engine,
    ended: Callable[[int, int, Completion | Forced], None],
) -> None:
    """Call `ended` with each completion of each request."""
    if not requests:  # more processes than problems
        return
    sampling = Sampling(temperature=suite.temperature, top_p=suite.top_p, stop=suite.stop)
    if suite.thinking is None:
        engine.generate(policy, requests, sampling, ended)
    else:
        force(engine, policy, requests, sampling, suite.thinking, ended)


def summary(
    records: Sequence[EvaluatedCompletion],
    *,
    samples: int,
    graders: Sequence[GraderName] = ("strict",),
    thinking: ThinkingConfig | None = None,
) -> dict[str, float]:
    """Return the metrics of an evaluation's completions; the `samples` of a problem are adjacent."""
    right = [record.strict is True for record in records]
    metrics = {
        "pass_at_1": fmean(right),
        "pass_at_1_lenient": fmean(record.lenient is True for record in records),
        "truncated": fmean(record.truncated for record in records),
        "length_mean": fmean(record.num_tokens for record in records),
        "ungraded": float(sum(record.strict is None or record.lenient is None for record in records)),
        **measures([record.completion for record in records]),
    }
    if "released" in graders:
        released = [record.released is True for record in records]
        metrics["pass_at_1_released"] = fmean(released)
        metrics["graders_disagree"] = fmean(one != other for one, other in zip(right, released, strict=True))
    for name in graders:
        if name not in GRADERS:
            metrics[f"pass_at_1_{grader_label(name)}"] = fmean(record.others.get(name) is True for record in records)
    if thinking is not None:
        metrics |= forcing_measures([record.forcing for record in records if record.forcing is not None], thinking)
    if samples > 1:
        metrics["avg_at_k"] = metrics["pass_at_1"]
        num_right = [sum(right[start : start + samples]) for start in range(0, len(right), samples)]
        metrics["pass_at_k"] = fmean(pass_at_k(samples, num, samples) for num in num_right)
        k = 2
        while k < samples:
            metrics[f"pass_at_{k}"] = fmean(pass_at_k(samples, num, k) for num in num_right)
            k *= 2
    by_part: dict[str, list[bool]] = defaultdict(list)
    for record, is_right in zip(records, right, strict=True):
        if record.category:
            by_part[category_key(record.category)].append(is_right)
        if record.level:
            by_part[f"level {category_key(record.level.lower().removeprefix('level '))}"].append(is_right)
    for part, verdicts in sorted(by_part.items()):
        metrics[f"{part}/pass_at_1"] = fmean(verdicts)
    return metrics


def forcing_measures(forced: Sequence[Forcing], thinking: ThinkingConfig) -> dict[str, float]:
    """Return the means over a suite's completions of how its budget of thinking was kept.

    `control` is the share within the bounds: at most `max_tokens`, and `min_waits` waits or a forced end. Source: s1,
    arXiv 2501.19393, section 3.2.
    """
    return {
        "thinking_tokens": fmean(each.thinking_tokens for each in forced),
        "forced_ends": fmean(each.forced_end for each in forced),
        "waits": fmean(each.waits for each in forced),
        "no_final_answer": fmean(each.no_final_answer for each in forced),
        "control": fmean(
            each.thinking_tokens <= thinking.max_tokens and (each.waits >= thinking.min_waits or each.forced_end)
            for each in forced
        ),
    }
