"""What verbs share: the application, options, and finding a sweep by its file or its name."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.errors import UserError, nearest
from oneshot.logs import printable

if TYPE_CHECKING:
    from rich.console import Console

    from oneshot.config.file import Sweep
    from oneshot.plan.plan import Plan, Trial
    from oneshot.store.store import Store
    from oneshot.sweep.cluster.jobs import Cluster

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The replication lab for one-shot RLVR: plan, run and watch sweeps of GRPO trials.",
)


def _no_password(storage: str | None) -> str | None:
    """Refuses `--storage` with a password: it is shown, logged and kept."""
    from oneshot.config.sweep import STORAGE_MEND, without_password

    try:
        return without_password(storage, STORAGE_MEND)
    except ValueError as error:
        raise UserError(f"--storage: {error}") from error


File = Annotated[Path, typer.Argument(metavar="FILE", help="a sweep file")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="a setting above the file's")]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", envvar="ONESHOT_STORAGE", callback=_no_password, help="above the file's `storage`"),
]
FarStorageOption = Annotated[
    str | None,
    typer.Option("--storage", callback=_no_password, help="as the cluster sees it; above the context's and the file's"),
]
MlflowOption = Annotated[
    str | None,
    typer.Option("--mlflow", envvar="MLFLOW_TRACKING_URI", help="tracking server; above the file's"),
]
RayOption = Annotated[
    str | None, typer.Option("--address", help="a Ray cluster that this machine is part of: host:port, or auto")
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--address", help="a cluster elsewhere: http://HEAD:8265, or a context of cluster/contexts.yaml"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout")]


def results() -> "Console":
    """Where tables go: as wide as the terminal, and wide enough where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def load_sweep(file: Path, settings: list[str] | None) -> "Sweep":
    """A sweep file with `--set` on top."""
    from oneshot.config.file import load

    return load(file, overrides=tuple(settings or ()))


def with_mlflow(sweep: "Sweep", uri: str | None) -> "Sweep":
    """The sweep with another tracking server than the file's."""
    if uri is None:
        return sweep
    from oneshot.config.sweep import MLFLOW_MEND, without_password

    try:
        without_password(uri, MLFLOW_MEND)
    except ValueError as error:
        raise UserError(f"--mlflow: {error}") from error
    config = sweep.config
    mlflow = config.mlflow.model_copy(update={"tracking_uri": uri})
    return replace(sweep, config=config.model_copy(update={"mlflow": mlflow}))


def is_elsewhere(address: str) -> bool:
    """Whether an address is of Ray Jobs, a URL or a context, and not of a Ray that this machine is part of."""
    return "://" in address or (":" not in address and address != "auto")


def check_ray(address: str | None, *, instead: str | None) -> None:
    """Refuses an address of Ray Jobs where this process itself is to join Ray.

    Raises:
        UserError: says what to call instead.
    """
    if address is not None and is_elsewhere(address):
        elsewhere = (
            f"from elsewhere: `oneshot {instead} --address {address}`" if instead else "there is no other way yet"
        )
        raise UserError(
            f"--address {address}: give host:port of a Ray that this machine is part of, or auto; {elsewhere}"
        )


def cluster_at(address: str) -> "Cluster":
    """Ray Jobs at a URL or context."""
    from oneshot.config.contexts import find_context
    from oneshot.sweep.cluster.jobs import Cluster

    return Cluster(find_context(address), name=address)


def far_storage(storage: str | None) -> str | None:
    """`--storage` of a verb about a cluster elsewhere, for which this machine's ONESHOT_STORAGE says nothing."""
    return None if storage == os.environ.get("ONESHOT_STORAGE") else storage


def sweep_name(name: str) -> str:
    """A sweep's name by its file, or as it is.

    Raises:
        UserError: it is neither.
    """
    if Path(name).is_file():
        return load_sweep(Path(name), None).config.name
    from oneshot.config.sweep import NAME

    if not re.fullmatch(NAME, name):
        raise UserError(f"{name}: no such file, and no name of a sweep (letters, digits, _ and -)")
    return name


