"""What verbs share: the application, its options, and reading the file, and printing."""

import os
import shlex
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oneshot.errors import UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from rich.console import Console

    from oneshot.config.file import SweepFile

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


LIBRARIES = ("torch", "transformers", "vllm", "ray", "optuna", "mlflow", "math-verify")


def _show_version(wanted: bool) -> None:
    if wanted:
        import platform

        from oneshot.version import __version__

        print(f"oneshot {__version__}")
        print(f"python {platform.python_version()}, {', '.join(map(_with_version, LIBRARIES))}")
        raise typer.Exit


def _with_version(library: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions and exit")
    ] = False,
) -> None:
    """Plan, run, watch and judge sweeps of GRPO trials: a replication lab for one-shot RLVR."""


def _no_password(storage: str | None) -> str | None:
    """Refuse a `--storage` that contains a password, because it is shown, logged and recorded."""
    from oneshot.config.urls import STORAGE_HINT, without_password

    try:
        return without_password(storage, STORAGE_HINT)
    except ValueError as error:
        raise UserError(f"--storage: {error}") from error


def _shipped(file: Path | None) -> Path | None:
    from oneshot.config.shipped import find_file

    return None if file is None else find_file(file)


Name = Annotated[str, typer.Argument(metavar="NAME", help="A sweep file, or the name of a sweep in the storage")]
File = Annotated[
    Path, typer.Argument(metavar="FILE", callback=_shipped, help="A sweep file, or the name of a shipped sweep")
]
OptionalFile = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", callback=_shipped, help="A sweep file, or a shipped sweep's name")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting of the file; repeatable")
]
StorageOption = Annotated[
    str | None,
    typer.Option("--storage", envvar="ONESHOT_STORAGE", callback=_no_password, help="Folder or URL of the trial store"),
]
FarStorageOption = Annotated[
    str | None, typer.Option("--storage", callback=_no_password, help="Trial store as the cluster sees it")
]
MlflowOption = Annotated[
    str | None, typer.Option("--mlflow", envvar="MLFLOW_TRACKING_URI", help="MLflow tracking server")
]
RayOption = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster that this machine belongs to: HOST:PORT, or auto")
]
ClusterOption = Annotated[
    str | None, typer.Option("--address", help="A cluster: http://HEAD:8265, or a context of cluster/contexts.yaml")
]
AnyClusterOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="A cluster: http://HEAD:8265, a context of cluster/contexts.yaml, or on one of its machines HOST:PORT",
    ),
]
StepOption = Annotated[
    Literal["last", "best"], typer.Option("--step", help="Weights: of the last step, or of the best (checkpoint.keep)")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-code", help="Let the sweep call functions of the Python files beside it")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """What a person typed about a sweep, for the commands that are suggested next."""

    name: str
    settings: list[str] | None = None
    storage: str | None = None
    address: str | None = None
    mlflow: str | None = None

    @property
    def place(self) -> str:
        """Return the sweep and its storage, as most verbs take them."""
        # what comes from the environment still does
        is_typed = self.storage is not None and self.storage != os.environ.get("ONESHOT_STORAGE")
        return shlex.join([self.name, *(["--storage", str(self.storage)] if is_typed else [])])

    @property
    def whole(self) -> str:
        """Return everything, as `run` takes it."""
        options = [part for setting in self.settings or () for part in ("--set", setting)]
        options += ["--address", self.address] if self.address else []
        is_typed = self.mlflow is not None and self.mlflow != os.environ.get("MLFLOW_TRACKING_URI")
        options += ["--mlflow", str(self.mlflow)] if is_typed else []
        return f"{self.place} {shlex.join(options)}".strip()


def results() -> "Console":
    """Return the console for tables: as wide as the terminal, or without a terminal as wide as its lines."""
    from rich.console import Console

    from oneshot.cli.tables import LARGE

    return Console(width=None if sys.stdout.isatty() else LARGE, markup=False, emoji=False)


def warn(text: str) -> None:
    """Print a message to stderr."""
    print(f"oneshot: {printable(text)}", file=sys.stderr, flush=True)


def load_sweep(file: Path, settings: list[str] | None = None, *, trust_code: bool = False) -> "SweepFile":
    """Read a sweep file with its `--set` values; with `trust_code`, functions beside it may be called.

    Raises UserError: there is no such file; names one like it.
    """
    from oneshot.config.file import load

    if not file.exists():
        from oneshot.config.shipped import shipped_sweeps

        files = {name: name for name in shipped_sweeps()}
        files |= {path.stem: str(path) for folder in ("sweeps", ".") for path in Path(folder).glob("*.yaml")}
        if names := get_close_matches(file.stem, files, n=1):
            raise UserError(f"{file}: no such file; did you mean {files[names[0]]}?")
    if trust_code:
        from oneshot.tasks.foreign import trust

        trust(file.parent)
    return load(file, overrides=tuple(settings or ()))
