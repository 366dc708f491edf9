"""The report in a headless browser, as a reader has it: opened as a file, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from skips import BROWSER
from test_report import written

from vit2snn.measure.report import report_page
from vit2snn.storage.documents import read_artifacts

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
ALLOWED = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on two artifacts."""
    folder = tmp_path_factory.mktemp("report")
    artifacts = read_artifacts([written(folder / "first"), written(folder / "second")])
    (folder / "report.html").write_text(report_page(artifacts), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the report in a window of some width; in the end nothing may have gone wrong in it."""
    wrong: list[str] = []
    contexts = []

    def open_page(width: int, theme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(ALLOWED) else wrong.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector(".plot .main-svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def opened_artifact(page: Any, index: int) -> Any:
    """All about one of the artifacts; the first is open already."""
    artifact = page.locator("details.artifact").nth(index)
    if index:
        artifact.locator("summary").first.click()
    return artifact


def names(artifact: Any) -> list[str]:
    """The first column of the rows that are shown of the table of modules."""
    found: list[str] = artifact.locator(".sortable tbody tr:not([hidden]) th").all_inner_texts()
    return found


def test_charts_of_an_artifact_are_drawn_when_it_is_opened(opened: Any) -> None:
    page = opened(1200)
    assert page.locator("details.artifact").nth(0).locator(".main-svg").count() > 0
    second = page.locator("details.artifact").nth(1)
    assert second.locator(".main-svg").count() == 0
    opened_artifact(page, 1)
    second.locator(".heatmaplayer image").wait_for(state="attached")
    widths = page.evaluate("[...document.querySelectorAll('.artifact[open] .plot')].map((e) => e.firstChild.clientWidth)")
    assert len(widths) == 4 and min(widths) > 800


def test_a_click_on_a_heading_sorts_the_modules(opened: Any) -> None:
    artifact = opened_artifact(opened(1200), 0)
    query, head, patch = "blocks.0.attn.spiking_attention.query", "head.neuron", "patch_embed.proj.neuron"
    assert names(artifact) == [query, head, patch]  # by error

    def click(heading: str) -> str:
        button = artifact.locator(".sortable").get_by_role("button", name=heading)
        button.focus()
        button.press("Enter")
        state: str = button.locator("..").get_attribute("aria-sort")
        return state

    assert click("error") == "ascending"
    assert names(artifact) == [patch, head, query]
    assert click("neuron or block") == "ascending"
    assert names(artifact) == [query, head, patch]
    assert click("neuron or block") == "descending"
    assert names(artifact) == [patch, head, query]
    for _ in range(2):  # in both directions what has no number comes last
        click("saturated")
        assert names(artifact)[-1] == head
    assert artifact.locator(".sortable th[aria-sort=none]").count() == 5


def test_the_filter_hides_other_modules(opened: Any) -> None:
    artifact = opened_artifact(opened(1200), 1)
    artifact.get_by_label("Filter").fill("ATTN")
    assert names(artifact) == ["blocks.0.attn.spiking_attention.query"]
    assert artifact.locator("output").inner_text() == "1 of 3"


def wait_for(page: Any, seen: Callable[[], bool]) -> None:
    """Wait until something is seen: by asking again, since the page lets nobody evaluate text in it."""
    for _ in range(250):
        if seen():
            return
        page.wait_for_timeout(20)
    raise AssertionError("waited for 5 seconds")


def colours(page: Any) -> tuple[str, ...]:
    """Of the page, of a chart's text, and of a chart's line."""
    script = """() => [
      getComputedStyle(document.body).backgroundColor,
      getComputedStyle(document.querySelector(".plot .xtick text")).fill,
      getComputedStyle(document.querySelector(".plot .scatterlayer .js-line")).stroke,
    ]"""
    return tuple(page.evaluate(script))


def test_the_theme_button_recolours_page_and_charts(opened: Any) -> None:
    page = opened(1200, "light")
    button, system = page.get_by_role("button", name="Theme"), colours(page)
    button.click()
    assert (button.inner_text(), colours(page)) == ("Theme: light", system)
    button.click()
    assert button.inner_text() == "Theme: dark"
    assert all(now != before for now, before in zip(colours(page), system, strict=True))
    dark = colours(page)
    button.click()
    assert (button.inner_text(), colours(page)) == ("Theme: auto", system)
    page.emulate_media(color_scheme="dark")
    wait_for(page, lambda: colours(page) == dark)


def test_what_the_legend_hides_stays_hidden_in_another_theme(opened: Any) -> None:
    page = opened(1200)
    shown = ".plot >> nth=0 >> .scatterlayer .trace"
    before = page.locator(shown).count()
    page.locator(".plot >> nth=0 >> .legendtoggle").first.click()
    wait_for(page, lambda: page.locator(shown).count() < before)
    hidden = page.locator(shown).count()
    page.get_by_role("button", name="Theme").click()
    assert page.locator(shown).count() == hidden


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_its_window(opened: Any, tmp_path: Path, width: int, theme: str) -> None:
    page = opened(width, theme)
    for index in (0, 1):
        opened_artifact(page, index)
    page.get_by_text("What became of the 2 modules").first.click()
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # No chart is wider than the window either.
    assert max(page.evaluate("[...document.querySelectorAll('.plot')].map((e) => e.getBoundingClientRect().right)")) <= width
