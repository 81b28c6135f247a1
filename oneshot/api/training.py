"""A trial's settings -> its training in this process; a completion -> its grades; a history -> a ranking."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.rank_rules import rank as rank_examples
from oneshot.plan.rank_rules import read_history
from oneshot.plan.ranking import first_entropies, sweep_histories
from oneshot.store.store import Store
from oneshot.tasks.grading import Grade, Grader
from oneshot.tasks.templates import with_texts

if TYPE_CHECKING:
    from oneshot.training.metrics import StepMetrics


def train(config: TrialConfig | Mapping[str, Any], *, seed: int = 0) -> "Iterator[StepMetrics]":
    """Train one trial here, without Ray or a store, and yield each step with its metrics and evaluations.

    `config` has the keys of a sweep file's `trial`, nested. The model is freed when the generator ends or is closed.

    Raises pydantic.ValidationError: a setting is wrong. DataError: a part of a package is not here.
    """
    from oneshot.training.loop import train as train_steps
    from oneshot.training.state import new_state

    settings = with_texts(config if isinstance(config, TrialConfig) else TrialConfig.model_validate(config))
    with Grader() as grader:
        yield from train_steps(settings, new_state(settings, seed=seed, grader=grader))


def grade(completion: str, answer: str) -> Grade:
    """Grade a completion against a label, as suites and rewards do: strict and lenient verdicts, and the reason.

    `strict` is True if the last box has the answer, None if it cannot be decided. `lenient` also takes an answer
    outside of a box.
    """
    with Grader() as grader:
        return grader.grade(completion, answer)


def rank(
    history: str | Path, *, by: str = "historical_variance", storage: str = "runs", set: str = "dsr_sub"
) -> pd.DataFrame:
    """Rank a set's examples by how their accuracy moved in training, best first.

    Columns: `example`, `score` (higher comes first), `variance`, `std`, `mean` of its accuracies, `num_visits`.

    `history` is a finished sweep in the storage, or a .json file {row: [accuracy, ...]} whose rows are those of `set`.

    `by` is one of our rules, or a function of one example's accuracies: `package.module:name`, or a registered name.

    Raises UserError: there is no such history, or no such rule, or the history does not have what the rule needs.
    """
    path = Path(history)
    if path.suffix == ".json":
        histories: list[Any] = [read_history(path, of=set)]
        entropies: list[dict[str, float]] = []
    else:
        histories = list(sweep_histories(Store(storage), str(history)))
        entropies = first_entropies(Store(storage), str(history), by=by)
    if not histories:
        raise UserError(f"{history}: no finished sweep of this name in {storage}; run it first")
    return pd.DataFrame([asdict(row) for row in rank_examples(histories, by=by, entropies=entropies)])
