"""A sweep as a person finds it in MLflow: a real server, a real browser."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import Browser, why_not
from builders import located
from synthetic import HOSTILE, SMALL, make_store
from test_faults import Server

from oneshot.plan.plan import Plan
from oneshot.sweep.tracking.tracker import Tracker
from oneshot.sweep.tracking.views import CELLS, TRIALS, key

pytest_plugins = ["labs", "pages"]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TEXT = SMALL.replace('    tiny-llama: {set: {model.path: "tiny:llama"}}\n', "").replace("[0, 1, 2]", "[0, 1]")
"""One model, two arms, two seeds."""
VERDICT = """**1 of 2 claims holds.** One example lifts held-out arithmetic.

| claim | verdict | gain |
|---|---|---|
| outcome lifts | holds | +0.46 |
| format lifts | undecided | +0.07 |
"""
REPORT = "<!doctype html><title>r</title><h1>The report</h1><p id=p>still</p><script>p.textContent = 'drawn'</script>"
LABELS = [f"tiny-qwen2/{arm} seed {seed}" for arm in ("outcome", "format") for seed in (0, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server with one sweep."""

    uri: str
    plan: Plan
    experiment: str
    parent: str
    child: str
    """A trial's run."""

    def page(self, path: str = "", **query: str) -> str:
        """The address of a page of the experiment, for people who train models."""
        facts = "&".join(f"{name}={value}" for name, value in {"workflowType": "machine_learning", **query}.items())
        return f"{self.uri}/#/experiments/{self.experiment}/runs{path}?{facts}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("ui")
    sweep, plan, store = make_store(folder / "lab", TEXT)
    (folder / "server").mkdir()
    shutil.copy(database, folder / "server" / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(folder=folder / "server", port=port, processes=[])
    try:
        server.start()
        tracker = Tracker(plan, store, located(server.uri, experiment=plan.name))
        tracker.open(question=sweep.config.question, sweep_yaml=sweep.source.text)
        for trial in plan.trials:
            tracker.sync(trial)
        tracker.describe(VERDICT)
        tracker.publish({"report.html": REPORT})
        tracker.close("FINISHED")
        assert tracker._parent_id is not None
        yield Site(
            uri=server.uri,
            plan=plan,
            experiment=tracker._experiment_id,
            parent=tracker._parent_id,
            child=next(one.run_id for identity, one in tracker._children.items() if identity.endswith(LABELS[0])),
        )
    finally:
        server.kill()


def test_the_verdict_stands_on_the_sweeps_page_as_a_table(site: Site, browser: Browser) -> None:
    browser.open(site.page(f"/{site.parent}"))
    browser.wait_for("1 of 2 claims holds.")
    cells = browser.until(lambda: [cell.text for cell in browser.all("table td")], "a table in the description")
    assert cells[:3] == ["outcome lifts", "holds", "+0.46"]
    assert "|---" not in browser.text


def test_the_verdict_stands_over_the_list_of_runs(site: Site, browser: Browser) -> None:
    browser.open(site.page())
    browser.wait_for("1 of 2 claims holds.")
    address = browser.find("a", text="The sweep's run").get_attribute("href")
    assert address == f"{site.uri}/#/experiments/{site.experiment}/runs/{site.parent}"


def test_trials_nest_under_their_sweep_in_the_list_of_runs(site: Site, browser: Browser) -> None:
    browser.open(site.page())
    browser.find("[role=gridcell] a", text="small")
    assert LABELS[0] not in browser.text
    browser.click("[role=gridcell] button")  # a plus
    for label in LABELS:
        browser.find("[role=gridcell] a", text=label)


def test_a_trials_page_says_what_it_is_and_leads_to_its_sweep(site: Site, browser: Browser) -> None:
    browser.open(site.page(f"/{site.child}"))
    browser.wait_for("A trial of small, model tiny-qwen2, arm outcome, seed 0.")


def test_held_out_accuracy_is_drawn_by_cell(site: Site, browser: Browser) -> None:
    browser.open(site.page(compareRunsMode="CHART", viewStateShareKey=key(site.plan.name, CELLS)))
    browser.wait_for("Held-out accuracy (1)")
    paths = browser.until(lambda: _lines(browser, "eval/arithmetic/pass_at_1"), "curves")
    # four evaluations: one move and three lines to; a band of the spread is drawn beside each
    assert sum(path.count("L") == 3 for path in paths) >= 2, paths
    assert "Group: tiny-qwen2/outcome" in browser.run("return document.body.textContent")


def test_every_trial_has_a_curve_and_a_line_through_its_coordinates(site: Site, browser: Browser) -> None:
    browser.open(site.page(compareRunsMode="CHART", viewStateShareKey=key(site.plan.name, TRIALS)))
    browser.wait_for("Held-out accuracy (2)")
    paths = browser.until(lambda: _lines(browser, "eval/arithmetic/pass_at_1"), "curves")
    assert sum(path.count("L") == 3 for path in paths) >= len(LABELS), paths
    second = browser.all("[data-testid=experiment-view-compare-runs-card]")[1]
    browser.run("arguments[0].scrollIntoView()", second)  # what is not seen is not drawn
    browser.wait_for("Parallel Coordinates")
    browser.until(lambda: {"cell.arm", "seed"} <= set(_texts(browser, ".parcoords text.label")), "its axes")


def _lines(browser: Browser, title: str) -> list[str]:
    """The path of each line in the chart of a title."""
    found: list[str] = browser.run(
        """for (const card of document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]'))
             if (card.innerText.startsWith(arguments[0]))
               return [...card.querySelectorAll('.scatterlayer path.js-line')].map(path => path.getAttribute('d'));
           return [];""",
        title,
    )
    return found


def _texts(browser: Browser, css: str) -> list[str]:
    found: list[str] = browser.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)
    return found


def test_completions_open_as_a_table_and_their_markup_is_text(site: Site, browser: Browser) -> None:
    browser.open(site.page(f"/{site.child}/artifacts/eval/arithmetic/step_12.json"))
    browser.wait_for("View as table")
    browser.until(lambda: any(text.startswith(HOSTILE) for text in _texts(browser, "[role=cell] span")), "a completion")
    assert _texts(browser, "[role=columnheader]")[:3] == ["problem", "completion", "answer"]
    assert browser.driver.title != "taken"
    assert "bold" not in _texts(browser, "b")


def test_completions_of_trials_stand_side_by_side(site: Site, browser: Browser) -> None:
    browser.open(site.page(compareRunsMode="ARTIFACT", viewStateShareKey=key(site.plan.name, TRIALS)))
    browser.wait_for("eval/arithmetic/step_12.json")
    browser.until(lambda: browser.text.count(HOSTILE.strip()[:40]) >= 2, "a completion of each trial")
    assert browser.driver.title != "taken"


def test_the_report_opens_among_the_artifacts(site: Site, browser: Browser) -> None:
    browser.open(site.page(f"/{site.parent}/artifacts/report/report.html"))
    browser.driver.switch_to.frame(browser.find("iframe"))
    browser.wait_for("The report")
    browser.wait_for("drawn")
    browser.driver.switch_to.default_content()
