"""Liveness, readiness and startup mean different things, and each of them is true."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.serving import deployment
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, in_process, is_ready, live, model_of, until, wait_until


def test_while_loading_it_lives_and_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    def slow_load(settings: Settings, group: None) -> object:
        assert loaded.wait(60)
        return fake_ensemble()

    monkeypatch.setattr("server.serving.service.load", slow_load)
    with live(Settings(port=0, bundle="somewhere"), ready=False) as server, server.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/startupz", "/info", "/objectives", "/profiles"):
            response = client.get(path)
            assert (response.status_code, error_of(response)["code"]) == (503, "not_ready"), path
            assert "retry-after" in response.headers
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 503
        loaded.set()
        wait_until(lambda: client.get("/readyz").status_code == 200, "it is ready")
        assert client.get("/startupz").status_code == 200
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 200


async def test_readiness_waits_for_a_mix_that_really_worked() -> None:
    ensemble = fake_ensemble()
    go_on = threading.Event()

    def hold(prompts: list[tuple[int, ...]]) -> None:
        assert go_on.wait(60)

    model_of(ensemble).on_step = hold
    async with in_process(ensemble=ensemble, ready=False) as (client, service):
        await until(lambda: "warming up" in str(service.unready()), "the bundle is loaded")
        assert (await client.get("/info")).status_code == 200
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert "warming up" in error_of(response)["message"]
        assert (await client.get("/livez")).status_code == 200
        go_on.set()
        await until(lambda: is_ready(service), "the server is ready")
        assert ensemble.engine.runner.lane_row_steps == len(ensemble.lanes), "one token through every lane"


async def test_a_bundle_that_cannot_be_loaded_fails_liveness(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"bundle\.yaml"):
        deployment.load(Settings(bundle=str(tmp_path)))
    app = create_app(Settings(bundle=str(tmp_path)))
    async with app.router.lifespan_context(app):
        service = app.state.service
        await until(lambda: service.failure is not None, "the load has failed")
        assert service.dead() is not None
        assert service.unready() is not None


def test_health_does_not_stay_good_after_the_device_failed() -> None:
    with live() as server, server.client() as client:

        def lost(*_: object) -> list[object]:
            raise RuntimeError("device lost")

        server.service.deployment().ensemble.engine.step = lost  # type: ignore[method-assign, assignment]
        assert client.post("/generate", json={"prompt": PROMPT}).status_code == 503
        wait_until(lambda: client.get("/livez").status_code == 503, "liveness fails")
        assert client.get("/healthz").status_code == 503
        assert client.get("/readyz").status_code == 503


def test_a_step_that_hangs_fails_liveness() -> None:
    go_on = threading.Event()
    with live(Settings(port=0, stall_s=0.1)) as server, server.client() as client:

        def hang(prompts: list[tuple[int, ...]]) -> None:
            assert go_on.wait(60)

        server.model.on_step = hang
        answers: list[int] = []

        def ask() -> None:
            with server.client() as other:
                answers.append(other.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 1}).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: client.get("/livez").status_code == 503, "liveness fails")
        assert client.get("/readyz").status_code == 503
        go_on.set()
        thread.join(60)
        assert answers == [200]
        assert client.get("/livez").status_code == 200


async def test_the_listings_tell_what_can_be_asked_for() -> None:
    async with in_process() as (client, _):
        objectives = (await client.get("/objectives")).json()["objectives"]
        assert [objective["name"] for objective in objectives] == ["base", "reflection", "empathy", "fluency"]
        assert [objective["adapter"] for objective in objectives] == [False, True, True, True]
        profiles = (await client.get("/profiles")).json()
        assert profiles["default"] == "balanced"
        by_name = {profile["name"]: profile["weights"] for profile in profiles["profiles"]}
        assert by_name["empathy"] == {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0}
        info = (await client.get("/info")).json()
        assert info["limits"]["max_source_tokens"] == 128
        assert info["limits"]["slots"] == 8
        assert info["model"] == "fake"
