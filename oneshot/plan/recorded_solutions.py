"""Examples with `solution: {from: SWEEP}` -> the completions of the base model that this sweep has recorded.

They are those of evaluations at step 0 and of the first rollout, whose policy is the base model. The sweep's folder
keeps the texts when the sweep first runs, so that later changes of the other sweep do not change it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oneshot.config.examples import POLICY, Example, RowExample, SampledSolutions, SolutionTexts, WrittenExample
from oneshot.config.fields import NAME
from oneshot.config.file import SweepFile
from oneshot.config.paths import SettingError, Where
from oneshot.config.trial import TrialConfig
from oneshot.errors import DataError, UserError
from oneshot.plan.pinned import PinnedSweep
from oneshot.store.folder import Folder
from oneshot.store.store import Store
from oneshot.store.trial_folder import TrialFolder, table_name
from oneshot.tasks.benchmarks import load_suites
from oneshot.tasks.examples import example_rows, identify, row_content
from oneshot.tasks.problems import text_digest
from oneshot.tasks.solutions import sampling_rules

FILE = "solutions.json"
AWAITS = "the completions of "
Recorded = dict[str, list[list[Any]]]
"""sha256 of a prompt -> the texts of its completions, and whether each is right."""


def is_sweep(name: str) -> bool:
    """Return whether `solution.from` names a sweep, not a model."""
    is_folder = (Path(name) / "config.json").is_file()
    return name != POLICY and re.fullmatch(NAME, name) is not None and not is_folder


def asks(sweep: SweepFile) -> bool:
    """Return whether a sweep file may ask for the completions of a sweep; cheaper than its plan."""
    return re.search(r"\bfrom:", sweep.source.text) is not None


def frozen_solutions(sweep: PinnedSweep, folder: Folder) -> PinnedSweep:
    """Return the sweep with the completions that were recorded when it first ran."""
    recorded = folder.read_json(FILE) or []
    solutions = {(each["from"], each["model"]): each["texts"] for each in recorded}
    return replace(sweep, solutions=solutions)


def find_solutions(sweep: PinnedSweep, configs: Sequence[TrialConfig], store: Store) -> PinnedSweep:
    """Return the sweep with every completion that its examples ask for and the store has."""
    solutions = dict(sweep.solutions)
    for config in configs:
        for name in sorted(_sweeps_of(config)):
            key = (name, config.model.path)
            if key not in solutions and (recorded := _recorded(store, name, config.model.path)):
                solutions[key] = recorded
    return replace(sweep, solutions=solutions)


def keep_solutions(sweep: PinnedSweep, folder: Folder) -> None:
    """Record the completions in the sweep's folder, with a digest of each set of them."""
    if sweep.solutions:
        content = [
            {"from": name, "model": model, "digest": sha256(repr(texts).encode()).hexdigest(), "texts": texts}
            for (name, model), texts in sweep.solutions.items()
        ]
        folder.write_json(FILE, content)


def with_solutions(sweep: PinnedSweep, config: TrialConfig, where: Where) -> tuple[TrialConfig, str | None]:
    """Return a trial with recorded completions as its examples' solutions, and the sweep that it waits for if any.

    Raises SettingError: the sweep has no completion to keep for an example.
    """
    if config.train.method != "sft" or not (names := _sweeps_of(config)):
        return config, None
    if waits_for := next((name for name in sorted(names) if (name, config.model.path) not in sweep.solutions), None):
        return config, f"{AWAITS}{waits_for!r}: run that sweep first"
    examples: list[Example] = []
    for example in config.examples:
        given = None if isinstance(example, str) else example.solution
        if isinstance(given, SampledSolutions) and is_sweep(given.from_):
            recorded = sweep.solutions[given.from_, config.model.path]
            examples += [_with_texts(row_example, recorded, given, where) for row_example in _single(example)]
        else:
            examples.append(example)
    return config.model_copy(update={"examples": examples}), None


