"""Reports in a real browser: they load without errors or requests, draw their charts, and their slider moves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.reports.runs import line, write_lines, write_run
from trainers.reports import write_comparison, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Watched:
    """A page of a browser, with the errors of its console and the addresses that it asked for."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors, self.requests = page, list[str](), list[str]()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda one: self.requests.append(one.url))

    def open(self, file: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.page.goto(file.as_uri())

    def quiet(self, file: Path) -> bool:
        """Whether nothing went wrong and nothing but the file and what lies in it was asked for."""
        own = [one for one in self.requests if not one.startswith("data:") and one.partition("#")[0] != file.as_uri()]
        return not self.errors and not own


@pytest.fixture
def watched() -> Iterator[Watched]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Watched(browser.new_page(viewport={"width": 1240, "height": 900}))
        browser.close()


def test_a_report(watched: Watched, tmp_path: Path) -> None:
    file = write_report(write_run(tmp_path / "small"))
    watched.open(file)
    page = watched.page
    page.wait_for_selector(".figure .main-svg")
    before = page.get_attribute(".slider img", "src")
    assert page.inner_text(".slider output") == "3,000 images"
    page.fill(".slider input", "0")
    assert page.inner_text(".slider output") == "1,000 images"
    assert page.get_attribute(".slider img", "src") != before
    assert page.evaluate("document.querySelector('.slider img').naturalWidth") == 64
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.figure')].every((one) => one.querySelector('.main-svg'))", timeout=20_000
    )
    assert watched.quiet(file), (watched.errors, watched.requests)
    assert len(page.pdf()) > 20_000


def test_a_comparison(watched: Watched, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "other")]
    file = write_comparison(runs, tmp_path / "page.html")
    watched.open(file)
    watched.page.click("nav a[href='#quality']")
    watched.page.wait_for_selector(".figure .main-svg")
    assert watched.page.locator("img").count() == 2
    assert watched.quiet(file), (watched.errors, watched.requests)


def test_a_long_run_opens_at_once(watched: Watched, tmp_path: Path) -> None:
    """A log of 100,000 lines and 500 pictures. The seconds are printed (2.2 on a busy machine)."""
    folder = write_run(tmp_path / "long", pictures=500)
    write_lines(folder / "log.jsonl", [line(8 * n, **{"fake/grad_norm": 1.0 + n % 7}) for n in range(1, 100_001)])
    file = write_report(folder)
    assert file.stat().st_size < 20e6
    began = time.perf_counter()
    watched.open(file)
    watched.page.wait_for_selector(".slider img")
    assert watched.quiet(file)
    print(f"opened in {time.perf_counter() - began:.2f} s, {file.stat().st_size / 1e6:.1f} MB")
