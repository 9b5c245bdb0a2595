"""HEAD: wherever GET answers, with the same head and no body."""

from __future__ import annotations

import socket

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.settings import Settings
from tests.http.harness import Live

GETS = [path for path, each in create_app(Settings(), fake_ensemble()).openapi()["paths"].items() if "get" in each]


@pytest.mark.parametrize("path", [*GETS, "/", "/playground/app.js", "/openapi.json"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    path = path.replace("{model}", "fake:empathy")
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # it counts, among others, what has just been asked
        assert head.headers["content-length"] == got.headers["content-length"]


def test_errors_have_no_body_either(client: httpx.Client) -> None:
    for path, status in (("/nothing", 404), ("/v1/models/nope", 404), ("/generate", 405)):
        head = client.head(path)
        assert (head.status_code, head.content) == (status, b"")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/livez", "GET, HEAD"), ("/openapi.json", "GET, HEAD"), ("/generate", "POST")]
)
def test_what_is_allowed_instead_is_said(client: httpx.Client, path: str, allowed: str) -> None:
    response = client.delete(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.json()["error"]["message"].endswith(f"allowed: {allowed}")


def test_a_connection_goes_on_after_it(server: Live) -> None:
    """Bytes of a body would be read as the next answer."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0), timeout=60) as connection:
        connection.sendall(
            b"HEAD /info HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        received = b""
        while part := connection.recv(65536):
            received += part
    first, second, body = received.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 200")
    assert body == b'{"status":"ok"}'
