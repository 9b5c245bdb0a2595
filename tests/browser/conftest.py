"""A real Chromium on a real server. Every page of every test is watched: a script error, a line on the console, a
violation of the page's policy, a dialog or a request to anywhere else fails the test."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.browser.desk import Desk
from tests.conftest import chromium_path
from tests.http.harness import Live, live

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_REPORT_VIOLATIONS = """
document.addEventListener('securitypolicyviolation', (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


@dataclass
class Watch:
    """What a page should not have done. `allowed`: patterns of console lines that a test brings about on purpose."""

    seen: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def verdict(self) -> list[str]:
        return [line for line in self.seen if not any(re.search(pattern, line) for pattern in self.allowed)]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    # Per module: while it is open, no asyncio test could run in this thread.
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        yield launched
        launched.close()


Open = Callable[..., Desk]


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def open_page(browser: object, watch: Watch) -> Iterator[Open]:
    """`open_page(url, width=…, height=…, scheme=…)`: the page, with its first draft written."""
    contexts = []
    urls: list[str] = []

    def opened(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light", ready: bool = True) -> Desk:
        context = browser.new_context(  # type: ignore[attr-defined]
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            accept_downloads=True,
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(60_000)
        contexts.append(context)
        urls.append(url)
        page = context.new_page()
        page.add_init_script(_REPORT_VIOLATIONS)
        page.on("console", lambda line: watch.seen.append(f"console {line.type}: {line.text}"))
        page.on("pageerror", lambda error: watch.seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (watch.seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: _note_foreign(watch, request.url, url))
        desk = Desk(page, url)
        page.goto(url)
        if ready:
            desk.wait_done()
        return desk

    yield opened
    for context in contexts:
        context.close()
    if not all(map(_listens, urls)):  # a page draws by itself, and asks a server that the test has ended
        watch.allowed.append("ERR_CONNECTION_REFUSED")
    assert watch.verdict() == []


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), timeout=10):
        return True
    return False


def _note_foreign(watch: Watch, url: str, home: str) -> None:
    if not url.startswith((home, "blob:")):
        watch.seen.append(f"foreign request: {url}")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    """Three objectives, quick."""
    with live() as running:
        yield running
