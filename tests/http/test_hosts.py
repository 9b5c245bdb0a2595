"""The hosts that a server answers to, and requests that would have it speak something else than HTTP."""

from __future__ import annotations

import logging
import socket

import httpx
import pytest

from server.door.hosts import LOOPBACK_HOSTS
from server.settings import SettingsError, load_settings
from tests.http.harness import PROMPT, Live, error_of, in_process, live

NAMES = "127.0.0.1,localhost,[::1],Emorl.Ward.Example"
KNOWN = ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8000", "emorl.ward.example:443"]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example", "127.0.0.2",
    "[::2]", "[::1", "::1", "localhost:8000:1", "localhost:x", "user@localhost", "localhost/", "localhost evil.example",
    "0.0.0.0", "",
]  # fmt: skip


@pytest.mark.parametrize("host", KNOWN)
async def test_a_listed_host_is_served_on_any_port(host: str) -> None:
    async with in_process(load_settings(allowed_hosts=NAMES)) as (client, _):
        assert (await client.get("/info", headers={"Host": host})).status_code == 200
        answer = await client.post("/generate", json={"prompt": PROMPT}, headers={"Host": host})
        assert answer.status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_another_host_is_refused_on_every_route_but_the_probes(host: str) -> None:
    settings = load_settings(allowed_hosts=NAMES, cors_origins="https://ward.example")
    async with in_process(settings) as (client, _):
        preflight = {"Origin": "https://ward.example", "Access-Control-Request-Method": "POST"}
        for method, path, headers in (
            ("GET", "/", {}), ("GET", "/info", {}), ("GET", "/metrics", {}), ("POST", "/generate", {}),
            ("GET", "/playground/app.js", {}), ("OPTIONS", "/generate", preflight), ("POST", "/admin/reload", {}),
        ):  # fmt: skip
            response = await client.request(method, path, headers={"Host": host, **headers})
            assert (response.status_code, error_of(response)["code"]) == (421, "host_not_allowed"), path
            assert "allowed_hosts" in error_of(response)["message"]
            assert "evil" not in response.text
        for probe in ("/healthz", "/livez", "/readyz", "/startupz"):
            assert (await client.get(probe, headers={"Host": host})).status_code == 200, "a probe goes by address"


async def test_no_list_means_any_host() -> None:
    async with in_process() as (client, _):
        assert (await client.get("/info", headers={"Host": "evil.example"})).status_code == 200


async def test_two_host_headers_are_not_one() -> None:
    async with in_process(load_settings(allowed_hosts="localhost")) as (client, _):
        response = await client.get("/info", headers=[("Host", "localhost"), ("Host", "evil.example")])
        assert response.status_code == 421


@pytest.mark.parametrize(
    "wrong", ["http://localhost", "localhost:8000", "localhost/", "::1", "a b", "*", "*.ward.example", "[localhost]"]
)
def test_a_list_that_could_match_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"allowed_hosts: allowed: hosts without scheme, port and path"):
        load_settings(allowed_hosts=f"localhost,{wrong}")


def test_what_this_machine_calls_itself_can_be_listed() -> None:
    assert load_settings(allowed_hosts=",".join(LOOPBACK_HOSTS)).allowed_hosts == LOOPBACK_HOSTS


async def test_the_host_does_not_change_how_an_error_is_told() -> None:
    """Starlette's URL begins with the Host header, so `x/v1/` in it would look like the path of an OpenAI route."""
    async with in_process() as (client, _):
        for host in ("emorl", "x/v1", "x/v1/?", "x#"):
            native = await client.post("/generate", json={"prompt": ""}, headers={"Host": host})
            openai = await client.post("/v1/completions", json={"model": "fake", "prompt": ""}, headers={"Host": host})
            assert (native.status_code, openai.status_code) == (422, 400), host


def raw(server: Live, lines: list[str]) -> bytes:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize("path", ["/info", "/livez", "/nothing"])
@pytest.mark.parametrize("upgrade", ["websocket", "h2c", "ZEBRAFISH"])
def test_an_upgrade_is_ignored_without_a_line_for_each(
    path: str, upgrade: str, caplog: pytest.LogCaptureFixture
) -> None:
    with live(load_settings(port=0, api_keys="k")) as server, caplog.at_level(logging.WARNING):
        head = [
            f"GET {path} HTTP/1.1", "Host: x", f"Upgrade: {upgrade}", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]  # fmt: skip
        answer = raw(server, head)
    assert answer.startswith(b"HTTP/1.1 200" if path == "/livez" else b"HTTP/1.1 401")
    assert caplog.records == []