def with_known(sweep: "Sweep", store: "Store") -> "Sweep":
    """The sweep with what is frozen of it, and every ranking that can be made now."""
    from oneshot.plan.ranking import known_rankings
    from oneshot.plan.revisions import frozen_revisions
    from oneshot.plan.studies import frozen_search

    folder = store.sweep(sweep.config.name)
    ranked, _ = known_rankings(sweep, store)
    return frozen_search(frozen_revisions(ranked, folder), folder)


def resolved(sweep: "Sweep", store: "Store") -> tuple["Sweep", "Plan"]:
    """The sweep and its plan with every key known that can be.

    Asks the hub for the commit of a revision that is none, once for each sweep.
    """
    from oneshot.plan.plan import make_plan
    from oneshot.plan.ranking import pin_rankings
    from oneshot.plan.revisions import frozen_revisions, pin_revisions
    from oneshot.plan.studies import frozen_search

    folder = store.sweep(sweep.config.name)
    frozen = frozen_search(frozen_revisions(pin_rankings(sweep, store), folder), folder)
    planned = make_plan(frozen)
    pinned = pin_revisions(frozen, planned, folder)
    return pinned, planned if pinned is frozen else make_plan(pinned)


def find_sweep(name: str, storage: str | None, settings: list[str] | None) -> tuple["Sweep", "Store"]:
    """A sweep by its file, or by its name in the storage; and that storage."""
    from oneshot.config.file import read
    from oneshot.store.store import Store

    if Path(name).is_file():
        sweep = load_sweep(Path(name), settings)
        return sweep, Store(storage or sweep.config.storage)
    store = Store(storage or "runs")
    text = store.sweep(sweep_name(name)).read("sweep.yaml")
    if text is None:
        raise UserError(f"{name}: no such file, and no sweep of that name in {store.root}; name its --storage")
    return read(text, name=name, overrides=tuple(settings or ())), store


def find_name(name: str, storage: str | None) -> tuple[str, "Store"]:
    """A sweep's name by its file, or as it is; and the storage that it is in."""
    from oneshot.store.store import Store

    if Path(name).is_file():
        sweep = load_sweep(Path(name), None)
        return sweep.config.name, Store(storage or sweep.config.storage)
    return sweep_name(name), Store(storage or "runs")


def read_cells(text: str, axes: list[str]) -> dict[str, str]:
    """`model=a,example=b` -> cell by axis.

    Raises:
        UserError: it has another form, or names another axis.
    """
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        axis, equals, name = part.partition("=")
        if not equals or axis not in axes:
            raise UserError(f"--cell {part}: write it as axis=name{nearest(axis, axes)}")
        found[axis] = name
    return found


def choose_trial(sweep: "Sweep", cell: str, seed: int) -> "Trial":
    """The trial that `--cell` and `--seed` name."""
    from oneshot.plan.plan import make_plan, with_seed
    from oneshot.store.store import Store

    wanted = read_cells(cell, list(sweep.config.axes))
    planned = make_plan(with_known(sweep, Store(sweep.config.storage)))
    trials = {tuple(trial.cell.items()): trial for trial in planned.trials if trial.phase == "grid"}
    matching = [t for t in trials.values() if all(t.cell[axis] == name for axis, name in wanted.items())]
    if len(matching) != 1:
        there = "\n  ".join(",".join(f"{axis}={name}" for axis, name in names) for names in trials)
        found = f"names {len(matching)} cells" if matching else "names no cell of the grid"
        raise UserError(f"--cell {cell or '(none)'}: {found}; choose one of\n  {there}")
    return with_seed(matching[0], seed)


def relay(cluster: "Cluster", verb: str, name: str, storage: str | None, *arguments: str) -> None:
    """Has the head of a cluster, which sees the storage, run a verb about a sweep that was submitted to it."""
    sweep = sweep_name(name)
    root = cluster.last(sweep, storage=far_storage(storage)).storage
    code, said = cluster.ask([verb, sweep, "--storage", root, *arguments])
    print(printable(said), end="")
    if code:
        raise typer.Exit(code)
