"""The verb that gives a trained model away."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oneshot.cli.options import (
    JsonOption,
    MlflowOption,
    StorageOption,
    app,
    find_name,
    load_sweep,
    read_cells,
    with_mlflow,
)
from oneshot.errors import UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.export.kept import Asked
    from oneshot.export.write import Export
    from oneshot.store.store import Store
    from oneshot.sweep.tracking.registry import Registered

Dtype = Literal["bfloat16", "float16", "float32", "float64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What became of an export in MLflow."""

    registered: "Registered | None" = None
    uri: str = ""
    trouble: str = ""
    """Why MLflow has nothing of it, though asked."""
    note: str = ""
    """What else is to be known."""


@app.command()
def export(
    name: Annotated[
        str,
        typer.Argument(metavar="TRIAL", help="a trial's key, or its beginning; or a sweep's file or name, with --cell"),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="a new folder")],
    cell: Annotated[str, typer.Option(help="of a sweep: axis=name, comma between, as model=a,arm=b")] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="of a sweep: which of its seeds")] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="precision of the weights; absent: what the trial was evaluated in")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export in DIR")] = False,
    mlflow: MlflowOption = None,
    in_mlflow: Annotated[
        bool, typer.Option("--in-mlflow/--no-mlflow", help="show it among the models of the sweep's experiment")
    ] = True,
    upload: Annotated[bool, typer.Option("--upload", help="also store its files in MLflow")] = False,
    register: Annotated[
        str | None, typer.Option(metavar="MODEL", help="also make it a version of a registered model; uploads")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="also upload it to the model hub, as a private repository")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="with --push: for everybody to see")] = False,
    storage: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished trial's model as a folder that transformers and vLLM load, and show it in MLflow."""
    if not in_mlflow and (upload or register is not None):
        raise UserError("--no-mlflow: leaves out what --upload and --register ask for; drop one of them")
    if public and push is None:
        raise UserError("--public: says who may see what --push uploads; nothing is pushed without --push OWNER/NAME")
    if push is not None:
        from oneshot.export.push import check_push

        check_push(push)
    from oneshot.export.kept import read_kept
    from oneshot.export.write import write_export

    store, asked = _find(name, cell, seed, storage)
    kept = read_kept(store, asked)
    target = to.expanduser().resolve()
    made = write_export(kept, target, dtype=dtype or kept.dtype, force=force, say=_say)
    told = _register(made, store, mlflow, upload=upload, name=register) if in_mlflow else Published()
    if told.trouble:
        _say(f"not in MLflow: {told.trouble}; {to} is written, and the same command registers it")
    if told.note:
        _say(told.note)
    address = _push(made, push, public=public, told=told) if push is not None else None
    if as_json:
        print(json.dumps(_facts(made, told, address), indent=2))
    else:
        _print(made, told, address, to=to)
    if told.trouble:
        raise typer.Exit(1)


def _say(text: str) -> None:
    print(f"oneshot: {printable(text)}", file=sys.stderr, flush=True)


def _find(name: str, cell: str, seed: int | None, storage: str | None) -> tuple["Store", "Asked"]:
    """The trial that is meant, and the storage that it is in."""
    from oneshot.export.kept import by_cell, by_key
    from oneshot.plan.recorded import begun_sweep
    from oneshot.store.store import Store

    store = Store(storage or "runs")
    is_file = Path(name).is_file()
    if not is_file and name not in store.sweeps():
        if cell or seed is not None:
            raise UserError(f"{name}: --cell and --seed choose a trial of a sweep; {store.root} has none of that name")
        return store, by_key(store, name)
    sweep_name = name
    if is_file:
        sweep_name, store = find_name(name, storage)
    sweep, plan = begun_sweep(store, sweep_name)
    if is_file:  # a server may be named, or another one, since it ran
        config = sweep.config.model_copy(update={"mlflow": load_sweep(Path(name), None).config.mlflow})
        sweep = replace(sweep, config=config)
    axes = list(plan.trials[0].cell) if plan.trials else []
    return store, by_cell(sweep, plan, cells=read_cells(cell, axes), seed=seed)


def _register(made: "Export", store: "Store", mlflow: str | None, *, upload: bool, name: str | None) -> Published:
    """Shows the export in MLflow."""
    from oneshot.sweep.run import mlflow_location

    sweep = made.kept.asked.sweep
    if sweep is None:
        why = "no sweep of this storage asks for the trial"
        return Published(trouble=why) if upload or name else Published(note=f"not in MLflow: {why}")
    sweep = with_mlflow(sweep, mlflow)
    try:
        uri, artifacts = mlflow_location(sweep, store)
    except UserError as error:
        return Published(trouble=str(error))
    from oneshot.sweep.tracking.server import why_not  # MLflow takes seconds to import

    if trouble := why_not(uri):
        return Published(trouble=trouble)
    from oneshot.sweep.tracking.registry import register

    experiment = sweep.config.mlflow.experiment or sweep.config.name
    try:
        done = register(made, tracking_uri=uri, experiment=experiment, artifacts=artifacts, upload=upload, name=name)
    except Exception as error:  # server, network or disk: the folder is written, and can be registered again
        return Published(trouble=f"{type(error).__name__}: {error}".splitlines()[0])
    note = (
        ""
        if done.run_id is not None
        else (
            f"MLflow has no run of {made.kept.label}, and so no accuracies; `oneshot run` its sweep writes it, and "
            "the same command links it"
        )
    )
    return Published(registered=done, uri=uri, note=note)


def _push(made: "Export", repository: str, *, public: bool, told: Published) -> str:
    from oneshot.export.push import push

    _say(f"uploads {made.num_bytes / 2**20:.1f} MiB to {repository}")
    message = f"{made.kept.label}, step {made.kept.step}, {made.dtype} (oneshot {made.kept.asked.key})"
    address = push(made.folder, repository, public=public, message=message)
    if told.registered is not None:
        from oneshot.sweep.tracking.registry import note_push

        try:
            note_push(told.registered.model_id, tracking_uri=told.uri, repository=repository)
        except Exception as error:  # as above: it is where it should be, and only the note of it is missing
            _say(f"MLflow does not know of {repository}: {error}".splitlines()[0])
    return address


def _facts(made: "Export", told: Published, address: str | None) -> dict[str, Any]:
    done = told.registered
    return {
        "folder": str(made.folder),
        **{name: made.facts[name] for name in ("key", "label", "step", "dtype")},
        "num_bytes": made.num_bytes,
        "mlflow": None
        if done is None
        else {
            "tracking_uri": told.uri,
            "experiment": done.experiment,
            "model_id": done.model_id,
            "run_id": done.run_id,
            "version": done.version,
        },
        "hub": address,
    }


def _print(made: "Export", told: Published, address: str | None, *, to: Path) -> None:
    size = made.num_bytes / 2**20
    print(f"{to}: {made.kept.label}, step {made.kept.step}, {made.dtype}, {size:.1f} MiB")
    if (done := told.registered) is not None:
        print(f"MLflow: {done.model_id}, under Models of the experiment {done.experiment!r}")
        if done.version is not None:
            print(f"version {done.version} of the registered model")
    if address is not None:
        print(f"hub: {address}")
