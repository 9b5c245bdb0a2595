"""Keys on every route that costs or tells anything, CORS off until asked for, clinical text nowhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.door.auth import OPEN_PATHS, KeyRing, Keys
from server.settings import Settings, SettingsError, load_settings
from server.watch.logs import logging_to
from tests.http.harness import PROMPT, error_of, in_process, live


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_every_route_but_the_probes_asks_for_a_key() -> None:
    settings = load_settings(api_keys="first,second", admin_keys="boss")
    app = create_app(settings, fake_ensemble())
    documented = [(path, method.upper()) for path, each in app.openapi()["paths"].items() for method in each]
    assert len(documented) > 10
    others = [("/openapi.json", "GET"), ("/generate/", "POST"), ("http://emorl//generate", "POST"), ("/nope", "GET")]
    async with in_process(settings) as (client, _):
        for path, method in documented + others:
            if not path:
                continue
            response = await client.request(method, path.replace("{model}", "fake"))
            if path in OPEN_PATHS | {"/metrics"}:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert error_of(response)["type"] == "authentication_error"
                assert response.headers["www-authenticate"] == "Bearer"


async def test_keys_open_what_they_are_for() -> None:
    async with in_process(load_settings(api_keys="first,Second", admin_keys="boss")) as (client, _):
        for key, status in (("first", 200), ("Second", 200), ("second", 401), ("firs", 401), ("", 401), ("boss", 401)):
            assert (await client.get("/info", headers=bearer(key))).status_code == status, key
        assert (await client.get("/info", headers={"Authorization": "bearer first"})).status_code == 200
        assert (await client.get("/info", headers={"Authorization": "Basic first"})).status_code == 401
        assert (await client.post("/admin/nothing", headers=bearer("first"))).status_code == 403
        assert (await client.post("/admin/nothing", headers=bearer("boss"))).status_code == 404
        assert (await client.post("/admin/nothing")).status_code == 401


async def test_admin_routes_are_off_without_an_admin_key() -> None:
    async with in_process(load_settings()) as (client, _):
        response = await client.post("/admin/reload")
        assert (response.status_code, error_of(response)["code"]) == (403, "forbidden")
        assert (await client.get("/info")).status_code == 200


async def test_metrics_can_ask_for_a_key() -> None:
    async with in_process(load_settings(api_keys="first", metrics_key_required=True)) as (client, _):
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers=bearer("first"))).status_code == 200


def test_a_key_ring_keeps_no_key() -> None:
    ring = KeyRing.of([("ward", "s3cret-é")])
    assert ring.find("s3cret-é".encode()) == "ward"
    assert ring.find(b"s3cret") is None
    assert "s3cret" not in repr(ring)
    assert not KeyRing(())


def test_keys_come_from_a_file_with_names(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# wards\nnorth: one\n\ntwo\n")
    keys = Keys.read(load_settings(api_keys="three", api_keys_file=file))
    assert [keys.api.find(key) for key in (b"one", b"two", b"three", b"north")] == ["north", "line-4", "key-1", None]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfnorth: one\ntwo\n",
        b"north: one\r\ntwo\r\n",
        b"\xef\xbb\xbfnorth: one\r\ntwo",
        b"north: one\rtwo\r",
        b"north: one\n\xef\xbb\xbftwo\n",
    ],
)
def test_keys_come_from_a_file_of_any_editor(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "keys").write_bytes(data)
    keys = Keys.read(load_settings(api_keys_file=tmp_path / "keys"))
    assert [keys.api.find(key) for key in (b"one", b"two", b"three")] == ["north", "line-2", None]


@pytest.mark.parametrize("character", "\f\v\x85\u2028\x1c")
def test_a_key_is_a_line_whatever_stands_in_it(tmp_path: Path, character: str) -> None:
    (tmp_path / "keys").write_text(f"north: o{character}ne\n", encoding="utf-8")
    keys = Keys.read(load_settings(api_keys_file=tmp_path / "keys"))
    assert keys.api.find(f"o{character}ne".encode()) == "north"
    assert keys.api.find(b"ne") is None


@pytest.mark.parametrize("data", ["one\n".encode("utf-16"), "one\n".encode("utf-16-le"), b"one\n\xe9\n", b"one\0two\n"])
def test_a_key_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "keys").write_bytes(data)
    with pytest.raises(SettingsError, match=r"api_keys_file is .*; it cannot be read: (it|line [12]) ") as error:
        Keys.read(load_settings(api_keys_file=tmp_path / "keys"))
    assert "one" not in error.value.message


@pytest.mark.parametrize("text", ["", "# nothing\n", "north:\n", ":one\n", "one\none\n"])
def test_a_file_that_would_leave_the_server_open_or_unclear_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        create_app(load_settings(api_keys_file=file), fake_ensemble())
    assert "api_keys" in error.value.message


async def test_a_missing_key_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        Keys.read(load_settings(api_keys_file=tmp_path / "none"))


async def test_cors_is_off_by_default_and_allows_authorization_when_on() -> None:
    preflight = {
        "Origin": "https://ward.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with in_process() as (client, _):
        response = await client.options("/generate", headers=preflight)
        assert response.status_code == 405
        assert not any(name.startswith("access-control") for name in response.headers)
    async with in_process(load_settings(cors_origins="https://ward.example", api_keys="k")) as (client, _):
        response = await client.options("/generate", headers=preflight)
        assert response.status_code == 200
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        answer = await client.get("/info", headers={"Origin": "https://ward.example"})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "https://ward.example"
        refused = await client.options("/generate", headers={**preflight, "Origin": "https://else.example"})
        assert refused.status_code == 400
        assert "cors_origins" in error_of(refused)["message"]


OPENAI_JS = (
    "authorization,content-type,accept,user-agent,openai-organization,openai-project,x-stainless-arch,x-stainless-lang,"
    "x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,x-stainless-timeout,"
    "x-stainless-runtime-version,x-stainless-helper-method,idempotency-key,x-request-id,traceparent,tracestate,baggage"
)


@pytest.mark.parametrize("headers", [OPENAI_JS, "X-Stainless-OS", "traceparent", "x-some-gateway", None])
@pytest.mark.parametrize("origins", ["https://ward.example", "https://a.example,https://ward.example", "*"])
async def test_a_browser_of_a_listed_origin_may_send_what_its_clients_send(headers: str | None, origins: str) -> None:
    preflight = {"Origin": "https://ward.example", "Access-Control-Request-Method": "POST"}
    if headers is not None:
        preflight["Access-Control-Request-Headers"] = headers
    async with in_process(load_settings(cors_origins=origins, api_keys="k")) as (client, _):
        for path in ("/generate", "/v1/chat/completions"):
            response = await client.options(path, headers=preflight)
            assert response.status_code == 200
            allowed = response.headers.get("access-control-allow-headers", "").lower()
            assert allowed == (headers or "").lower()
            assert "POST" in response.headers["access-control-allow-methods"]
        from_public = {**preflight, "Access-Control-Request-Private-Network": "true"}
        assert (await client.options("/generate", headers=from_public)).status_code == 200
        if origins != "*":
            refused = await client.options("/generate", headers={**preflight, "Origin": "https://else.example"})
            assert refused.status_code == 400
            assert "access-control-allow-origin" not in refused.headers
        answer = await client.get("/info", headers={"Origin": "https://ward.example", **bearer("k")})
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


def test_one_key_cannot_take_every_place() -> None:
    settings = load_settings(port=0, api_keys="a,b", max_concurrent_per_key=1)
    with live(settings, fake_ensemble(step_delay_s=0.005)) as server, server.client() as client:
        body = {"prompt": PROMPT, "stream": True, "min_new_tokens": 500, "max_new_tokens": 600}
        with client.stream("POST", "/generate", json=body, headers=bearer("a")):
            refused = client.post("/generate", json={"prompt": PROMPT}, headers=bearer("a"))
            assert (refused.status_code, error_of(refused)["code"]) == (429, "key_limit")
            assert client.post("/generate", json={"prompt": PROMPT}, headers=bearer("b")).status_code == 200


async def test_json_log_lines_have_the_facts_of_a_request() -> None:
    log = io.StringIO()
    with logging_to(log.write, Settings(log_format="json", log_level="debug")):
        async with in_process(load_settings(api_keys="k")) as (client, _):
            body = {"prompt": PROMPT, "max_new_tokens": 3}
            await client.post("/generate", json=body, headers={**bearer("k"), "X-Request-ID": "r-1"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (line,) = [line for line in lines if line["logger"] == "emorl.access"]
    assert {name: line[name] for name in ("request_id", "method", "route", "status", "key", "outcome", "tokens")} == {
        "request_id": "r-1", "method": "POST", "route": "/generate", "status": 200, "key": "key-1", "outcome": "length",
        "tokens": 3,
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_method_that_is_none_is_not_logged_by_its_name(log_format: Literal["json", "console"]) -> None:
    log = io.StringIO()
    with logging_to(log.write, Settings(log_format=log_format)):
        async with in_process() as (client, _):
            assert (await client.request("ZEBRAFISH", "/generate")).status_code == 405
    assert "_OTHER" in log.getvalue()
    assert "ZEBRAFISH" not in log.getvalue()


async def test_the_openapi_document_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask for it: rendering takes long, and without keys anybody may ask."""
    rendered: list[dict[str, Any]] = []
    async with in_process() as (client, _):
        app = client._transport.app  # type: ignore[attr-defined]
        render = app.openapi
        monkeypatch.setattr(app, "openapi", lambda: rendered.append(render()) or rendered[-1])
        answers = [await client.get("/openapi.json") for _ in range(3)]
    assert len(rendered) == 1
    assert all(answer.json() == rendered[0] for answer in answers)


def test_the_openapi_document_is_served_from_here_alone(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == 200
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404, "these pages load scripts from elsewhere"
