"""Histories of examples -> the order in which to try them.

The history of an example is its accuracy at each visit during training, in order. The paper ranks by the variance over
the visits of one run on the whole set (arXiv 2504.20571, equations 1 and 2). The released code uses numpy's `std` with
ddof 0, which gives the same order. If scores are equal, the example that is earlier in the set comes first; the
released code orders ties by the keys of a JSON file.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, pvariance

from oneshot.errors import DataError, UserError
from oneshot.tasks import foreign
from oneshot.text import read_text

RULES = ("answer_entropy", "historical_variance", "lim", "pass_rate", "pass_rate_variance", "random")
History = Mapping[str, Sequence[float]]  # example -> its accuracy at each visit; examples in the order of their set


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One example with its score. Higher scores come first."""

    example: str
    score: float
    variance: float
    std: float
    mean: float
    num_visits: int

    @property
    def index(self) -> int | None:
        """Return the example's row, or None if its set has no rows."""
        row = self.example.rpartition(":")[2]
        return int(row) if row.isdecimal() else None


def rank(
    histories: Sequence[History],
    *,
    by: str,
    seed: int = 0,
    band: tuple[float, float] = (0.0, 1.0),
    entropies: Sequence[Mapping[str, float]] = (),
) -> list[Ranked]:
    """Return the examples in the order to try them. With several histories (seeds) a score is the mean over them.

    `historical_variance`: variance of accuracy over visits. `lim`: alignment with the set's mean accuracy by visit
    (LIMR, arXiv 2502.11886, as released). `pass_rate`: only examples whose accuracy at the first visit is in `band`,
    ordered by distance from its middle. `pass_rate_variance`: p (1 - p), where p is the accuracy at the first visit.
    `answer_entropy`: entropy of the answers at the first visit (SGAC, arXiv 2605.01823), which `entropies` gives for
    each history, in nats. `random`: a seeded shuffle. Any other rule is a function of one example's accuracies, by its
    registered name or as `package.module:name`.

    Raises UserError: there is no history, the histories are of different examples, there is no such rule, or
    `answer_entropy` lacks an example's entropy.
    """
    if not histories or not histories[0]:
        raise UserError("the history is empty; a ranking needs at least one example")
    examples = list(histories[0])
    if any(set(history) != set(examples) for history in histories):
        raise UserError("the histories are of different examples; rank each by itself")
    if by == "answer_entropy":
        scores = _entropies(examples, entropies, num_histories=len(histories))
    else:
        scores = [_scores(history, by, seed, band) for history in histories]
    means = {e: fmean(score[e] for score in scores) for e in examples if all(e in score for score in scores)}
    visits = {e: [value for history in histories for value in history[e]] for e in means}
    variances = {e: fmean(pvariance(history[e]) for history in histories) for e in means}
    # sorted() is stable: equal scores stay in the order of the set
    return [
        Ranked(
            example=e,
            score=means[e],
            variance=variances[e],
            std=variances[e] ** 0.5,
            mean=fmean(visits[e]),
            num_visits=len(visits[e]),
        )
        for e in sorted(means, key=lambda e: -means[e])
    ]


def rule_call(by: str) -> str:
    """Return the function of a rule that is not ours. Raises DataError: there is no such rule."""
    return foreign.resolve(by, "rank_rules", built_in=RULES)


def check_rule(by: str) -> None:
    """Check that a ranking rule exists. Raises DataError: it does not; names the nearest."""
    if by not in RULES:
        foreign.find(rule_call(by))


def _called(history: History, call: str) -> dict[str, float]:
    """Return what a function scores each example. Raises DataError: a score is not a finite number."""
    scores = foreign.returned(call, [[list(values)] for values in history.values()])
    for example, score in zip(history, scores, strict=True):
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"{call}: returned {score!r:.80} for {example}, not a finite number")
    return {example: float(score) for example, score in zip(history, scores, strict=True)}


