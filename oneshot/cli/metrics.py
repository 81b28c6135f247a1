"""A verb that writes a sweep's numbers for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from oneshot.cli.options import StorageOption, app
from oneshot.cli.report import read_gathered


class Form(StrEnum):
    """What the files are for."""

    CSV = "csv"
    PARQUET = "parquet"
    TENSORBOARD = "tensorboard"
    OPTUNA = "optuna"


@app.command("export-metrics")
def export_metrics(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A sweep file, the name of a sweep in the storage, or a bundle")
    ],
    form: Annotated[Form, typer.Option("--to", help="Tables, TensorBoard's event files, or Optuna's journals")],
    out: Annotated[Path | None, typer.Option(help="Folder to write into; default: NAME-metrics")] = None,
    storage: StorageOption = None,
) -> None:
    """Write a sweep's metrics for other tools.

    As CSV or Parquet tables, for TensorBoard and W&B, or for Optuna's dashboard.

    W&B reads TensorBoard's files with `wandb sync FOLDER`. `optuna` writes one journal file for each study of a search.
    """
    gathered, sweep_run = read_gathered(name, storage)
    folder = out or Path(f"{gathered.name}-metrics")
    if form is Form.OPTUNA:
        from oneshot.errors import UserError
        from oneshot.sweep.search.journal import write_journals

        if sweep_run is None:
            raise UserError(f"{name}: a bundle has no studies; name a sweep of the storage")
        paths = write_journals(sweep_run, folder)
    elif form is Form.TENSORBOARD:
        from oneshot.report.metric_files import write_tensorboard

        paths = write_tensorboard(gathered, folder)
    else:
        from oneshot.report.metric_files import write_tables

        paths = write_tables(gathered, folder, suffix=form.value)
    shown = ", ".join(path.name for path in paths) if len(paths) <= 8 else f"{len(paths)} folders"
    print(f"{folder}: {shown or 'nothing, because no trial has results'}")
