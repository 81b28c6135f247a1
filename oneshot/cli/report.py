"""Verbs about what a sweep has found."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oneshot.cli.options import (
    ClusterOption,
    JsonOption,
    MlflowOption,
    StorageOption,
    app,
    cluster_at,
    find_name,
    load_sweep,
    relay,
    results,
    with_mlflow,
)
from oneshot.errors import UserError
from oneshot.logs import printable

if TYPE_CHECKING:
    from oneshot.config.file import Sweep
    from oneshot.plan.plan import Plan
    from oneshot.report.page import Report
    from oneshot.report.runs import Gathered
    from oneshot.store.store import Store

Reported = Annotated[
    str, typer.Argument(metavar="NAME", help="a sweep file, the name of a sweep in the storage, or a bundle")
]


@app.command()
def report(
    name: Reported,
    storage: StorageOption = None,
    mlflow: MlflowOption = None,
    out: Annotated[Path | None, typer.Option(help="also put page, JSON and figures into this folder")] = None,
    bundle: Annotated[bool, typer.Option("--bundle", help="write NAME.oneshot.zip, for a reviewer, instead")] = False,
    address: ClusterOption = None,
    publish: Annotated[bool, typer.Option("--publish/--no-publish", help="show the report in MLflow")] = True,
    as_json: JsonOption = False,
) -> None:
    """Judge a sweep's claims, and write its report: one page that needs nothing else; also while it still runs."""
    if address is not None:
        _report_elsewhere(name, storage, address, local=bundle or out is not None, as_json=as_json)
        return
    from oneshot.report.bundle import SUFFIX, is_bundle, read_bundle, write_bundle
    from oneshot.report.page import make_report

    if is_bundle(Path(name)):
        gathered, known = read_bundle(Path(name)), None
    else:
        sweep, planned, store = _begun(name, storage)
        gathered, known = _gathered(sweep, planned, store), (with_mlflow(sweep, mlflow), planned, store)
    if bundle:
        target = (out or Path()) / f"{gathered.name}{SUFFIX}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bundle(gathered, target)
        print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB; `oneshot report {target}` judges it again")
        return
    made = make_report(gathered)
    if known is None and out is None:
        out = Path(f"{gathered.name}-report")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in made.files.items():
            (out / file).write_text(text, encoding="utf-8")
    if as_json:
        print(json.dumps([one.to_json() for one in made.judged], indent=2))
    else:
        show_verdict(made)
    where = str(out) if known is None else keep_and_publish(made, *known, publish=publish)
    print(f"report: {where}/report.html", file=sys.stderr if as_json else sys.stdout)
    if made.cannot_judge:
        names = ", ".join(dict.fromkeys(one.name for one in made.cannot_judge))
        print(f"oneshot: no seed has all the runs that these claims need: {printable(names)}", file=sys.stderr)
        raise typer.Exit(1)


def _report_elsewhere(name: str, storage: str | None, address: str, *, local: bool, as_json: bool) -> None:
    """The head of a cluster, which sees the storage, makes the report; it is in MLflow and in the storage then."""
    if local:
        raise UserError("--address: the report is made where the storage is seen; --out and --bundle work there")
    relay(cluster_at(address), "report", name, storage, *(["--json"] if as_json else []))


def _begun(name: str, storage: str | None) -> tuple["Sweep", "Plan", "Store"]:
    """A sweep as it was run last; by a file, with what the file says now of claims and published numbers.

    Raises:
        UserError: the storage has no such sweep.
    """
    from dataclasses import replace

    from oneshot.plan.recorded import begun_sweep

    sweep_name, store = find_name(name, storage)
    sweep, planned = begun_sweep(store, sweep_name)
    if not Path(name).is_file():
        return sweep, planned, store
    written = load_sweep(Path(name), None)
    updates = {field: getattr(written.config, field) for field in ("claims", "published", "mlflow")}
    return replace(sweep, config=sweep.config.model_copy(update=updates), source=written.source), planned, store


def _gathered(sweep: "Sweep", planned: "Plan", store: "Store") -> "Gathered":
    from oneshot.config.paths import SettingError
    from oneshot.plan.claims import FILE, comparisons
    from oneshot.report.runs import gather

    found = gather(sweep, planned, store)
    try:
        comparisons(found.frozen.claims, found.cells)
    except SettingError as error:
        record = f"{store.sweep(planned.name).path}/{FILE}"
        place = ".".join(map(str, error.where))
        raise UserError(f"{record}: {place}: {error.message}; restore what was frozen") from error
    try:
        comparisons(found.amended, found.cells)
    except SettingError as error:
        raise sweep.source.error((), f"a claim that was added: {error.message}") from error
    return found


def show_verdict(made: "Report") -> None:
    """Prints the verdict table, and beneath it what must be known beside the numbers."""
    from oneshot.cli.tables import note_lines, verdict_table

    if not made.judged:
        print("the sweep has no claims: nothing is judged")
        return
    console = results()
    console.print(verdict_table(made.judged))
    for line in note_lines(made.judged):
        console.print(line, highlight=False, soft_wrap=True)


def keep_and_publish(made: "Report", sweep: "Sweep", planned: "Plan", store: "Store", *, publish: bool = True) -> str:
    """Writes the report into the store and MLflow; returns where in the store."""
    from oneshot.sweep.tracking.publish import keep_report, publish_report

    where = keep_report(made, planned, store)
    if publish and (trouble := publish_report(made, sweep, planned, store)):
        print(f"oneshot: the report is not in MLflow ({printable(trouble)}); it is in {where}", file=sys.stderr)
    return where


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a sweep file, a name in the storage, or a bundle")],
    b: Annotated[str, typer.Argument(metavar="B", help="another, or the same in `--other-storage`")],
    storage: StorageOption = None,
    other_storage: Annotated[str | None, typer.Option(help="of B, where it is not A's")] = None,
    as_json: JsonOption = False,
) -> None:
    """Put two sweeps, or one sweep by two versions of the code, side by side on the cells that both have."""
    from oneshot.cli.tables import comparison_lines, comparison_table
    from oneshot.report.bundle import is_bundle, read_bundle
    from oneshot.report.compare import compare as compare_sweeps

    def find(name: str, where: str | None) -> "Gathered":
        return read_bundle(Path(name)) if is_bundle(Path(name)) else _gathered(*_begun(name, where))

    found = compare_sweeps(find(a, storage), find(b, other_storage or storage))
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    rest = comparison_lines(found, a=a, b=b)
    if not found.lines:
        what = f"{a} and {b} have nothing to compare: no suite of a cell with a finished trial on both sides"
        raise UserError("; ".join([what, *rest]))
    if found.environments:
        print(printable(f"other environments: {found.environments}"))
    results().print(comparison_table(found, a=a, b=b))
    for line in rest:
        print(line)
