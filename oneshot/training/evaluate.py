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

from oneshot.config.evaluation import GraderName
from oneshot.errors import DataError, TrialError
from oneshot.policy.policy import Policy, check_ids, decode
from oneshot.policy.world import World
from oneshot.rollout.engine import Completion, Ended, Engine, NotFiniteError, PromptRequest, Sampling, ignore
from oneshot.tasks import prompts
from oneshot.tasks.benchmarks import Suite
from oneshot.tasks.grading import Grade, Grader
from oneshot.tasks.measures import category_key, measures, pass_at_k
from oneshot.tasks.problems import Problem
from oneshot.tasks.prompts import Shot
from oneshot.training.metrics import EvaluatedCompletion, Evaluation

Graded = TypeVar("Graded")


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
    requests = [
        PromptRequest(
            prompt_ids=prompt_ids(policy, suite, problem, shots=shots),
            row_keys=tuple((seed, stream, index, sample) for sample in range(suite.samples)),
        )
        for index, problem in share
    ]

    for request in requests:
        check_ids(policy, request.prompt_ids)

    def grade(request: int, completion: Completion) -> EvaluatedCompletion:
        problem, text = share[request][1], decode(policy, completion.token_ids)
        return _record(problem, completion, text, grader.grade(text, problem.answer, graders=suite.graders))

    complete = partial(_complete, policy, suite, requests, engine)
    graded: dict[tuple[int, int], EvaluatedCompletion] = {}
    try:
        if world.reports:
            graded = grade_each(complete, grade, grader=grader)
        else:
            complete(ignore)
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
            for name, value in summary(records, samples=suite.samples, graders=suite.graders).items()
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
    generate: Callable[[Ended], object], grade: Callable[[int, Completion], Graded], *, grader: Grader
) -> dict[tuple[int, int], Graded]:
    """Grade each completion that `generate` hands over, while others are still decoded; return them by place."""
    futures: dict[tuple[int, int], Future[Graded]] = {}
    # each thread waits for one of the grader's processes
    with ThreadPoolExecutor(max_workers=grader.num_children) as pool:

        def ended(request: int, row: int, completion: Completion) -> None:
            futures[request, row] = pool.submit(grade, request, completion)

        generate(ended)
    return {place: future.result() for place, future in futures.items()}


def _record(problem: Problem, completion: Completion, text: str, grade: Grade) -> EvaluatedCompletion:
    return EvaluatedCompletion(
        problem_id=problem.id,
        category=problem.category,
        level=problem.level,
        problem=problem.prompt,
        answer=problem.answer,
        completion=text,
        strict=grade.strict,
        lenient=grade.lenient,
        reason=grade.reason,
        released=grade.released,
        num_tokens=len(completion.token_ids),
        truncated=completion.truncated,
    )


def _complete(policy: Policy, suite: Suite, requests: Sequence[PromptRequest], engine: Engine, ended: Ended) -> None:
    """Call `ended` with each completion of each request.

    If a prompt leaves fewer than `max_tokens` of the model's positions, these limit its completions, as in vLLM.

    Raises DataError: a prompt leaves no position.
    """
    if not requests:  # more processes than problems
        return
    longest = max(len(request.prompt_ids) for request in requests)
    if longest >= policy.max_positions:
        raise DataError(
            f"eval.suites.{suite.name}: a prompt of {longest} tokens leaves none of the model's "
            f"{policy.max_positions} positions for an answer; use another suite or model"
        )
    limits = [min(suite.max_tokens, policy.max_positions - len(request.prompt_ids)) for request in requests]
    for limit in sorted(set(limits)):
        indices = [index for index in range(len(requests)) if limits[index] == limit]
        sampling = Sampling(temperature=suite.temperature, max_tokens=limit)

        def one_ended(place: int, row: int, completion: Completion, indices: list[int] = indices) -> None:
            ended(indices[place], row, completion)

        engine.generate(policy, [requests[index] for index in indices], sampling, one_ended)


def summary(
    records: Sequence[EvaluatedCompletion], *, samples: int, graders: Sequence[GraderName] = ("strict",)
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
