"""Policy and suite -> accuracy, whole and by category, and every completion with both its grades.

pass@1 is the mean over problems of the share of right completions; avg@k is the same number at k samples, pass@k the
unbiased estimate that any of k completions is right. A completion that could not be graded counts as not right and is
counted in `ungraded`. What else is said of completions (boxed, repetition, reflection, code) is in `tasks/measures.py`.
"""

from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from statistics import fmean

from oneshot.errors import DataError
from oneshot.policy.policy import Policy, decode
from oneshot.policy.world import World
from oneshot.rollout.engine import Completion, Engine, PromptRequest, Sampling
from oneshot.tasks import prompts
from oneshot.tasks.benchmarks import Suite
from oneshot.tasks.grading import Grader
from oneshot.tasks.measures import category_key, measures, pass_at_k
from oneshot.tasks.prompts import Shot
from oneshot.training.metrics import EvaluatedCompletion, Evaluation


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
    """Samples, grades and counts. The random table depends on seed, suite, problem and sample, not on the step.

    Of several processes each takes a share of the problems, and all get the whole.
    """
    stream = int(suite.digest[:8], 16)
    mine = world.share(list(enumerate(suite.problems)))
    requests = [
        PromptRequest(
            prompt_ids=tuple(
                prompts.encode(
                    problem.prompt,
                    suffix=suite.suffix,
                    template=suite.template,
                    shots=shots,
                    tokenizer=policy.tokenizer,
                )
            ),
            row_keys=tuple((seed, stream, index, sample) for sample in range(suite.samples)),
        )
        for index, problem in mine
    ]
    asked = [
        (index, problem, completion, decode(policy, completion.token_ids))
        for (index, problem), completions in zip(mine, _complete(policy, suite, requests, engine), strict=True)
        for completion in completions
    ]
    grades = grader.grade_all((text, problem.answer) for _, problem, _, text in asked)
    found = world.gather(
        (
            index,
            EvaluatedCompletion(
                problem_id=problem.id,
                category=problem.category,
                level=problem.level,
                problem=problem.prompt,
                answer=problem.answer,
                completion=text,
                strict=grade.strict,
                lenient=grade.lenient,
                reason=grade.reason,
                num_tokens=len(completion.token_ids),
                truncated=completion.truncated,
            ),
        )
        for (index, problem, completion, text), grade in zip(asked, grades, strict=True)
    )
    records = [record for _, record in sorted(found, key=itemgetter(0))]
    return Evaluation(
        suite=suite.name,
        digest=suite.digest,
        step=step,
        metrics={f"eval/{suite.name}/{name}": value for name, value in summary(records, samples=suite.samples).items()},
        records=tuple(records),
    )


def _complete(
    policy: Policy, suite: Suite, requests: Sequence[PromptRequest], engine: Engine
) -> list[list[Completion]]:
    """Completions of each request, in their order.

    A prompt that leaves less than `max_tokens` of the model's positions gets what it leaves, as vLLM gives it.

    Raises:
        DataError: a prompt leaves nothing.
    """
    if not requests:  # more processes than problems
        return []
    room = [policy.max_positions - len(request.prompt_ids) for request in requests]
    if min(room) < 1:
        raise DataError(
            f"eval.suites.{suite.name}: a prompt of {len(requests[room.index(min(room))].prompt_ids)} tokens is longer "
            f"than the model's {policy.max_positions} positions; use another suite or model"
        )
    found: dict[int, list[Completion]] = {}
    limits = [min(suite.max_tokens, left) for left in room]
    for limit in sorted(set(limits)):
        mine = [index for index, one in enumerate(limits) if one == limit]
        sampling = Sampling(temperature=suite.temperature, max_tokens=limit)
        completions = engine.generate(policy, [requests[index] for index in mine], sampling)
        found |= dict(zip(mine, completions, strict=True))
    return [found[index] for index in range(len(requests))]


def summary(records: Sequence[EvaluatedCompletion], *, samples: int) -> dict[str, float]:
    """Counts over an evaluation's completions, `samples` of each problem side by side."""
    right = [record.strict is True for record in records]
    metrics = {
        "pass_at_1": fmean(right),
        "pass_at_1_lenient": fmean(record.lenient is True for record in records),
        "truncated": fmean(record.truncated for record in records),
        "length_mean": fmean(record.num_tokens for record in records),
        "ungraded": float(sum(record.strict is None or record.lenient is None for record in records)),
        **measures([record.completion for record in records]),
    }
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
    for part, those in sorted(by_part.items()):
        metrics[f"{part}/pass_at_1"] = fmean(those)
    return metrics
