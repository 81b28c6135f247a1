"""The verb that exports a trained model."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneshot.cli.find import find_name, open_store, read_cells, with_mlflow
from oneshot.cli.options import JsonOption, MlflowOption, StepOption, StorageOption, app, load_sweep, warn
from oneshot.errors import UserError, first_line

if TYPE_CHECKING:
    from oneshot.export.kept import Selection
    from oneshot.export.write import Export
    from oneshot.store.store import Store
    from oneshot.sweep.tracking.registry import Registered

Dtype = Literal["bfloat16", "float16", "float32", "float64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An export's record in MLflow."""

    registered: "Registered | None" = None
    uri: str = ""
    error: str = ""  # why MLflow has no record, although one was wanted
    note: str = ""  # what the user should know besides


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(metavar="TRIAL", help="A trial's key or its beginning; or a sweep, with --cell and --seed")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new folder")],
    cell: Annotated[str, typer.Option(help="The trial's cell in the sweep, as model=a,arm=b")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="The trial's seed in the sweep")] = None,
    step: StepOption = "last",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Precision of the weights; default: that of the trial's evaluation")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export in DIR")] = False,
    mlflow: MlflowOption = None,
    in_mlflow: Annotated[
        bool, typer.Option("--in-mlflow/--no-mlflow", help="Show the model in the sweep's MLflow experiment")
    ] = True,
    upload: Annotated[bool, typer.Option("--upload", help="Also store its files in MLflow")] = False,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also make it a version of a registered model; uploads it")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also push it to the model hub, as a private repository")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make the repository public")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model as a folder that transformers loads.

    vLLM loads it too. Adapters are merged, and a model card is included. MLflow shows it with its run and accuracies.
    """
    if not in_mlflow and (upload or register is not None):
        raise UserError("--no-mlflow contradicts --upload and --register; leave out one of them")
    if public and push is None:
        raise UserError("--public needs --push OWNER/NAME: nothing is published without it")
    if push is not None:
        from oneshot.export.push import check_push

        check_push(push)
    from oneshot.export.kept import read_kept
    from oneshot.export.write import write_export

    store, selection = _find(name, cell, seed, storage)
    kept = read_kept(store, selection, at=step)
    target = to.expanduser().resolve()
    made = write_export(kept, target, dtype=dtype or kept.dtype, force=force, say=warn)
    published = _register(made, store, mlflow, upload=upload, name=register) if in_mlflow else Published()
    if published.error:
        warn(f"{to} is written, but not in MLflow: {published.error}; run the same command again to register it")
    if published.note:
        warn(published.note)
    address = _push(made, push, public=public, published=published) if push is not None else None
    if as_json:
        print(json.dumps(_to_json(made, published, address), indent=2))
    else:
        _print(made, published, address, to=to)
    if published.error:
        raise typer.Exit(1)


def _find(name: str, cell: str, seed: int | None, storage: str | None) -> tuple["Store", "Selection"]:
    """Return the trial that is meant, and its store."""
    from oneshot.export.kept import by_cell, by_key
    from oneshot.plan.loader import begun_sweep

    store = open_store(storage)
    is_file = Path(name).is_file()
    if not is_file and name not in store.sweeps():
        if cell or seed is not None:
            raise UserError(f"{name}: no sweep of this name in {store.root}; --cell and --seed choose a sweep's trial")
        return store, by_key(store, name)
    sweep_name, store = find_name(name, storage) if is_file else (name, store)
    sweep_run = begun_sweep(store, sweep_name)
    sweep, plan = sweep_run.sweep, sweep_run.plan
    if is_file:  # the file may name another tracking server than when the sweep ran
        config = sweep.config.model_copy(update={"mlflow": load_sweep(Path(name)).config.mlflow})
        sweep = replace(sweep, config=config)
    axes = list(plan.trials[0].cell) if plan.trials else []
    return store, by_cell(sweep, plan, cells=read_cells(cell, axes), seed=seed)


def _register(made: "Export", store: "Store", mlflow: str | None, *, upload: bool, name: str | None) -> Published:
    """Show the export in MLflow."""
    from oneshot.plan.sweep_run import mlflow_location

    sweep = made.kept.selection.sweep
    if sweep is None:
        reason = "the trial belongs to no sweep of this storage"
        return Published(error=reason) if upload or name else Published(note=f"not in MLflow: {reason}")
    try:
        location = mlflow_location(with_mlflow(sweep, mlflow), store)
    except UserError as error:
        return Published(error=str(error))
    from oneshot.sweep.tracking.server import why_not  # MLflow takes seconds to import

    if reason := why_not(location.uri):
        return Published(error=reason)
    from oneshot.sweep.tracking.registry import register

    try:
        registered = register(made, location, upload=upload, name=name)
    except Exception as error:  # server, network or disk: the folder is written, and can be registered later
        return Published(error=first_line(error))
    note = (
        f"MLflow has no run of {made.kept.label}, so it shows no accuracies; run the sweep with `oneshot run`, then "
        "run this command again"
    )
    return Published(registered=registered, uri=location.uri, note="" if registered.run_id else note)


def _push(made: "Export", repository: str, *, public: bool, published: Published) -> str:
    from oneshot.export.push import push

    warn(f"uploading {made.num_bytes / 2**20:.1f} MiB to {repository}")
    message = f"{made.kept.label}, step {made.kept.step}, {made.dtype} (oneshot {made.kept.selection.key})"
    address = push(made.folder, repository, public=public, message=message)
    if published.registered is not None:
        from oneshot.sweep.tracking.registry import note_push

        try:
            note_push(published.registered.model_id, tracking_uri=published.uri, repository=repository)
        except Exception as error:  # server or network: the model is pushed, and only the note of it is missing
            warn(f"could not note {repository} in MLflow: {first_line(error)}")
    return address


def _to_json(made: "Export", published: Published, address: str | None) -> dict[str, Any]:
    names = ("experiment", "model_id", "run_id", "version")
    registered = published.registered
    return {
        "folder": str(made.folder),
        **{name: made.metadata[name] for name in ("key", "label", "step", "dtype")},
        "num_bytes": made.num_bytes,
        "mlflow": registered and {"tracking_uri": published.uri} | {name: getattr(registered, name) for name in names},
        "hub": address,
    }


def _print(made: "Export", published: Published, address: str | None, *, to: Path) -> None:
    size = made.num_bytes / 2**20
    print(f"{to}: {made.kept.label}, step {made.kept.step}, {made.dtype}, {size:.1f} MiB")
    if (registered := published.registered) is not None:
        print(f"MLflow: {registered.model_id}, under Models of the experiment {registered.experiment!r}")
        if registered.version is not None:
            print(f"version {registered.version} of the registered model")
    if address is not None:
        print(f"hub: {address}")
