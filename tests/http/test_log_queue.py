"""No thread that serves ever waits for whoever reads the log; what is left out is counted and told."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr

import httpx
import pytest

from server.settings import Settings
from server.watch.log_queue import LineQueue, Printed, Seldom, dropped_lines
from server.watch.logs import logging_to
from tests.http.harness import wait_until
from tests.http.test_shutdown import process

logger = logging.getLogger("emorl.test")


class Reader:
    """Reads lines once it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        assert self.may.wait(60)
        self.lines.append(line.rstrip("\n"))


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.may.set()


def test_lines_beyond_the_queue_are_dropped_and_told_and_nobody_waits(reader: Reader) -> None:
    settings = Settings(log_queue_lines=10, log_lines_per_s=0, log_flush_s=20)
    with logging_to(reader.write, settings):
        for i in range(1000):
            logger.info("line %d", i)
        dropped = dropped_lines()["queue"]
        assert 980 <= dropped <= 990
        reader.may.set()
    assert reader.lines[0].endswith("line 0")
    assert len(reader.lines) == 1000 - dropped + 1
    assert sum(f"{dropped} log lines are missing here (queue {dropped})" in line for line in reader.lines) == 1


def test_the_end_waits_only_so_long_for_a_reader(reader: Reader) -> None:
    with logging_to(reader.write, Settings(log_flush_s=0.1)):
        logger.info("a line that nobody reads")
    assert reader.lines == []


def test_a_reader_that_is_gone_is_no_error() -> None:
    def write(_: str) -> None:
        raise BrokenPipeError

    with logging_to(write, Settings()) as writer:
        logger.info("a line")
        assert writer.flush(60)
        logger.info("another line")
        assert writer.flush(60)
        assert dropped_lines()["write"] == 2


def test_of_a_flood_some_lines_are_logged_and_the_rest_is_counted() -> None:
    now = 0.0
    lines = LineQueue(logging.Formatter(), 1000)
    seldom = Seldom(lines, 2.0, clock=lambda: now)

    def passed(level: int = logging.INFO, **extra: object) -> int:
        record = logging.makeLogRecord({"name": "emorl.access", "levelno": level, **extra})
        return sum(seldom.filter(record) for _ in range(100))

    assert passed() == 20, "ten seconds' worth at once"
    assert passed() == 0
    now += 3.0
    assert passed() == 6
    assert passed(logging.WARNING) == 20, "another level is another kind"
    assert passed(kind="4xx") == 20, "and what the caller calls one"
    assert passed(kind=None) == 100, "what must be told"
    assert lines.dropped["rate"] == 80 + 100 + 94 + 80 + 80


def test_what_cannot_be_formatted_is_dropped_without_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    with logging_to(log.write, Settings()):
        logger.info("%d of %d", "ZEBRA")
        assert dropped_lines()["format"] == 1
    captured = capfd.readouterr()
    assert "ZEBRA" not in log.getvalue() + captured.out + captured.err


def test_what_libraries_write_and_warn_goes_the_same_way(reader: Reader) -> None:
    apart = logging.getLogger("some.library")
    handler = logging.StreamHandler(sys.stderr)
    apart.addHandler(handler)
    apart.propagate = False
    settings = Settings(log_format="json", log_flush_s=20)
    with logging_to(reader.write, settings), redirect_stderr(Printed()), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # `catch_warnings` has just put the plain way back
        apart.warning("a library's own handler")
        warnings.warn("a warning", stacklevel=1)
        print("a bar\rand its end", file=sys.stderr)  # noqa: T201
        late = logging.StreamHandler()  # made while it serves, as transformers does
        late.emit(logging.makeLogRecord({"msg": "a late handler"}))
        reader.may.set()
    assert apart.handlers == [handler]
    told = [json.loads(line)["message"] for line in reader.lines]
    for words in ("a library's own handler", "a warning", "a bar", "and its end", "a late handler"):
        assert any(words in message for message in told), words
    apart.handlers.clear()


@pytest.mark.slow
def test_a_server_whose_log_nobody_reads_goes_on_and_ends_in_time() -> None:
    """A pipe holds 64 KiB: it is full after some hundreds of requests."""
    with (
        process(log_lines_per_s=0, log_queue_lines=50) as (child, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):

        def missing() -> float:
            return float(
                client.get("/metrics").text.split('emorl_log_lines_dropped_total{reason="queue"} ')[1].split()[0]
            )

        while missing() == 0:
            for _ in range(100):
                assert client.get("/livez").status_code == 200
        assert client.post("/generate", json={"prompt": "work hurts", "max_new_tokens": 3}).status_code == 200
        child.terminate()
        wait_until(lambda: child.poll() is not None, "it ends")
        assert child.returncode == 0
