"""Clients that are silent, slow or deaf cost a bounded number of connections for a bounded time, and probes answer."""

from __future__ import annotations

import errno
import json
import resource
import socket
import threading
from contextlib import ExitStack, suppress
from typing import Any
from unittest import mock

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from emorl_core.fake import fake_ensemble
from emorl_core.types import Failure, TokenEvent
from server.door import listener
from server.door.connections import Connections, Phase, most_connections
from server.door.errors import ClientGone, ClientTooSlow
from server.door.protocol import guarded
from server.serving.channel import Channel, Unread
from server.settings import SettingsError, load_settings
from tests.http.harness import PROMPT, Live, events, idle, live, wait_until
from tests.http.test_limits import connect, everything
from tests.http.test_shutdown import process

SMALL: dict[str, Any] = {"port": 0, "slots": 4, "max_queue": 4, "max_connections": 24}
GET = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


def connections_of(server: Live) -> Connections:
    assert server.service.connections is not None
    return server.service.connections


def deaf(server: Live, sent: bytes) -> socket.socket:
    """A client that sends and reads nothing, with as small a buffer as the kernel allows."""
    address = httpx.URL(server.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.settimeout(60)
    connection.connect((address.host, address.port or 0))

    def send() -> None:
        with suppress(OSError):
            connection.sendall(sent)

    threading.Thread(target=send, daemon=True).start()
    return connection


def post(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


# --- how many ----------------------------------------------------------------------------------------------------------


def test_silent_connections_give_way_to_those_that_ask() -> None:
    with live(load_settings(**SMALL)) as server, ExitStack() as held:
        for _ in range(5):
            for _ in range(30):
                held.enter_context(connect(server))
            with server.client() as client:
                assert client.get("/livez").status_code == 200
                assert client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 3}).status_code == 200
            assert len(connections_of(server)) <= 24
        assert connections_of(server).cut["full"] >= 120
        with server.client() as client:
            assert 'emorl_connections_cut_total{reason="full"}' in client.get("/metrics").text


def test_more_connections_than_descriptors_leave_the_probes_and_the_log_alone() -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with process(before=few_files) as (child, url), ExitStack() as held:
        address = httpx.URL(url)
        for i in range(600):
            held.enter_context(socket.create_connection((address.host, address.port or 0), timeout=60))
            if i % 50 == 0:
                assert httpx.get(f"{url}/livez", timeout=60).status_code == 200
        held.close()
        child.terminate()
        _, log = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "as many as may be" in log
    assert len(log) < 5000, log[:1000]


def test_without_descriptors_one_connection_is_cut_for_the_next_and_one_line_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has taken them: the event loop's own way logs a traceback for every try."""
    take, refusals = listener.Listener._take, iter(range(20))

    async def out_of_files(self: listener.Listener, sock: socket.socket) -> None:
        if connections_of(server).cut or not len(connections_of(server)):
            await take(self, sock)
        else:
            next(refusals)
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(listener, "_RETRY_S", 0.01)
    with live(load_settings(port=0)) as server:
        monkeypatch.setattr(listener.Listener, "_take", out_of_files)
        with connect(server) as first, server.client() as client:
            assert client.get("/livez").status_code == 200
            assert client.get("/livez").status_code == 200
            assert everything(first) == b""
    assert [record.message for record in caplog.records if "cannot be taken" in record.message] == [
        "connections cannot be taken: Too many open files"
    ]


class Fake:
    """A connection by name."""

    def __init__(self, connections: Connections, gone: list[str], name: str, phase: Phase) -> None:
        self.connections, self.gone, self.name, self.phase = connections, gone, name, phase
        connections.moved(self, None, phase)

    def watch(self) -> None: ...

    def let_go(self, reason: str) -> None:
        self.gone.append(self.name)
        self.connections.moved(self, self.phase, None)


async def test_who_keeps_the_server_waiting_goes_first_and_who_waits_for_it_never() -> None:
    connections, gone = Connections(load_settings(**SMALL)), list[str]()
    for name, phase in [
        ("busy", Phase.BUSY), ("deaf", Phase.UNREAD), ("idle, longer", Phase.IDLE), ("idle", Phase.IDLE),
        ("slow", Phase.BODY), ("silent", Phase.HEAD), ("answered", Phase.ANSWERED),
    ]:  # fmt: skip
        Fake(connections, gone, name, phase)
    assert len(connections) == 7
    while connections.cut_one():
        pass
    assert gone == ["silent", "answered", "idle, longer", "idle", "slow", "deaf"]
    assert len(connections) == 1


def test_limits_that_contradict_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert most_connections(load_settings()) == 896, "as many as fit"
    assert most_connections(load_settings(**SMALL)) == 24
    for settings, says in [
        ({"max_connections": 897}, "max_connections is 897; allowed: up to 896"),
        ({"max_connections": 95}, "slots, max_queue and 16 more for probes need 96"),
        ({"max_queue": 2000}, "slots, max_queue and 16 more for probes need 2032"),
    ]:
        with pytest.raises(SettingsError) as refused:
            most_connections(load_settings(**settings))
        assert says in refused.value.message
        assert "ulimit -n" in refused.value.message
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert most_connections(load_settings()) == 1000
    assert most_connections(load_settings(max_queue=2000)) == 4064


# --- how long ----------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_let_go() -> None:
    with live(load_settings(port=0, head_timeout_s=0.2)) as server, connect(server) as connection:
        assert everything(connection) == b""
        assert connections_of(server).cut["head"] == 1


