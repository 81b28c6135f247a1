"""The configuration classes -> the sweep file's JSON schema for editors, and its reference, docs/sweep-file.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from oneshot.config import claims, ranking, resources, search, sweep
from oneshot.config.trial import TrialConfig

HIDDEN = "script"  # a tool for testing a cluster without a model: docs/operations.md
INTRODUCTION = (Path(__file__).parent / "introduction.md").read_text()


def sweep_schema() -> dict[str, Any]:
    """Return the schema of a sweep file. `trial` and every `set` take a trial's settings, all of them optional."""
    schema = sweep.SweepConfig.model_json_schema()
    trial = TrialConfig.model_json_schema(ref_template="#/$defs/{model}")
    del trial["properties"][HIDDEN]
    definitions: dict[str, Any] = {**trial.pop("$defs"), "TrialConfig": trial}
    definitions = {  # a file may leave out what another part of it sets
        name: {key: value for key, value in definition.items() if key != "required"}
        for name, definition in definitions.items()
        if not name.startswith("Script")
    }
    settings = {
        "type": "object",
        "description": "Settings of a trial, nested or dotted",
        "properties": {**trial["properties"], **dict(_dotted(trial, definitions, ""))},
        "additionalProperties": False,
    }
    schema["$defs"] |= {**definitions, "Settings": settings}
    schema["properties"]["trial"] = {"$ref": "#/$defs/Settings"}
    for owner in ("CellConfig", "GridBlock"):
        schema["$defs"][owner]["properties"]["set"] = {"$ref": "#/$defs/Settings"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "oneshot sweep file"}


def _dotted(section: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section["properties"].items():
        path = f"{prefix}{name}"
        if prefix:
            yield path, field
        # an optional section is any of its definition and null
        for kind in (field, *field.get("anyOf", ())):
            if "$ref" in kind:
                yield from _dotted(definitions[kind["$ref"].rsplit("/", 1)[-1]], definitions, f"{path}.")


def sweep_reference() -> str:
    """Return docs/sweep-file.md: every key of a sweep file and every setting of a trial, with defaults and bounds."""
    sections: list[tuple[str, type[BaseModel], str]] = [
        ("Top level", sweep.SweepConfig, ""),
        ("A named cell", sweep.CellConfig, ""),
        ("`resources`", resources.SweepResourceConfig, "resources."),
        ("`cost` of a cell", sweep.CostConfig, "cost."),
        ("`from_rank` of a cell", ranking.FromRankConfig, "from_rank."),
        ("`search`", search.SearchConfig, "search."),
        ("`search.objective`", search.ObjectiveConfig, "objective."),
        ("`search.space`, and `search` of a cell", search.RangeConfig, "<path>."),
        ("`search.constraint`", search.ConstraintConfig, "constraint."),
        ("`search.sampler`", search.SamplerConfig, "sampler."),
        ("`early_stop`", search.EarlyStopConfig, "early_stop."),
        ("One of `guards`", sweep.GuardConfig, ""),
        ("One of `claims`", claims.ClaimConfig, ""),
        ("`expect` of a claim", claims.ExpectConfig, "expect."),
        ("`sharing`", resources.SharingConfig, "sharing."),
        ("`budget`", resources.BudgetConfig, "budget."),
        ("`faults`", sweep.FaultsConfig, "faults."),
        ("`keep`", sweep.KeepConfig, "keep."),
        ("`mlflow`", sweep.MlflowConfig, "mlflow."),
        ("`notify`", sweep.NotifyConfig, "notify."),
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
    by_name = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for path, default, text in _rows(model, prefix):
        if path == HIDDEN:
            continue
        kind: Any = by_name[path.removeprefix(prefix)]
        inner = next((k for k in (kind, *getattr(kind, "__args__", ())) if hasattr(k, "model_fields")), None)
        is_optional = type(None) in getattr(kind, "__args__", ())  # also a value, as a mapping or null
        if inner is None or is_optional:
            yield path, default, text
        if inner is not None:
            place = "." if is_optional or inner is kind else "[]." if get_origin(kind) is list else ".<name>."
            yield from _trial_rows(inner, f"{path}{place}")
