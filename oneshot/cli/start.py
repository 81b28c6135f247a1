"""Verbs with which a new user begins: a new sweep file, and the sweeps that are shipped."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from oneshot.cli.options import JsonOption, app, results
from oneshot.errors import UserError


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the new sweep")] = "my_sweep",
    source: Annotated[
        str | None, typer.Option("--from", metavar="SWEEP", help="Copy this shipped sweep; see `oneshot sweeps`")
    ] = None,
) -> None:
    """Write a commented sweep file to start from, NAME.yaml."""
    from oneshot.config.fields import NAME
    from oneshot.config.shipped import starter

    if not re.fullmatch(NAME, name):
        raise UserError(f"{name!r} is not a valid name of a sweep; use letters, digits, _ and -")
    path = Path(f"{name}.yaml")
    text = starter(name, source=source)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path}: the file exists; choose another name, or remove it") from error
    print(f"wrote {path}")
    print(f"next: oneshot plan {path}, then oneshot run {path}")


@app.command()
def sweeps(as_json: JsonOption = False) -> None:
    """List the shipped sweeps with their questions.

    `oneshot run NAME` runs one; `oneshot init --from NAME` copies one.
    """
    from oneshot.config.file import load
    from oneshot.config.shipped import shipped_sweeps

    questions = {name: load(path).config.question for name, path in shipped_sweeps().items()}
    if as_json:
        print(json.dumps(questions, indent=2))
        return
    from oneshot.cli.tables import plain_table

    table = plain_table(["sweep", "question"])
    for name, question in questions.items():
        table.add_row(name, question)
    results().print(table)
