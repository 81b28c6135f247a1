"""The configuration classes -> the sweep file's JSON schema for editors, and its reference, docs/sweep-file.md."""

from collections.abc import Iterator
from pathlib import Path
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

HIDDEN = "script"  # a tool for testing a cluster without a model: docs/operations.md
INTRODUCTION = (Path(__file__).parent / "introduction.md").read_text()


def sweep_schema() -> dict[str, Any]:
    """Return the schema of a sweep file. `trial` and every `set` take a trial's settings, all of them optional."""
    schema = SweepConfig.model_json_schema()
    trial = TrialConfig.model_json_schema(ref_template="#/$defs/{model}")
    del trial["properties"][HIDDEN]
    definitions: dict[str, Any] = {**trial.pop("$defs"), "TrialConfig": trial}
    definitions = {name: model for name, model in definitions.items() if not name.startswith("Script")}
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
        if path == HIDDEN:
            continue
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
