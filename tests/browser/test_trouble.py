"""The server is full, shutting down, killed, asks for a key: the page says so in words and finds its way back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings, load_settings
from tests.browser.conftest import Open, Watch
from tests.http.harness import PROMPT, live, wait_until

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(port: int, step_delay_s: float) -> Iterator[subprocess.Popen[str]]:
    """A server of its own, on a port that the next one can take over."""
    arguments = [sys.executable, "-m", "tests.browser.serve_fake", str(port), str(step_delay_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline().startswith("http://")
            yield child
        finally:
            child.kill()


def test_a_server_that_is_killed_and_comes_back_is_found_again(open_page: Open, watch: Watch) -> None:
    watch.allowed += [
        "net::ERR_CONNECTION_REFUSED",
        "net::ERR_INCOMPLETE_CHUNKED_ENCODING",
        "net::ERR_CONNECTION_RESET",
    ]
    port = free_port()
    with process(port, 0.15) as child:
        desk = open_page(f"http://127.0.0.1:{port}", ready=False)
        desk.page.locator(".token").nth(2).wait_for()
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        desk.trouble.get_by_text("The connection broke in the middle of the answer.").wait_for()
        assert "not whole" in desk.page.locator("#status").inner_text()
        assert desk.page.locator("#served").inner_text() == "not connected"
        desk.trouble.get_by_text("The server cannot be reached.").wait_for()
        desk.shoot("lost")
        assert desk.page.locator(".token").count() >= 3, "what had come is still there"
    desk.page.get_by_label("Weight of empathy").fill("1")  # a person goes on
    desk.page.get_by_label("Weight of empathy").blur()
    with process(port, 0.0):
        desk.trouble.wait_for(state="hidden")
        desk.wait_done()
        prompt = desk.page.locator("#prompt").input_value()
        wait_until(
            lambda: desk.text == desk.generated(prompt, weights={"empathy": 1})["text"], "it writes what was asked last"
        )
        assert "fake" in desk.page.locator("#served").inner_text()


def test_a_full_server_is_waited_for_as_long_as_it_says(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 429")
    slow = fake_ensemble(slots=1, step_delay_s=0.02, mean_length=4000)
    with live(Settings(port=0, max_queue=0), slow) as server:
        body = {"prompt": PROMPT, "stream": True, "max_new_tokens": 1000, "min_new_tokens": 999}
        with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as running:
            lines = running.iter_lines()
            next(lines)
            desk = open_page(server.url, ready=False)
            desk.trouble.get_by_text("The server is full just now").wait_for()
            desk.trouble.get_by_text("Trying again in").wait_for()
            assert desk.trouble.get_by_role("button", name="Try again").is_visible()
            desk.shoot("full")
            running.close()
        desk.page.locator(".token").first.wait_for()
        assert desk.trouble.is_hidden()


def test_a_full_server_refuses_the_map_in_words_and_the_draft_stays(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 429")
    slow = fake_ensemble(slots=1, step_delay_s=0.005, mean_length=15)
    with live(Settings(port=0, max_queue=0), slow) as server:
        desk = open_page(server.url)
        desk.option("Most tokens", "2")
        desk.wait_done()
        body = {"prompt": PROMPT, "stream": True, "max_new_tokens": 1000, "min_new_tokens": 999}
        with httpx.stream("POST", f"{server.url}/generate", json=body, timeout=60) as running:
            lines = running.iter_lines()
            next(lines)
            desk.draw_map("10")
            desk.trouble.get_by_text("The server is full just now").wait_for()
            assert desk.button("Pin to compare").is_enabled()
            running.close()
        desk.trouble.wait_for(state="hidden")
        desk.page.get_by_text("on 66 points").wait_for(timeout=60_000)


def test_draining_is_said_in_words(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 503")
    ensemble = fake_ensemble(step_delay_s=0.002)
    with live(Settings(port=0, drain_delay_s=60, drain_timeout_s=1), ensemble) as server:
        desk = open_page(server.url)
        server.call(server.service.drain)
        desk.button("Write a draft").click()
        desk.trouble.get_by_text("The server is shutting down").wait_for()
        desk.trouble.get_by_text("Trying again in").wait_for()
        desk.shoot("draining")
        server.service.draining = False  # another one takes over behind the same address
        desk.trouble.get_by_role("button", name="Try again").click()
        desk.trouble.wait_for(state="hidden")
        desk.wait_done()


def test_a_key_is_asked_for_and_never_stored_or_shown(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 401")
    with live(load_settings(port=0, api_keys="s3cret-key")) as server:
        desk = open_page(server.url, ready=False)
        desk.page.get_by_text("This server asks for an API key.").wait_for()
        assert desk.page.get_by_label("API key").evaluate("(input) => input === document.activeElement")
        desk.page.get_by_label("API key").fill("wrong")
        desk.page.get_by_label("API key").press("Enter")
        desk.page.get_by_text("The server did not take this key.").wait_for()
        desk.page.get_by_label("API key").fill("s3cret-key")
        desk.page.get_by_label("API key").press("Enter")
        desk.wait_done()
        assert desk.page.locator("#key").is_hidden()
        kept = desk.page.evaluate("[document.cookie, localStorage.length, sessionStorage.length, location.href]")
        assert kept == ["", 0, 0, f"{server.url}/"]
        assert "s3cret" not in desk.page.content()
        assert "$API_KEY" in desk.page.locator("#snippet-panel").inner_text()


def test_what_the_server_refuses_is_said_with_its_reason(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 422")
    with live(Settings(port=0), fake_ensemble(max_source_tokens=20)) as server:
        desk = open_page(server.url, ready=False)
        desk.trouble.get_by_text("allowed: up to 20").wait_for()
        assert "Trying again" not in desk.trouble.inner_text(), "the same would be refused again"
        desk.page.locator("#prompt").fill("work hurts")
        desk.page.locator("#prompt").press("Enter")
        desk.wait_done()
        assert desk.trouble.is_hidden()