def _entropies(
    examples: Sequence[str], entropies: Sequence[Mapping[str, float]], *, num_histories: int
) -> list[dict[str, float]]:
    """Return each example's entropy in each history. Raises UserError: a history lacks some."""
    missing = (
        examples if len(entropies) < num_histories else [e for e in examples if any(e not in of for of in entropies)]
    )
    if missing:
        raise UserError(
            f"answer_entropy: the history has no entropies of answers for {len(missing)} of {len(examples)} examples, "
            f"such as {missing[0]}; files of accuracies and sweeps of older versions have none. Run the sweep that "
            "collects the history again, in a new storage"
        )
    return [{e: of[e] for e in examples} for of in entropies]


def _scores(history: History, by: str, seed: int, band: tuple[float, float]) -> dict[str, float]:
    if by not in RULES:
        return _called(history, rule_call(by))
    if by == "historical_variance":
        return {e: pvariance(values) for e, values in history.items()}
    if by == "random":
        order = random.Random(f"{seed} rank").sample(sorted(history), len(history))
        return {e: -float(place) for place, e in enumerate(order)}
    if by == "pass_rate":
        low, high = band
        middle = (low + high) / 2
        return {e: -abs(values[0] - middle) for e, values in history.items() if low <= values[0] <= high}
    if by == "pass_rate_variance":
        return {e: values[0] * (1 - values[0]) for e, values in history.items()}
    num_visits = min(len(values) for values in history.values())
    average = [fmean(values[visit] for values in history.values()) for visit in range(num_visits)]
    scale = sum((1 - mean) ** 2 for mean in average) or 1.0
    return {
        e: 1 - sum((value - mean) ** 2 for value, mean in zip(values, average, strict=False)) / scale
        for e, values in history.items()
    }


def choose(ranked: Sequence[Ranked], *, top: int, bottom: int, random_: int, seed: int) -> dict[str, Ranked]:
    """Return a ranking's examples by cell name: `1`, `2` ... from the top, `last1` ... from the end, `random1` ...

    The random ones are drawn from the examples between top and end.

    Raises UserError: the ranking has too few examples.
    """
    num_wanted = top + bottom + random_
    if num_wanted > len(ranked):
        raise UserError(f"{num_wanted} examples wanted, but the ranking has {len(ranked)}; lower the counts")
    chosen = {f"{place + 1}": ranked[place] for place in range(top)}
    chosen |= {f"last{place + 1}": ranked[-1 - place] for place in range(bottom)}
    between = ranked[top : len(ranked) - bottom]
    drawn = random.Random(f"{seed} axis").sample(range(len(between)), random_)
    return chosen | {f"random{place + 1}": between[index] for place, index in enumerate(drawn)}


def read_history(path: Path, *, of: str) -> dict[str, list[float]]:
    """Read a history file of the released form, `{"124": [0.0, 0.125, ...], ...}`, whose keys are rows of the set `of`.

    A key may also be a full name (`dsr_sub:124`).

    Raises DataError: the file cannot be read, or has another form.
    """
    try:
        data = json.loads(read_text(path, error=DataError))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read: a number has too many digits, or brackets are nested too deep"
        ) from error
    if not isinstance(data, dict) or not data:
        raise DataError(f'{path}: not a history; write an object such as {{"124": [0.0, 0.125], ...}}')
    history = {}
    for key, values in data.items():
        if not isinstance(values, list) or not values or not all(_is_accuracy(value) for value in values):
            raise DataError(f"{path}: {key}: must be a list of accuracies from 0 to 1, one for each visit")
        if not key.isdecimal() and ":" not in key:
            raise DataError(f"{path}: {key!r} is not a row; write a row number or set:row")
        history[f"{of}:{key}" if key.isdecimal() else key] = [float(value) for value in values]
    return dict(sorted(history.items(), key=lambda item: set_order(item[0])))


def _is_accuracy(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def set_order(example: str) -> tuple[str, int, str]:
    """Return a sort key that orders examples by set and row."""
    source, _, row = example.rpartition(":")
    return source, int(row) if row.isdecimal() else 0, row


def ranking_digest(ranked: Sequence[Ranked]) -> str:
    """Return sha256 (hex) of examples and scores in their order."""
    return sha256(json.dumps([[each.example, each.score] for each in ranked]).encode()).hexdigest()
