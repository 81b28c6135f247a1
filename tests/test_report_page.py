"""The report's page as a person opens it: a file, in a real browser, by day, by night, on paper, on a telephone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, why_not
from builders import sweep_run
from synthetic import HOSTILE, SMALL, make_store

from oneshot.plan.frozen import Planned, freeze
from oneshot.report.page import make_report
from oneshot.report.runs import gather

pytest_plugins = ["pages"]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]

CLAIMS = """\
claims:
  - name: one-shot beats base
    metric: eval/arithmetic/pass_at_1
    a: {arm: outcome, at: last}
    b: {at: start}
    for_each: [model]
    expect: {greater_by: 0.0}
  - name: "<b>bold</b> & format"
    metric: eval/arithmetic/pass_at_1
    a: {arm: format}
    b: {arm: outcome}
    expect: {greater_by: 0.0}
published:
  - by: Somebody, Table 1
    how: best checkpoint on test, one seed
    columns: [arithmetic]
    rows: [{cell: {arm: outcome}, values: [0.728]}]
"""
TEXT = SMALL.replace("[0, 1, 2]", "[0, 1, 2, 3]") + CLAIMS
CONTRAST = """
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = (c) => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => [r, g, b].map(linear).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (one) => { for (; one; one = one.parentElement) {
  const color = rgb(getComputedStyle(one).backgroundColor); if (color.length === 3 || color[3] === 1) return color; }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 24, 29] : [255, 255, 255]; };
const found = [];
for (const one of document.querySelectorAll("body *")) {
  const isDrawn = one.closest("svg") !== null;
  const says = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (isDrawn ? one.tagName !== "text" : !says) continue;
  if (!one.getClientRects().length) continue;
  const style = getComputedStyle(one);
  const [a, b] = [luminance(rgb(isDrawn ? style.fill : style.color)), luminance(behind(one))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), one.textContent.trim().slice(0, 60)]);
}
return found;
"""
"""Contrast of every text with what is behind it, by WCAG 2's formula."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    sweep, plan, store = make_store(folder, TEXT, failed=["tiny-llama/format seed 2"])
    freeze(store.sweep(plan.name), Planned.of(sweep.config, plan))
    for name, text in make_report(gather(sweep_run(sweep, plan, store))).files.items():
        (folder / name).write_text(text)
    return folder / "report.html"


@pytest.fixture
def opened(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.open(page)
    yield browser
    browser.emulate()
    browser.resize(0, 0)


def test_the_page_shows_verdict_numbers_and_figures_and_asks_the_network_for_nothing(opened: Browser) -> None:
    text = opened.text
    for said in (
        "one-shot beats base",
        "supported",
        "contradicted",
        "Claims frozen 20",
        "15 of 16 trials finished, 1 failed",
    ):
        assert said in text
    assert "the loss is not finite" in text, "a trial that failed is listed with its reason"
    assert "1 of 16 trainings failed and count as their start: tiny-llama/format seed 2" in text
    assert "Somebody, Table 1" in text and "best checkpoint on test, one seed" in text
    assert "What tiny models can and cannot show" in text
    assert len(opened.all("figure svg")) >= 5
    assert opened.console_errors() == []
    assert opened.network_requests() == []


def test_what_models_and_files_say_is_text_on_the_page(opened: Browser) -> None:
    assert opened.run("return document.title") == "small: verdict"
    opened.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    shown = [one.text for one in opened.all("pre")]
    assert any(HOSTILE.strip()[:40] in text for text in shown)
    assert opened.all("script") == []
    assert "<b>bold</b> & format" in opened.text
    assert opened.all("#claims b") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_readable_in_both_themes(opened: Browser, page: Path, scheme: str) -> None:
    opened.emulate(scheme=scheme)  # type: ignore[arg-type]
    opened.open(page)
    contrasts = opened.run(CONTRAST)
    assert len(contrasts) > 200
    assert [found for found in contrasts if found[0] < 4.5] == []
    background = opened.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_on_paper_everything_is_unfolded_and_on_white(opened: Browser, page: Path) -> None:
    opened.emulate(media="print")
    opened.open(page)
    assert opened.run("return getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
    heights = opened.run(
        "return [...document.querySelectorAll('#completions .beside')].map((one) => one.getBoundingClientRect().height)"
    )
    assert len(heights) > 2
    assert min(heights) > 0, "what is folded on the screen is printed"


def test_on_a_telephone_the_page_is_no_wider_than_the_screen(opened: Browser, page: Path) -> None:
    opened.resize(390, 844)
    opened.open(page)
    assert opened.run("return document.documentElement.scrollWidth") <= 390