@pytest.mark.parametrize("rest", [b"", b"x", b"x" * 99], ids=["nothing", "a part", "all of it"])
def test_who_was_answered_before_its_body_came_is_let_go(rest: bytes) -> None:
    """A refusal by key or route does not wait for the body: what trickles after it must not hold the connection."""
    settings = load_settings(port=0, api_keys="k", read_timeout_s=0.3, idle_timeout_s=0.3)
    with live(settings) as server, connect(server) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        wait_until(lambda: connection.recv(1, socket.MSG_PEEK) != b"", "it is answered")
        with suppress(OSError):
            connection.sendall(rest)
        assert b" 401 " in everything(connection)
        wait_until(lambda: not len(connections_of(server)), "nothing is held")


def test_who_asks_no_more_is_let_go() -> None:
    with live(load_settings(port=0, idle_timeout_s=0.2)) as server, connect(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in everything(connection)
        assert connections_of(server).cut["idle"] == 1


def test_who_does_not_read_plain_answers_is_let_go() -> None:
    with live(load_settings(port=0, write_timeout_s=0.3)) as server:
        with deaf(server, GET * 400):
            wait_until(lambda: connections_of(server).cut["unread"] == 1, "it is let go")
        with server.client() as client:
            assert client.get("/livez").status_code == 200


def test_a_slow_reader_is_let_go_when_it_takes_too_little_in_its_time() -> None:
    """Progress counts, not the end: a large answer over a thin line takes its time."""
    connections = Connections(load_settings(**SMALL, write_timeout_s=7))
    loop, transport = mock.Mock(), mock.Mock(**{"get_extra_info.return_value": None})
    config = uvicorn.Config("none:app", ws="none", interface="asgi3", log_config=None)
    config.loaded, config.loaded_app, config.ws_protocol_class = True, None, None  # type: ignore[assignment]
    protocol = guarded(connections)(config, ServerState(), {}, loop)
    transport.get_write_buffer_size.return_value = 0
    protocol.connection_made(transport)
    unsent = 300_000
    for taken, kept in [(70_000, True), (65_536, True), (65_535, False)]:
        transport.get_write_buffer_size.return_value = unsent
        protocol.pause_writing()
        seconds, late = loop.call_later.call_args.args
        assert seconds == 7
        unsent -= taken
        transport.get_write_buffer_size.return_value = unsent
        late()
        assert transport.abort.called != kept
    assert connections.cut == {"unread": 1}
    assert len(connections) == 0


# --- what they hold meanwhile ------------------------------------------------------------------------------------------

LARGE = {"model": "fake", "prompt": PROMPT, "stream": True, "n": 8, "max_tokens": 1000, "logprobs": 5}


def test_a_permit_ends_with_its_generation_though_nobody_reads() -> None:
    with live(load_settings(port=0), fake_ensemble(mean_length=5000)) as server:
        with deaf(server, post("/v1/completions", LARGE)):
            wait_until(lambda: server.service.admission.in_use == 8, "it runs")
            wait_until(lambda: server.service.admission.in_use == 0, "its permits are back")
            assert len(server.service.active) == 1, "it is still to be read"
        wait_until(lambda: idle(server), "nothing is held")


def test_the_event_that_is_too_many_may_be_the_last_of_its_request() -> None:
    channel, given_up, finished = Channel(["a", "b"]), list[str](), list[bool]()
    unread = Unread(2, lambda: given_up.extend(channel.give_up(ClientTooSlow("too slow"))))
    channel.on_finished = lambda: finished.append(True)
    channel.count_in(unread)
    channel.push(Failure("a", ClientGone("first")))
    channel.push(TokenEvent("b", 0, 5, "x", 0.0))
    assert unread.count == 2
    channel.push(Failure("b", ClientGone("last")))
    assert given_up == [], "nothing is left to be cancelled"
    assert finished
    (event,) = channel.take()
    assert isinstance(event, Failure)
    assert event.error.code == "client_too_slow"
    assert unread.count == 0


def test_who_is_furthest_behind_loses_what_it_does_not_read() -> None:
    settings = load_settings(port=0, max_unread_events=1024)
    with live(settings, fake_ensemble(mean_length=5000, slots=9)) as server, server.client() as client:
        reading = {"prompt": PROMPT, "stream": True, "min_new_tokens": 900, "max_new_tokens": 900}
        with (
            client.stream("POST", "/generate", json=reading) as stream,
            deaf(server, post("/v1/completions", LARGE)) as late,
        ):
            text = stream.read().decode()
            assert events(text)[-1]["type"] == "done", "who reads loses nothing"
            wait_until(lambda: server.service.admission.in_use == 0, "the other one stops")
            (behind,) = server.service.active
            assert behind.unread <= 1
            received = b""
            while b"[DONE]" not in received:
                received += late.recv(65_536)
            assert b'"code":"client_too_slow"' in received
        wait_until(lambda: idle(server), "nothing is held")


# --- at the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deaf to plain answers", "deaf to a stream", "slow to send a body", "silent"])
def test_no_client_holds_up_the_end(how: str) -> None:
    """With the timeouts as they are, it would be a minute."""
    sent = {
        "deaf to plain answers": GET * 400,
        "deaf to a stream": post("/v1/completions", LARGE),
        "slow to send a body": b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        "silent": b"",
    }[how]
    waits = dict.fromkeys(("head_timeout_s", "read_timeout_s", "write_timeout_s", "drain_timeout_s"), 600)
    settings = load_settings(port=0, **waits, last_bytes_s=0.2)
    phase = {"slow to send a body": Phase.BODY, "silent": Phase.HEAD}.get(how, Phase.UNREAD)
    with live(settings, fake_ensemble(mean_length=5000)) as server, deaf(server, sent):
        wait_until(lambda: bool(connections_of(server)._in[phase]), "the server waits for it")
        wait_until(lambda: server.service.admission.in_use == 0, "nothing is generated any more")
        server.call(server.server.begin_drain)
        server.thread.join(60)
        assert not server.thread.is_alive()
