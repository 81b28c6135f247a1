"""A trial -> the functions that its grading processes call, where its settings name them, and their digests."""

from collections.abc import Iterator

from oneshot.config.evaluation import GRADERS
from oneshot.config.trial import TrialConfig
from oneshot.tasks import foreign
from oneshot.tasks.grading import grader_call


def functions_of(config: TrialConfig) -> Iterator[tuple[str, str, foreign.Kind]]:
    """Yield path, name and kind of each reward and grader that is not ours."""
    for term, rule in config.reward.rules.items():
        if rule.call is not None:
            yield f"reward.terms.{term}.call" if term else "reward.call", rule.call, "rewards"
    if config.reward.grader not in GRADERS:
        yield "reward.grader", config.reward.grader, "graders"
    for name in config.eval.graders:
        if name not in GRADERS:
            yield "eval.graders", name, "graders"


def function_call(name: str, kind: foreign.Kind) -> str:
    """Return `package.module:name` of a reward or grader. Raises DataError: there is none of this name."""
    return grader_call(name) if kind == "graders" else foreign.resolve(name, kind)


def learning_code(config: TrialConfig) -> dict[str, str]:
    """Return the digest of each function that decides what a trial learns. Raises DataError: one is not here."""
    named = [(name, kind) for path, name, kind in functions_of(config) if path.startswith("reward.")]
    if config.train.method == "sft":  # only the grader chooses what is learned
        named = [(name, kind) for name, kind in named if kind == "graders"]
    calls = [function_call(name, kind) for name, kind in named]
    return {call: foreign.find(call).digest for call in calls}
