"""Bounds on what comes in, before anything is known of it: headers, bodies, slow senders, bytes that are no HTTP."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest

from server.settings import load_settings
from tests.http.harness import PROMPT, Live, error_of, in_process, live, wait_until


@pytest.fixture(scope="module")
def hasty() -> Iterator[Live]:
    with live(load_settings(port=0, head_timeout_s=0.3, read_timeout_s=0.3, max_header_bytes=2048)) as running:
        yield running


def connect(server: Live) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port or 0), timeout=60)


def everything(connection: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def raw_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), error["code"]


def test_headers_over_the_limit_are_refused_in_the_one_body(hasty: Live) -> None:
    with hasty.client() as client:
        whole = client.get("/livez", headers={"X-Long": "x" * 3000})
        assert (whole.status_code, error_of(whole)["code"]) == (431, "headers_too_large")
        assert "2048 bytes (max_header_bytes)" in error_of(whole)["message"]
        assert client.get("/livez", headers={"X-Long": "x" * 1000}).status_code == 200
    with connect(hasty) as connection:  # a head that does not end
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Long: " + b"ZEBRAFISH" * 500)
        assert raw_error(everything(connection)) == (431, "headers_too_large")


@pytest.mark.parametrize("sent", [b"ZEBRAFISH\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"])
def test_bytes_that_are_no_request_get_the_one_body_too(hasty: Live, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        answer = everything(connection)
    assert raw_error(answer) == (400, "invalid_http")
    assert b"ZEBRAFISH" not in answer


@pytest.mark.parametrize("path", ["/generate", "/nope", "/livez"], ids=["reads it", "answers first", "needs none"])
def test_a_body_that_is_no_http_gets_one_answer_and_no_traceback(
    hasty: Live, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(hasty) as connection:
        connection.sendall(head.encode() + b"ZZ\r\n")
        assert raw_error(everything(connection)) == (400, "invalid_http")
    with hasty.client() as client:
        assert client.get("/livez").status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_who_trickles_a_head_is_let_go(hasty: Live) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET /livez HTT")
        assert everything(connection) == b""
    with connect(hasty) as connection:  # the second request of a connection as well
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert b"200 OK" in answer
        connection.sendall(b"GET /li")
        assert everything(connection) == b""


def test_who_trickles_a_body_is_told_and_let_go(hasty: Live) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b'Content-Length: 100\r\n\r\n{"prompt')  # fmt: skip
        answer = everything(connection)
    assert raw_error(answer) == (408, "read_timeout")
    wait_until(lambda: hasty.service.admission.in_use == 0, "nothing is held")


def test_an_answer_may_take_longer_than_the_request_may(hasty: Live) -> None:
    """The limit is on the client's sending; the watch for a disconnect is no sending."""
    hasty.model.step_delay_s = 0.02
    try:
        with hasty.client() as client:
            body = {"prompt": PROMPT, "min_new_tokens": 30, "max_new_tokens": 30}
            assert client.post("/generate", json=body).status_code == 200
            assert client.get("/livez").status_code == 200
    finally:
        hasty.model.step_delay_s = 0.0


async def test_the_limits_hold_without_the_connection_too() -> None:
    async with in_process(load_settings(max_header_bytes=2048)) as (client, _):
        response = await client.get("/livez", headers={"X-Long": "x" * 3000})
        assert (response.status_code, error_of(response)["code"]) == (431, "headers_too_large")
