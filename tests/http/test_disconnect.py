"""A client that goes away gives its place back: while streaming, while waiting for a plain answer, while queued."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.http.harness import PROMPT, Live, idle, live, wait_until

LONG = {"prompt": PROMPT, "min_new_tokens": 900, "max_new_tokens": 1000}


def call(server: Live, body: dict[str, Any], path: str = "/generate") -> socket.socket:
    """Send a request on a socket of its own, to be closed whenever the test likes."""
    content = json.dumps(body).encode()
    connection = socket.create_connection((server.server.config.host, int(server.url.rsplit(":", 1)[1])), timeout=60)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def outcomes(server: Live, outcome: str, route: str = "/generate") -> float:
    value = server.service.metrics.registry.get_sample_value(
        "emorl_requests_total", {"route": route, "outcome": outcome}
    )
    assert value is not None
    return value


@pytest.mark.parametrize("stream", [True, False])
def test_a_running_request_is_cancelled_when_its_client_goes(stream: bool) -> None:
    with live(ensemble=fake_ensemble(step_delay_s=0.005)) as server:
        connection = call(server, {**LONG, "stream": stream})
        wait_until(lambda: server.service.reading().running == 1, "it runs")
        if stream:
            assert b"200 OK" in connection.recv(200)
        connection.close()
        wait_until(lambda: idle(server), "everything is free again")
        assert outcomes(server, "cancelled") == 1
        assert outcomes(server, "stop") + outcomes(server, "length") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_queued_request_leaves_the_queue_when_its_client_goes(stream: bool) -> None:
    with live(ensemble=fake_ensemble(slots=1, step_delay_s=0.005)) as server:
        running = call(server, LONG)
        wait_until(lambda: server.service.reading().running == 1, "the slot is taken")
        queued = call(server, {**LONG, "stream": stream})
        wait_until(lambda: server.service.reading().waiting == 1, "one waits")
        queued.close()
        wait_until(lambda: server.service.reading().waiting == 0, "the queue is empty")
        assert server.service.reading().running == 1, "the other one goes on"
        running.close()
        wait_until(lambda: idle(server), "everything is free again")
        assert outcomes(server, "cancelled") == 2


def test_the_tokens_of_a_cancelled_request_are_counted() -> None:
    with live(ensemble=fake_ensemble(step_delay_s=0.005)) as server:
        connection = call(server, LONG)
        wait_until(lambda: server.service.deployment().ensemble.engine.runner.lane_row_steps > 20, "it has tokens")
        connection.close()
        registry = server.service.metrics.registry
        wait_until(lambda: (registry.get_sample_value("emorl_generated_tokens_total") or 0) > 5, "they are counted")
        wait_until(lambda: idle(server), "everything is free again")
        assert outcomes(server, "cancelled") == 1


async def visit(port: int, stay_s: float, body: dict[str, Any]) -> None:
    """Ask, stay a while, hang up without a word."""
    content = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await asyncio.sleep(stay_s)
    writer.transport.abort()


def test_three_hundred_clients_that_leave_at_random_moments_leave_nothing_behind() -> None:
    dice = random.Random(7)
    ensemble = fake_ensemble(slots=8, step_delay_s=0.001, mean_length=900)
    with live(Settings(port=0, max_queue=150), ensemble) as server:
        port = int(server.url.rsplit(":", 1)[1])
        patient = [call(server, {**LONG, "seed": number}) for number in range(9)]
        wait_until(lambda: server.service.reading().waiting == 1, "every slot is taken, and one waits")
        for connection in patient[:4]:  # some of those who come now wait, others run
            connection.close()

        async def everyone() -> None:
            async def one() -> None:
                await asyncio.sleep(dice.uniform(0, 1.5))
                stay_s = dice.choice([0.0, 0.002, 0.02, 0.3])  # at the door, in prefill, queued, streaming
                await visit(port, stay_s, {**LONG, "stream": dice.random() < 0.5, "seed": dice.randrange(1000)})

            await asyncio.gather(*(one() for _ in range(300)))

        asyncio.run(everyone())
        for connection in patient[4:]:
            connection.close()
        wait_until(lambda: idle(server), "everything is free again")
        ended = {outcome: outcomes(server, outcome) for outcome in ("stop", "length", "cancelled", "rejected", "error")}
        assert len(patient) <= ended["cancelled"] <= 300 + len(patient)
        assert ended["stop"] == ended["length"] == ended["error"] == 0
        with server.client() as client:
            assert client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 5}).status_code == 200
        wait_until(lambda: idle(server), "everything is free again")
