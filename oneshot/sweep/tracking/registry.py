"""An export -> MLflow: one LoggedModel for what it contains, on the trial's run, with its accuracies.

Like a run, it can be made again from what is in the store and the folder, and is looked up by a tag before it is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run
from mlflow.exceptions import MlflowException

from oneshot.export.card import base_model
from oneshot.export.kept import Kept
from oneshot.export.write import Export
from oneshot.sweep.tracking.tracker import NOTE, TRIAL, connect, find_experiment, is_curve, run_identity, run_params

IDENTITY = "oneshot.export"
"""Tag of a LoggedModel: what it contains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What MLflow has of an export."""

    model_id: str
    experiment: str
    run_id: str | None
    """Of the trial; None where MLflow has no run of it, and so no accuracies either."""
    version: str | None
    """In the registered model that was asked for."""


def register(
    export: Export, *, tracking_uri: str, experiment: str, artifacts: str | None, upload: bool, name: str | None
) -> Registered:
    """Makes or finds the export's LoggedModel, and adds what it lacks; with `upload` or a `name` also its files.

    Raises:
        MlflowException, OSError: the server does not answer, or does not take it.
    """
    client = connect(tracking_uri)
    metrics = [f"eval/{suite}/pass_at_1" for suite in export.kept.config.eval.suites]
    experiment_id = find_experiment(client, experiment, artifacts, metrics=metrics)
    run = _find_run(client, experiment_id, export.kept)
    model = _find_model(client, experiment_id, export) or _make_model(client, experiment_id, export, run)
    client.set_logged_model_tags(model.model_id, {"exported.to": str(export.folder)})
    if run is not None:
        _link(client, model, run, export.kept)
    if upload or name is not None:
        from oneshot.sweep.tracking.flavour import upload_files  # transformers takes seconds to import

        upload_files(client, model, export)
    if str(model.status) != "READY":
        client.finalize_logged_model(model.model_id, "READY")
    version = None if name is None else _version(client, model, run, name)
    return Registered(
        model_id=model.model_id,
        experiment=experiment,
        run_id=None if run is None else str(run.info.run_id),
        version=version,
    )


def note_push(model_id: str, *, tracking_uri: str, repository: str) -> None:
    """Says on a LoggedModel where it was pushed."""
    connect(tracking_uri).set_logged_model_tags(model_id, {"hub": repository})


def _find_run(client: MlflowClient, experiment_id: str, kept: Kept) -> Run | None:
    condition = f"tags.`{TRIAL}` = '{run_identity(kept.asked.trial)}'"
    sweep = kept.asked.sweep
    if sweep is not None:
        condition += f" and tags.sweep = '{sweep.config.name}'"
    runs = client.search_runs([experiment_id], condition, max_results=1)
    return runs[0] if runs else None


def _find_model(client: MlflowClient, experiment_id: str, export: Export) -> LoggedModel | None:
    condition = f"tags.`{IDENTITY}` = '{export.identity}'"
    if (sweep := export.kept.asked.sweep) is not None:
        condition += f" AND tags.`sweep` = '{sweep.config.name}'"
    found = client.search_logged_models([experiment_id], condition)
    return next(iter(found), None)


def _make_model(client: MlflowClient, experiment_id: str, export: Export, run: Run | None) -> LoggedModel:
    kept = export.kept
    asked = kept.asked
    base = base_model(kept)
    tags = {
        IDENTITY: export.identity,
        NOTE: _note(export),
        "trial.key": asked.key,
        "seed": str(asked.trial.seed),
        "step": str(kept.step),
        "dtype": export.dtype,
        **{f"base_model.{name}": value for name, value in base.items()},
        **{f"cell.{axis}": cell for axis, cell in asked.trial.cell.items()},
    }
    if asked.sweep is not None:
        tags["sweep"] = asked.sweep.config.name
    model: LoggedModel = client.create_logged_model(
        experiment_id,
        name=model_name(kept),
        source_run_id=None if run is None else str(run.info.run_id),
        tags=tags,
        params=dict(run_params(asked.trial)),
        model_type="causal-lm",
    )
    return model


def model_name(kept: Kept) -> str:
    """What the Models tab calls it: `tiny-qwen2-sum-outcome-seed-0`."""
    return "".join(one if one.isalnum() or one in "-_" else "-" for one in kept.label)[:250]


def _note(export: Export) -> str:
    base = "@".join(base_model(export.kept).values())
    return (
        f"**{export.kept.label}**: `{base}` after {export.kept.step} steps, in {export.dtype}. Trial "
        f"`{export.kept.asked.key}`; written to what the tag `exported.to` says last."
    )


def _link(client: MlflowClient, model: LoggedModel, run: Run, kept: Kept) -> None:
    """Shows the model among the run's outputs, and the accuracies of its weights on the model; each once."""
    run_id = str(run.info.run_id)
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if model.model_id not in {one.model_id for one in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id=model.model_id, step=kept.step)])
    there = {(metric.key, metric.dataset_digest, metric.run_id) for metric in model.metrics or ()}
    fresh = [
        metric for metric in _metrics(kept, model, run_id) if (metric.key, metric.dataset_digest, run_id) not in there
    ]
    if fresh:
        # the run has the same points already: key, value, time and step are alike, and MLflow keeps one
        client.log_batch(run_id, metrics=fresh)


def _metrics(kept: Kept, model: LoggedModel, run_id: str) -> list[Metric]:
    return [
        Metric(
            name,
            value,
            one.time_ms,
            one.step,
            model_id=model.model_id,
            dataset_name=one.suite,
            dataset_digest=one.digest[:36],
            run_id=run_id,
        )
        for one in kept.evaluations
        if one.step == kept.step and one.is_asked
        for name, value in ((f"eval/{one.suite}/{measure}", value) for measure, value in one.metrics.items())
        if is_curve(name)
    ]


def _version(client: MlflowClient, model: LoggedModel, run: Run | None, name: str) -> str:
    """The model's version under a registered name, made where there is none."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known: Sequence[Any] = client.search_model_versions(f"name = '{name}'")
    mine = next((one for one in known if one.source == model.artifact_location), None)
    if mine is None:
        mine = client.create_model_version(
            name,
            source=model.artifact_location,  # models:/<id> would be looked up in another server than this client's
            run_id=None if run is None else str(run.info.run_id),
            model_id=model.model_id,
        )
    return str(mine.version)