def _single(example: Example) -> Iterator[tuple[str, str, RowExample | WrittenExample]]:
    """Yield name, prompt's digest and example of each row of an example."""
    if isinstance(example, WrittenExample):
        yield "the written problem", text_digest(example.problem), example
        return
    for row in example_rows([example]):
        if row.wrong_seed is not None:
            raise DataError(f"{row.id}: completions of a sweep cannot be solutions of a row with a wrong label")
        name = row.problem.id if row.problem is not None else f"{row.source}:{row.row}"
        # a RowExample needs an answer or a solution, which `_with_texts` adds
        yield row.id, row_content(row)[0], RowExample(row=name, answer=row.answer, solution=SolutionTexts(texts=["?"]))


def _with_texts(
    single: tuple[str, str, RowExample | WrittenExample], recorded: Recorded, rule: SampledSolutions, where: Where
) -> Example:
    name, prompt, example = single
    if rule.keep == "right" and isinstance(example, RowExample) and example.answer is not None:
        raise SettingError(
            where,
            f"{name}: {rule.from_} has judged completions by the row's own label; remove `answer` or set keep: any",
        )
    kept = [text for text, is_right in recorded.get(prompt, ()) if is_right or rule.keep == "any"][: rule.samples]
    if not kept:
        what = "no right completion" if rule.keep == "right" else "no completion"
        raise SettingError(where, f"{name}: {rule.from_} has recorded {what} of it by this model; sample it instead")
    return example.model_copy(update={"solution": SolutionTexts(texts=kept)})


def _sweeps_of(config: TrialConfig) -> set[str]:
    """Return the sweeps whose completions a trial learns."""
    if config.train.method != "sft":
        return set()
    return {rule.from_ for rule in sampling_rules(config.examples) if is_sweep(rule.from_)}


def _recorded(store: Store, name: str, model: str) -> Recorded:
    """Return the base model's distinct completions in the trials of a sweep; empty if it has not run."""
    plan = store.sweep(name).read_json("plan.json")
    recorded: Recorded = {}
    for key in dict.fromkeys(trial["key"] for trial in (plan or {"trials": []})["trials"] if trial["key"]):
        folder = store.trial(key)
        description: dict[str, Any] | None = folder.read_json("trial.json")
        try:
            config = TrialConfig.model_validate(description["config"]) if description else None
        except ValidationError:  # another version wrote it
            continue
        if config is not None and config.model.path == model and config.model.init is None:
            for prompt, text, is_right in (*_evaluated(folder, config), *_rolled_out(folder, config)):
                texts = recorded.setdefault(prompt, [])
                if [text, is_right] not in texts:  # trials with one seed have the same completions
                    texts.append([text, is_right])
    return recorded


def _evaluated(folder: TrialFolder, config: TrialConfig) -> Iterator[tuple[str, str, bool]]:
    for suite in load_suites(config):
        table = folder.completions(table_name(suite.digest, 0))
        if table is None and folder.evaluation(suite.digest, 0) is not None:
            raise _removed(folder)
        for row in _rows(table):
            if row["num_tokens"] >= suite.max_tokens:  # it may have been cut
                continue
            yield text_digest(row["problem"]), row["completion"], row["strict"] is True


def _rolled_out(folder: TrialFolder, config: TrialConfig) -> Iterator[tuple[str, str, bool]]:
    try:
        examples = identify(config.examples)
        # a reward says nothing about the right answer if the label is another one
        labelled = {row.id for row in example_rows(config.examples) if row.answer is None and row.wrong_seed is None}
    except UserError:  # its data are not here
        return
    prompts = dict(zip(examples.ids, examples.prompts, strict=True))
    is_outcome = config.reward.kind == "outcome"
    table = folder.completions("step-000001")
    if table is None and config.train.method == "grpo" and any(row.step == 1 for row in folder.rows()):
        raise _removed(folder)
    for row in _rows(table):
        if not row["truncated"] and row["example"] in prompts:
            is_right = is_outcome and row["example"] in labelled and row["reward"] == 1
            yield prompts[row["example"]], row["completion"], is_right


def _removed(folder: TrialFolder) -> DataError:
    return DataError(
        f"{folder.path}: its tables of completions are gone (`oneshot gc` removes them by age), so its solutions are "
        "not known; take those of another sweep, or sample them"
    )


def _rows(table: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    for values in table["data"] if table is not None else ():
        yield dict(zip(table["columns"] if table else (), values, strict=True))
