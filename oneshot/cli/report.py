"""Verbs about a sweep's results."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.find import find_name, relay, with_mlflow
from oneshot.cli.options import ClusterOption, JsonOption, MlflowOption, StorageOption, app, load_sweep, results, warn
from oneshot.errors import UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.plan.sweep_run import SweepRun
    from oneshot.report.page import Report
    from oneshot.report.runs import Gathered


@app.command()
def report(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A sweep file, the name of a sweep in the storage, or a bundle")
    ],
    storage: StorageOption = None,
    mlflow: MlflowOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write page, JSON and figures into this folder")] = None,
    bundle: Annotated[bool, typer.Option("--bundle", help="Write NAME.oneshot.zip for a reviewer instead")] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="With --bundle: sign it with this private SSH key")
    ] = None,
    signers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Accept a bundle only if one of these allowed signers signed it")
    ] = None,
    address: ClusterOption = None,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="Show the report in MLflow")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge a sweep's claims and write its report.

    The report is one HTML page that needs no other files. It can be written while the sweep runs.
    """
    if sign is not None and not bundle:
        raise UserError("--sign: signs a bundle; add --bundle")
    if address is not None:
        if bundle or out is not None or signers is not None:
            raise UserError(
                "--out, --bundle and --signers are about files of this machine; leave out --address, or run "
                "`oneshot report` there"
            )
        relay(address, "report", name, storage, json=as_json)
        return
    from oneshot.report.page import make_report

    gathered, sweep_run = _read(name, storage, mlflow, signers)
    if bundle:
        _write_bundle(gathered, out, sign)
        return
    made = make_report(gathered)
    if sweep_run is None and out is None:
        out = Path(f"{gathered.name}-report")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in made.files.items():
            (out / file).write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps([claim.to_json() for claim in made.judged], indent=2))
    else:
        show_verdict(made)
    folder = str(out) if sweep_run is None else keep_and_publish(made, sweep_run, publish=publish)
    print(f"report: {folder}/report.html", file=sys.stderr if as_json else sys.stdout)
    if made.cannot_judge:
        names = ", ".join(dict.fromkeys(claim.name for claim in made.cannot_judge))
        warn(f"cannot judge these claims, because no seed has all the runs that they need: {names}")
        raise typer.Exit(1)


def read_gathered(name: str, storage: str | None) -> "tuple[Gathered, SweepRun | None]":
    """Return the results of a sweep or a bundle, and the run of a sweep; a bundle has none."""
    return _read(name, storage, None, None)


def _read(
    name: str, storage: str | None, mlflow: str | None, signers: Path | None
) -> "tuple[Gathered, SweepRun | None]":
    """Return what a report is made from, and the run of a sweep; a bundle has none. Says who signed a bundle."""
    from oneshot.report.bundle import is_bundle, read_bundle

    if not is_bundle(Path(name)):
        if signers is not None:
            raise UserError(f"--signers: {name} is not a bundle, and only bundles are signed; leave it out")
        sweep_run = _begun(name, storage, mlflow)
        return _gathered(sweep_run), sweep_run
    gathered = read_bundle(Path(name), signers=signers)
    for line in [*gathered.warnings, *([f"signed by {gathered.signed_by}"] if gathered.signed_by else [])]:
        print(printable(f"{name}: {line}"), file=sys.stderr)
    return gathered, None


def _write_bundle(gathered: "Gathered", out: Path | None, key: Path | None) -> None:
    """Write the bundle into a folder, by default this one, and say how large it is."""
    from oneshot.report.bundle import SUFFIX, write_bundle

    target = (out or Path()) / f"{gathered.name}{SUFFIX}"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bundle(gathered, target, key=key)
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB; to judge it again, use `oneshot report {target}`")


def _begun(name: str, storage: str | None, mlflow: str | None) -> "SweepRun":
    """Return a sweep as it was last run; given a file, with that file's claims and published numbers.

    Raises UserError: the storage has no such sweep.
    """
    from dataclasses import replace

    from oneshot.plan.loader import begun_sweep

    sweep_name, store = find_name(name, storage)
    sweep_run = begun_sweep(store, sweep_name)
    sweep = sweep_run.sweep
    if Path(name).is_file():
        written = load_sweep(Path(name))
        updates = {field: getattr(written.config, field) for field in ("claims", "published", "mlflow")}
        updates["groups"] = {**written.config.groups, **sweep.config.groups}  # that of the sweep cannot be changed
        sweep = replace(sweep, config=sweep.config.model_copy(update=updates), source=written.source)
    return replace(sweep_run, sweep=with_mlflow(sweep, mlflow))


def _gathered(sweep_run: "SweepRun") -> "Gathered":
    from oneshot.config.paths import SettingError
    from oneshot.plan.claims import comparisons
    from oneshot.plan.frozen import FILE
    from oneshot.report.runs import gather

    gathered = gather(sweep_run)
    try:
        comparisons(gathered.frozen.claims, gathered.cells)
    except SettingError as error:
        record = f"{sweep_run.folder.path}/{FILE}"
        place = ".".join(map(str, error.where))
        raise UserError(f"{record}: {place}: {error.message}; restore the frozen file") from error
    try:
        comparisons(gathered.amended, gathered.cells)
    except SettingError as error:
        raise sweep_run.sweep.source.error((), f"an added claim: {error.message}") from error
    return gathered


def show_verdict(made: "Report") -> None:
    """Print the verdict table, and the notes below it."""
    from oneshot.cli.verdict_tables import note_lines, verdict_table

    if not made.judged:
        print("the sweep has no claims, so there are no verdicts")
        return
    console = results()
    console.print(verdict_table(made.judged))
    for line in note_lines(made.judged):
        console.print(line, highlight=False, soft_wrap=True)


def keep_and_publish(made: "Report", sweep_run: "SweepRun", *, publish: bool = True) -> str:
    """Write the report into the store and MLflow; return its folder in the store."""
    from oneshot.sweep.tracking.publish import keep_report, publish_report

    folder = keep_report(made, sweep_run)
    if publish and (reason := publish_report(made, sweep_run)):
        warn(f"the report is in {folder}, but not in MLflow ({reason})")
    return folder


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A sweep file, a name in the storage, or a bundle")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, or the same name in --other-storage")],
    storage: StorageOption = None,
    other_storage: Annotated[str | None, typer.Option(help="Trial store of B; default: that of A")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two sweeps on the cells that both have.

    Also compares one sweep as run by two versions of the code.
    """
    from oneshot.cli.verdict_tables import comparison_lines, comparison_table
    from oneshot.report.bundle import is_bundle, read_bundle
    from oneshot.report.compare import compare as compare_sweeps

    def read(name: str, store: str | None) -> "Gathered":
        return read_bundle(Path(name)) if is_bundle(Path(name)) else _gathered(_begun(name, store, None))

    comparison = compare_sweeps(read(a, storage), read(b, other_storage or storage))
    if as_json:
        print(json.dumps(comparison.to_json(), indent=2))
        return
    lines = comparison_lines(comparison, a=a, b=b)
    if not comparison.lines:
        reason = f"{a} and {b} have no suite of a common cell with finished trials on both sides"
        raise UserError("; ".join([reason, *lines]))
    if comparison.environments:
        print(printable(f"different environments: {comparison.environments}"))
    results().print(comparison_table(comparison, a=a, b=b))
    for line in lines:
        print(line)
