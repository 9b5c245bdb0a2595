"""The event loop rests after work while requests run, so that the engine gets the interpreter."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from emorl_core.fake import fake_ensemble
from server.run import run
from server.serving import event_loop
from server.serving.event_loop import RestingSelector, resting_loop
from server.settings import Settings


class Day:
    """A clock of work, and the rests that were taken."""

    def __init__(self) -> None:
        self.worked, self.rests = 0.0, list[float]()

    def selector(self, busy: Callable[[], bool]) -> RestingSelector:
        return RestingSelector(busy, clock=lambda: self.worked, sleep=self.rests.append)


def test_it_rests_in_proportion_to_its_work_and_never_long() -> None:
    day = Day()
    with day.selector(lambda: True) as selector:
        for work in (0.002, 0.0001, 0.0001, 0.004, 10.0):
            day.worked += work
            selector.select(0)
    assert day.rests == pytest.approx([0.002 * event_loop._TIMES, 0.0042 * event_loop._TIMES, event_loop._LONGEST_S])


def test_small_work_adds_up_to_a_rest() -> None:
    day = Day()
    with day.selector(lambda: True) as selector:
        for _ in range(12):
            day.worked += event_loop._WORTH_S / 4
            selector.select(0)
    assert day.rests == pytest.approx([event_loop._WORTH_S * event_loop._TIMES] * 3)


def test_while_nothing_runs_it_does_not_rest_and_owes_nothing_later() -> None:
    day, runs = Day(), False
    with day.selector(lambda: runs) as selector:
        day.worked += 1.0
        selector.select(0)
        runs = True
        selector.select(0)
    assert not day.rests


def test_it_is_an_event_loop_like_any_other() -> None:
    async def work() -> list[str]:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello\n")
        said = await reader.readline()
        writer.close()
        return [said.decode(), await asyncio.to_thread(lambda: "from a thread")]

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def main() -> list[str]:
        nonlocal address
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()[:2]
            return await work()

    address = ("", 0)
    with asyncio.Runner(loop_factory=lambda: resting_loop(lambda: True)) as runner:
        assert runner.run(main()) == ["hello\n", "from a thread"]


def test_the_server_runs_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Callable[[], bool]] = []

    def noted(busy: Callable[[], bool]) -> asyncio.AbstractEventLoop:
        made.append(busy)
        return resting_loop(busy)

    monkeypatch.setattr("server.run.resting_loop", noted)
    assert threading.current_thread() is threading.main_thread()
    run(Settings(port=0), fake_ensemble(), on_ready=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    (busy,) = made
    assert busy() is False


@pytest.mark.parametrize(("runs", "at_once"), [(True, 3), (False, 10)])
def test_while_requests_run_a_few_descriptors_are_served_at_once_and_all_in_turn(
    monkeypatch: pytest.MonkeyPatch, runs: bool, at_once: int
) -> None:
    monkeypatch.setattr(event_loop, "_FEW", 3)
    pairs = [socket.socketpair() for _ in range(10)]
    with Day().selector(lambda: runs) as selector:
        for ours, theirs in pairs:
            selector.register(ours, selectors.EVENT_READ)
            theirs.send(b"x")  # ready, and nobody reads it
        calls = [[key.fd for key, _ in selector.select(0)] for _ in range(10)]
    assert {len(call) for call in calls} == {at_once}
    served = Counter(fd for call in calls for fd in call)
    assert set(served) == {ours.fileno() for ours, _ in pairs}
    assert max(served.values()) - min(served.values()) <= 1
    for pair in pairs:
        for each in pair:
            each.close()
