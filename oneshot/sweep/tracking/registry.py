"""An export -> MLflow: one LoggedModel on the trial's run, with its accuracies.

Like a run, it can be made again from the store and the folder, and is looked up by a tag before it is created.
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
from oneshot.plan.sweep_run import MlflowLocation
from oneshot.sweep.tracking.run_data import is_curve, run_identity, run_params
from oneshot.sweep.tracking.server import connect, find_experiment
from oneshot.sweep.tracking.tracker import NOTE, TRIAL

IDENTITY = "oneshot.export"  # the tag that names a LoggedModel's contents


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An export's record in MLflow."""

    model_id: str
    experiment: str
    run_id: str | None  # the trial's run; None if MLflow has none, and so no accuracies either
    version: str | None  # in the registered model, if one was asked for


def register(export: Export, location: MlflowLocation, *, upload: bool, name: str | None) -> Registered:
    """Create or complete the export's LoggedModel; with `upload` or a `name`, upload its files too.

    Raises MlflowException, OSError: the server does not answer, or rejects it.
    """
    client = connect(location.uri)
    metrics = [f"eval/{suite}/pass_at_1" for suite in export.kept.config.eval.suites]
    experiment_id = find_experiment(client, location.experiment, location.artifacts, metrics=metrics)
    run = _find_run(client, experiment_id, export.kept)
    run_id = None if run is None else str(run.info.run_id)
    model = _find_model(client, experiment_id, export) or _make_model(client, experiment_id, export, run_id)
    client.set_logged_model_tags(model.model_id, {"exported.to": str(export.folder)})
    if run is not None:
        _link(client, model, run, export.kept)
    if upload or name is not None:
        from oneshot.sweep.tracking.flavour import upload_files  # transformers takes seconds to import

        upload_files(client, model, export)
    if str(model.status) != "READY":
        client.finalize_logged_model(model.model_id, "READY")
    version = None if name is None else _version(client, model, run_id, name)
    return Registered(model_id=model.model_id, experiment=location.experiment, run_id=run_id, version=version)


def note_push(model_id: str, *, tracking_uri: str, repository: str) -> None:
    """Note on a LoggedModel where it was pushed."""
    connect(tracking_uri).set_logged_model_tags(model_id, {"hub": repository})


def _find_run(client: MlflowClient, experiment_id: str, kept: Kept) -> Run | None:
    condition = f"tags.`{TRIAL}` = '{run_identity(kept.selection.trial)}'"
    sweep = kept.selection.sweep
    if sweep is not None:
        condition += f" and tags.sweep = '{sweep.config.name}'"
    runs = client.search_runs([experiment_id], condition, max_results=1)
    return runs[0] if runs else None


def _find_model(client: MlflowClient, experiment_id: str, export: Export) -> LoggedModel | None:
    condition = f"tags.`{IDENTITY}` = '{export.identity}'"
    if (sweep := export.kept.selection.sweep) is not None:
        condition += f" AND tags.`sweep` = '{sweep.config.name}'"
    models = client.search_logged_models([experiment_id], condition)
    return next(iter(models), None)


def _make_model(client: MlflowClient, experiment_id: str, export: Export, run_id: str | None) -> LoggedModel:
    kept, selection = export.kept, export.kept.selection
    tags = {
        IDENTITY: export.identity,
        NOTE: _note(export),
        "trial.key": selection.key,
        "seed": str(selection.trial.seed),
        "step": str(kept.step),
        "dtype": export.dtype,
        **{f"base_model.{name}": value for name, value in base_model(kept).items()},
        **{f"cell.{axis}": cell for axis, cell in selection.trial.cell.items()},
    }
    if selection.sweep is not None:
        tags["sweep"] = selection.sweep.config.name
    model: LoggedModel = client.create_logged_model(
        experiment_id,
        # as in `tiny-qwen2-sum-outcome-seed-0`, for the Models tab
        name="".join(char if char.isalnum() or char in "-_" else "-" for char in kept.label)[:250],
        source_run_id=run_id,
        tags=tags,
        params=dict(run_params(selection.trial)),
        model_type="causal-lm",
    )
    return model


def _note(export: Export) -> str:
    base = "@".join(base_model(export.kept).values())
    return (
        f"**{export.kept.label}**: `{base}` after {export.kept.step} steps, in {export.dtype}. Trial "
        f"`{export.kept.selection.key}`; last written to the folder in the tag `exported.to`."
    )


def _link(client: MlflowClient, model: LoggedModel, run: Run, kept: Kept) -> None:
    """Show the model among the run's outputs, and its accuracies on the model, each once."""
    run_id = str(run.info.run_id)
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id=model.model_id, step=kept.step)])
    logged = {(metric.key, metric.dataset_digest, metric.run_id) for metric in model.metrics or ()}
    fresh = [
        Metric(
            name,
            value,
            evaluation.time_ms,
            evaluation.step,
            model_id=model.model_id,
            dataset_name=evaluation.suite,
            dataset_digest=evaluation.digest[:36],
            run_id=run_id,
        )
        for evaluation in kept.evaluations
        if evaluation.step == kept.step and evaluation.is_own
        for measure, value in evaluation.metrics.items()
        for name in (f"eval/{evaluation.suite}/{measure}",)
        if is_curve(name) and (name, evaluation.digest[:36], run_id) not in logged
    ]
    if fresh:
        # the run already has points of the same key, value, time and step, of which MLflow keeps one
        client.log_batch(run_id, metrics=fresh)


def _version(client: MlflowClient, model: LoggedModel, run_id: str | None, name: str) -> str:
    """Return the model's version under a registered name, created if needed."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions: Sequence[Any] = client.search_model_versions(f"name = '{name}'")
    own = next((version for version in versions if version.source == model.artifact_location), None)
    if own is None:
        own = client.create_model_version(
            name,
            source=model.artifact_location,  # MLflow would look up models:/<id> on another server than this client's
            run_id=run_id,
            model_id=model.model_id,
        )
    return str(own.version)
