"""Pages of `report` in Chromium: no errors, plots, filters, and nothing of the data that runs (`make test-report`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headstart.stages.report import report
from headstart.stages.settings import ExtractSettings, ReportSettings
from reported import LABELS, TEXT_COLUMN

pytestmark = [pytest.mark.apart, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out, made = tmp_path_factory.mktemp("browser"), {}
    for kind in ("classes", "multi-label", "regression", "ordinal", "sweep"):
        cache = folder / ("classes.h5" if kind == "sweep" else f"{kind}.h5")
        given: dict[str, Any] = {"cache": cache, "texts": folder / "table.csv", "audit": folder / "audit"}
        reading = ExtractSettings(text_column=TEXT_COLUMN)
        settings = ReportSettings(worst=5, points=60)
        made[kind] = report(folder / kind, out / f"{kind}.html", settings, reading=reading, **given)
    return made


@pytest.fixture
def opened(browser: Any, paths: dict[str, Path]) -> Iterator[Any]:
    """Open a page; at the end, no error was printed, nothing was loaded, and no script of the data ran."""
    seen: list[str] = []
    contexts = []

    def go(kind: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or seen.append(request.url)
        )
        page.goto(paths[kind].as_uri())
        page.wait_for_function("document.documentElement.dataset.plots === 'drawn'")
        assert page.evaluate("window.ran") is None
        return page

    yield go
    for context in contexts:
        context.close()
    assert not seen


@pytest.mark.parametrize("kind", ["classes", "multi-label", "regression", "ordinal", "sweep"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_all_plots_are_drawn_and_nothing_is_wider_than_the_page(
    opened: Any, kind: str, width: int, scheme: str
) -> None:
    page = opened(kind, viewport={"width": width, "height": 844}, color_scheme=scheme)
    drawn = "[...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll('.main-svg .xtick').length)"
    assert all(page.evaluate(drawn))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.dataset.theme") == scheme


def test_a_filter_and_a_sort_work(opened: Any) -> None:
    page = opened("sweep")
    board = page.locator(".board").first
    rows = board.locator("tbody tr")
    assert rows.count() == 4
    board.locator("input").fill("dropout=0.30")
    assert board.locator("tbody tr:visible").count() == 2
    assert board.locator("output").inner_text() == "2 of 4 rows"
    board.locator("input").fill("")
    button = board.get_by_role("button", name="learning_rate")
    button.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    column = board.locator("thead th").all_inner_texts().index(button.inner_text())
    values = [float(row.locator("th, td").nth(column).inner_text()) for row in rows.all()]
    assert values == sorted(values, reverse=True)
    assert board.locator("th[aria-sort=descending]").count() == 1


def test_light_and_dark_by_the_button_and_the_keyboard(opened: Any) -> None:
    page = opened("classes", color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    page.keyboard.press("Enter")
    page.wait_for_function("document.documentElement.dataset.plots === 'drawn'")
    assert page.evaluate(background) != light
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_script_in_a_text_is_shown_and_not_run(opened: Any) -> None:
    page = opened("classes")
    assert page.get_by_text("<script>window.ran=1</script><img src=x").count() > 0
    assert page.locator("main img").count() == 0
    page.locator("#part1-map .plot").scroll_into_view_if_needed()
    legend = page.locator("#part1-map .legendtext").all_text_contents()
    assert any(LABELS[0] in text for text in legend), "plotly shows it as it is"
    assert page.evaluate("window.ran") is None
