"""The configuration classes -> the sweep file's JSON schema for editors, and its reference, docs/sweep-file.md."""

from collections.abc import Iterator
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from oneshot.config.claims import ClaimConfig, ExpectConfig
from oneshot.config.search import (
    ConstraintConfig,
    EarlyStopConfig,
    ObjectiveConfig,
    RangeConfig,
    SamplerConfig,
    SearchConfig,
)
from oneshot.config.sweep import (
    BudgetConfig,
    CellConfig,
    CostConfig,
    FaultsConfig,
    FromRankConfig,
    GuardConfig,
    MlflowConfig,
    NotifyConfig,
    SweepConfig,
    SweepResourceConfig,
)
from oneshot.config.trial import TrialConfig

INTRODUCTION = """# The sweep file

`make docs` generates this page from the configuration classes. `oneshot schema` prints the same content as a JSON
schema. For completion in an editor, start a file with `# yaml-language-server: $schema=docs/sweep.schema.json`.

A sweep file answers one question, which is its first line, as a comment. The format is YAML 1.2: `1e-6` is a number,
`on` and `no` are text, and a key that appears twice is an error. There are no templates, environment variables or
includes.

**Axes.** There are three kinds of axis:

- named cells, each with its own `set`, `resources`, `labels` and `cost`
- a list of values; the name of the axis is the path that they set
- a table, whose `columns` are paths and whose `rows` are cells

**Grid.** The grid is a union of blocks. A block selects cells by axis (`model: a`, `model: [a, b]`, `model: {not: a}`)
and may `set` more settings. If a block leaves an axis out, it selects all cells of that axis. Without `grid`, the sweep
runs the full product of its axes.

**Settings.** They are nested (`loss: {kl_coef: 0}`) or dotted (`loss.kl_coef: 0`). Their precedence is `trial` < search
winner < axis cell < grid block < `--set`. It is an error if two axes set the same path in one cell; set the path in the
grid block to resolve it. Paths of data files are relative to the working directory.

**Search.** `search` is a phase before the grid. Each cell of the `per` axes has one Optuna study, which is tuned on the
`on` cells, and its winner sets that part of the grid. If a cell sets a path itself, it keeps its value. The value of a
point is the mean over its cells and seeds. A point that ends in NaN, out of memory or in a guard counts as infeasible.
`early_stop` ends only search trials. Metrics and seeds that choose may not judge: claims use other metrics than the
search, and the grid uses other seeds.

**Failures.** A guard fails a trial and records the reason; the trial is not retried. `faults` says how often a training
is retried after each kind of failure. A budget stops the sweep, and the same command resumes it.

**Edits.** Claims are recorded as written when the sweep begins. After that, the file may only get more cells, seeds,
suites, search points or steps. Resources, budget and faults may change freely. `oneshot plan` shows what is new.

**Keys.** A trial is one cell with one seed. Its key covers everything that changes its training, by content: the
model's files or commit, the text of the examples, the settings and the seed. It does not cover names, resources,
storage or evaluation. A finished key is never trained again, in this sweep or in another.
"""


def sweep_schema() -> dict[str, Any]:
    """Return the schema of a sweep file. `trial` and every `set` take a trial's settings, all of them optional."""
    schema = SweepConfig.model_json_schema()
    trial = TrialConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = {**trial.pop("$defs"), "TrialConfig": trial}
    for name, definition in definitions.items():
        # a file may leave out what another part of it sets
        definitions[name] = {k: v for k, v in definition.items() if k != "required"}
    settings = {
        "type": "object",
        "description": "Settings of a trial, nested or dotted",
        "properties": {**trial["properties"], **dict(_dotted(trial, definitions, ""))},
        "additionalProperties": False,
    }
    schema["$defs"] |= definitions
    schema["$defs"]["Settings"] = settings
    schema["properties"]["trial"] = {"$ref": "#/$defs/Settings"}
    for owner in ("CellConfig", "GridBlock"):
        schema["$defs"][owner]["properties"]["set"] = {"$ref": "#/$defs/Settings"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "oneshot sweep file"}


def _dotted(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    fields: list[tuple[str, Any]] = []
    for name, field in section["properties"].items():
        path = f"{prefix}{name}"
        if prefix:
            fields.append((path, field))
        if "$ref" in field:
            fields += _dotted(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions, f"{path}.")
    return fields


def sweep_reference() -> str:
    """Return docs/sweep-file.md: every key of a sweep file and every setting of a trial, with defaults and bounds."""
    sections: list[tuple[str, type[BaseModel], str]] = [
        ("Top level", SweepConfig, ""),
        ("A named cell", CellConfig, ""),
        ("`resources`", SweepResourceConfig, "resources."),
        ("`cost` of a cell", CostConfig, "cost."),
        ("`from_rank` of a cell", FromRankConfig, "from_rank."),
        ("`search`", SearchConfig, "search."),
        ("`search.objective`", ObjectiveConfig, "objective."),
        ("`search.space`, and `search` of a cell", RangeConfig, "<path>."),
        ("`search.constraint`", ConstraintConfig, "constraint."),
        ("`search.sampler`", SamplerConfig, "sampler."),
        ("`early_stop`", EarlyStopConfig, "early_stop."),
        ("One of `guards`", GuardConfig, ""),
        ("One of `claims`", ClaimConfig, ""),
        ("`expect` of a claim", ExpectConfig, "expect."),
        ("`budget`", BudgetConfig, "budget."),
        ("`faults`", FaultsConfig, "faults."),
        ("`mlflow`", MlflowConfig, "mlflow."),
        ("`notify`", NotifyConfig, "notify."),
    ]
    parts = [INTRODUCTION]
    parts += [f"## {title}\n\n{_table(_rows(model, prefix))}" for title, model, prefix in sections]
    parts.append("## Settings of a trial\n\nThese keys go under `trial`, and under `set` of a cell or grid block.\n")
    parts.append(_table(_trial_rows(TrialConfig, "")))
    return "\n".join(parts)


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = [f"| `{path}` | {default} | {text} |" for path, default, text in rows]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *lines, ""])


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        bounds = ", ".join(_bounds(field.metadata))
        default = "" if field.default is PydanticUndefined else f"`{field.default!r}`"
        required = "required" if field.is_required() else default
        text = (field.description or "").replace("|", "\\|")
        yield f"{prefix}{field.alias or name}", required, f"{text} ({bounds})" if bounds else text


BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "min_length": "at least {} long"}


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for bound in metadata:
        for name, text in BOUNDS.items():
            if getattr(bound, name, None) is not None:
                yield text.format(f"{getattr(bound, name):,}")


def _trial_rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for path, default, text in _rows(model, prefix):
        kind: Any = model.model_fields[path.removeprefix(prefix)].annotation
        inner = next((k for k in (kind, *getattr(kind, "__args__", ())) if hasattr(k, "model_fields")), None)
        if inner is None:
            yield path, default, text
        elif type(None) in getattr(kind, "__args__", ()):  # one value, as a mapping
            yield path, default, text
            yield from _trial_rows(inner, f"{path}: ")
        else:
            is_section = inner is kind
            is_list = get_origin(kind) is list
            yield from _trial_rows(inner, f"{path}." if is_section else f"{path}[]." if is_list else f"{path}.<name>.")
