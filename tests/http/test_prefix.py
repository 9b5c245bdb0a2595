"""Behind a proxy that serves under a path prefix: one that takes it off, one that leaves it on, and none at all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from emorl_core.errors import EmorlError
from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.settings import Settings, SettingsError, load_settings
from tests.http.harness import PROMPT, Proxy, error_of, events, is_ready, live, until

PREFIX = "/ward/emorl"


@asynccontextmanager
async def behind(settings: Settings, *, strips: bool) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, fake_ensemble())
    async with app.router.lifespan_context(app):
        await until(lambda: is_ready(app.state.service), "the server is ready")
        transport = httpx.ASGITransport(app=Proxy(app, PREFIX, strips=strips))
        async with httpx.AsyncClient(transport=transport, base_url="http://emorl") as client:
            yield client


@pytest.mark.parametrize("strips", [True, False])
async def test_every_route_works_under_the_prefix(strips: bool) -> None:
    settings = load_settings(root_path=PREFIX, api_keys="k", admin_keys="boss", allowed_hosts="emorl")
    key = {"Authorization": "Bearer k"}
    async with behind(settings, strips=strips) as client:
        for path in ("/livez", "/readyz", "/metrics", "/", "/playground/app.js"):
            assert (await client.get(PREFIX + path)).status_code == 200, path
        for path in ("/info", "/v1/models", "/openapi.json"):
            assert (await client.get(PREFIX + path)).status_code == 401, path
            assert (await client.get(PREFIX + path, headers=key)).status_code == 200, path
        assert (await client.post(f"{PREFIX}/admin/reload")).status_code == 401
        body = {"prompt": PROMPT, "stream": True}
        streamed = await client.post(f"{PREFIX}/generate", json=body, headers=key)
        assert events(streamed.text)[-1]["type"] == "done"
        refused = await client.post(f"{PREFIX}/v1/completions", json={"model": "fake", "prompt": ""}, headers=key)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "prompt")
        counted = (await client.get(f"{PREFIX}/metrics")).text
        assert re.search(r'emorl_requests_total\{outcome="\w+",route="/generate"\} 1\.0', counted)
        assert "ward" not in counted


@pytest.mark.parametrize("strips", [True, False])
async def test_the_page_names_its_files_from_where_it_is(strips: bool) -> None:
    async with behind(load_settings(root_path=PREFIX), strips=strips) as client:
        bare = await client.get(PREFIX)
        assert (bare.status_code, bare.headers["location"]) == (308, f"{PREFIX}/")
        page = await client.get(f"{PREFIX}/")
        names = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
        assert len(names) > 5
        for name in names:
            assert (await client.get(str(httpx.URL(f"http://emorl{PREFIX}/").join(name)))).status_code == 200, name
        document = (await client.get(f"{PREFIX}/openapi.json")).json()
        assert document["servers"] == [{"url": PREFIX}]
        assert "/generate" in document["paths"]


async def test_a_proxy_that_takes_the_prefix_off_needs_no_setting() -> None:
    async with behind(load_settings(), strips=True) as client:
        assert (await client.get(f"{PREFIX}/")).status_code == 200
        assert (await client.get(f"{PREFIX}/info")).status_code == 200
        assert "servers" not in (await client.get(f"{PREFIX}/openapi.json")).json()


async def test_without_a_proxy_the_paths_are_what_they_were() -> None:
    settings = load_settings(root_path=PREFIX, api_keys="k")
    app = create_app(settings, fake_ensemble())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://emorl") as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/info")).status_code == 401
        for path in ("/ward", "/ward/emorlx/livez", "/ward/emorl.livez", f"/x{PREFIX}/livez", f"{PREFIX}//livez"):
            assert (await client.get(path)).status_code == 401, "no probe, so it asks for a key"
        assert (await client.post(PREFIX, headers={"Authorization": "Bearer k"})).status_code == 405


async def test_mounted_in_another_app_it_needs_no_setting_either() -> None:
    inner = create_app(load_settings(api_keys="k"), fake_ensemble())
    outer: Any = Starlette(routes=[Mount(PREFIX, inner)])
    async with (
        inner.router.lifespan_context(inner),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=outer), base_url="http://emorl") as client,
    ):
        await until(lambda: is_ready(inner.state.service), "the server is ready")
        assert (await client.get(f"{PREFIX}/livez")).status_code == 200
        assert (await client.get(f"{PREFIX}/")).status_code == 200
        assert (await client.get(f"{PREFIX}/info")).status_code == 401
        assert (await client.get(f"{PREFIX}/info", headers={"Authorization": "Bearer k"})).status_code == 200


def test_the_openai_client_works_under_the_prefix() -> None:
    def proxy(app: Any) -> Proxy:
        return Proxy(app, PREFIX, strips=False)

    with (
        live(load_settings(port=0, root_path=PREFIX), ready=True, behind=proxy) as server,
        openai.OpenAI(base_url=f"{server.url}{PREFIX}/v1", api_key="x", max_retries=0) as ai,
    ):
        assert next(iter(ai.models.list())).id == "fake"
        assert ai.completions.create(model="fake", prompt=PROMPT, max_tokens=2).choices


@pytest.mark.parametrize(
    "root_path", ["emorl", "/emorl?x", "/a b", "//emorl", "/a//b", "/../x", "/a/..", "http://x/emorl"]
)
def test_what_is_no_path_is_refused(root_path: str) -> None:
    with pytest.raises(SettingsError, match="root_path: allowed: empty, or a path such as /emorl"):
        load_settings(root_path=root_path)


@pytest.mark.parametrize(("given", "taken"), [("", ""), ("/", ""), ("/emorl/", "/emorl"), ("/a/b.c-d", "/a/b.c-d")])
def test_a_slash_at_the_end_makes_no_difference(given: str, taken: str) -> None:
    assert load_settings(root_path=given).root_path == taken


@pytest.mark.parametrize("root_path", ["/v1", "/generate", "/playground", "/admin", "/v1/chat", "/livez"])
def test_a_prefix_that_begins_a_route_would_make_paths_unclear(root_path: str) -> None:
    with pytest.raises(EmorlError, match=f"root_path is '{root_path}'"):
        create_app(load_settings(root_path=root_path), fake_ensemble())
