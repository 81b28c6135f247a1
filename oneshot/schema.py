"""The sweep file's JSON schema, for editors and for docs/sweep-file.md; generated from the pydantic models."""

from typing import Any

from oneshot.config import TrialConfig
from oneshot.sweepfile import SweepConfig


def sweep_schema() -> dict[str, Any]:
    """Schema of a sweep file; `trial` and every `set` take TrialConfig's keys, nested or dotted, none required."""
    schema = SweepConfig.model_json_schema()
    trial = TrialConfig.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = {**trial.pop("$defs"), "TrialConfig": trial}
    for name, definition in definitions.items():
        # a file may leave out what another part of it sets
        definitions[name] = {k: v for k, v in definition.items() if k != "required"}
    settings = {
        "type": "object",
        "description": "any TrialConfig field, nested or dotted",
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
    found: list[tuple[str, Any]] = []
    for name, field in section["properties"].items():
        path = f"{prefix}{name}"
        if prefix:
            found.append((path, field))
        if "$ref" in field:
            found += _dotted(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions, f"{path}.")
    return found
