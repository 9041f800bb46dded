"""A browser, a server to look at, and pages that may ask nobody else."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_backend import FakeBackend
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 20_000  # of a loaded machine; nothing waits for it that goes well
LOST_CONNECTION = "net::ERR_"  # what the browser itself says of a server that is away
REFUSED = "the server responded with a status of"

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")  # Playwright keeps an event loop running: no other module may meet it
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    server = FakeBackend()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def open_page(chromium: Browser, backend: FakeBackend) -> Iterator[Callable[..., Page]]:
    """Open the page in a browser of its own; no page may ask another server or complain in the console."""
    contexts, foreign, complaints = [], [], []

    def heard(text: str) -> None:
        if LOST_CONNECTION not in text and REFUSED not in text:
            complaints.append(text)

    def open_(*, view: str = "", **settings: Any) -> Page:
        context = chromium.new_context(reduced_motion="reduce", **settings)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda sent: sent.url.startswith(backend.url) or foreign.append(sent.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and heard(said.text))
        page.on("dialog", lambda dialog: dialog.accept())  # leaving while a file is sent
        page.goto(f"{backend.url}#{view}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert (foreign, complaints) == ([], [])
