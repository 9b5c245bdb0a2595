"""A changed bundle takes over without a request lost; a bad one is refused and the old one serves on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from emorl_core.bundles.bundle import BUNDLE_FILE, Bundle, write_spec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.bundles.stored_scorers import store_scorers
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Context, build_scorer
from server.door.errors import ReloadFailed
from server.settings import Settings, load_settings
from tests.builders import tiny_adapter, tiny_t5_bundle
from tests.http.harness import PROMPT, error_of, events, idle, in_process, is_ready, live, wait_until
from tests.learn.scorer_models import classifier

BOSS = {"Authorization": "Bearer boss"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("reload"))


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "bundle")


def add_profile(bundle: Path, name: str) -> None:
    spec = Bundle.open(bundle).spec
    write_spec(
        bundle, spec.model_copy(update={"profiles": {**spec.profiles, name: ProfileSpec(weights={"base": 1.0})}})
    )


def settings_for(bundle: Path, **more: Any) -> Settings:
    return load_settings(port=0, bundle=str(bundle), admin_keys="boss", dtype="float32", **more)


def test_new_profiles_and_retrained_adapters_are_taken(bundle: Path) -> None:
    with live(settings_for(bundle)) as server, server.client() as client:
        ask = {"prompt": "I can't keep up at work.", "profile": "empathy", "max_new_tokens": 20, "min_new_tokens": 20}
        before = client.post("/generate", json=ask).json()["text"]
        add_profile(bundle, "plain")
        shutil.rmtree(bundle / "adapters" / "empathy")
        tiny_adapter(bundle / "base", bundle / "adapters" / "empathy", 4, 8.0, seed=77)
        assert client.post("/generate", json={**ask, "profile": "plain"}).status_code == 422
        answer = client.post("/admin/reload", headers=BOSS)
        assert answer.status_code == 200
        assert "plain" in answer.json()["profiles"]
        assert client.post("/generate", json={**ask, "profile": "plain"}).status_code == 200
        assert client.post("/generate", json=ask).json()["text"] != before
        assert "tiny:plain" in [model["id"] for model in client.get("/v1/models").json()["data"]]


def test_scorers_come_with_a_reload_and_other_files_than_those_are_refused(bundle: Path, tmp_path: Path) -> None:
    judge = classifier(tmp_path / "judge", ["bad", "good"])
    given = {"kind": "cross_encoder", "model": "judge"}
    texts = ["you feel tired", "go old new red"]
    ask = {"prompt": "i feel sad", "texts": texts}
    with live(settings_for(bundle)) as server, server.client() as client:
        assert error_of(client.post("/score", json=ask))["param"] == "score"
        scorers, files = store_scorers(bundle, {"reflection": given}, tmp_path)
        spec = Bundle.open(bundle).spec
        write_spec(bundle, spec.model_copy(update={"scorers": scorers, "scorer_files": files}))
        assert client.post("/admin/reload", headers=BOSS).status_code == 200
        results = client.post("/score", json=ask).json()["results"]
        wanted = build_scorer(given, Context("cpu", tmp_path))(["i feel sad"] * 2, texts)
        assert [each["scores"]["reflection"] for each in results] == [round(score, 6) for score in wanted]
        (place,) = files
        shutil.copyfile(judge / "config.json", bundle / place / "more.json")
        refused = client.post("/admin/reload", headers=BOSS)
        assert refused.status_code == 409
        assert f"scorer_files.{place}" in error_of(refused)["message"]
        assert client.post("/score", json=ask).json()["results"] == results


@pytest.mark.usefixtures("own_process")
@pytest.mark.parametrize("damage", ["yaml", "adapter", "tokenizer", "vocabulary", "gone"])
def test_a_bad_bundle_is_refused_with_the_reason_and_the_old_one_serves_on(bundle: Path, damage: str) -> None:
    with live(settings_for(bundle)) as server, server.client() as client:
        before = server.service.deployment()
        if damage == "yaml":
            (bundle / BUNDLE_FILE).write_text("format: emorl-bundle/1\nprofil: {}\n")
        elif damage == "adapter":
            (bundle / "adapters" / "empathy" / "adapter_model.safetensors").write_bytes(b"not safetensors")
        elif damage == "tokenizer":
            (bundle / "base" / "tokenizer.json").unlink()
            (bundle / "base" / "tokenizer_config.json").unlink()
        elif damage == "vocabulary":
            words = json.loads((bundle / "base" / "tokenizer.json").read_text())
            words["added_tokens"].append({**words["added_tokens"][-1], "id": 367, "content": "<more>"})
            (bundle / "base" / "tokenizer.json").write_text(json.dumps(words))
        else:
            shutil.rmtree(bundle)
        response = client.post("/admin/reload", headers=BOSS)
        assert response.status_code == 409
        error = error_of(response)
        assert error["code"] == "reload_failed"
        assert "the old one serves on" in error["message"]
        assert server.service.deployment() is before
        assert client.get("/readyz").status_code == 200
        assert client.post("/generate", json={"prompt": "work hurts"}).status_code == 200


def test_running_requests_finish_with_what_they_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [fake_ensemble(step_delay_s=0.005), fake_ensemble(("calm", "empathy"))]
    loads = iter(made)
    monkeypatch.setattr("server.serving.service.load", lambda settings, group: next(loads))
    with live(Settings(port=0, bundle="any")) as server, server.client() as client:
        body = {"prompt": PROMPT, "stream": True, "min_new_tokens": 60, "max_new_tokens": 60, "profile": "fluency"}
        with client.stream("POST", "/generate", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            old, before = server.service.deployment(), prefill_misses(client)
            asyncio.run_coroutine_threadsafe(server.service.reload(), server.loop).result(60)
            assert server.service.deployment() is not old
            assert prefill_misses(client) >= before > 0, "Prometheus would take a smaller count for a restart"
            assert client.post("/generate", json={"prompt": PROMPT, "profile": "fluency"}).status_code == 422
            assert client.post("/generate", json={"prompt": PROMPT, "profile": "calm"}).status_code == 200
            assert old.worker.alive, "it still has a request"
            rest = "\n".join(lines) + "\n"
        assert (
            events(rest.lstrip("\n"))[-1]["text"]
            == fake_ensemble().generate(PROMPT, profile="fluency", min_new_tokens=60, max_new_tokens=60).text
        )
        wait_until(lambda: not old.worker.alive, "the old engine's thread ends")
        wait_until(lambda: idle(server), "everything is free again")
        assert prefill_misses(client) > made[1].engine.stats.prefill_misses, "counters go on where they were"


def prefill_misses(client: httpx.Client) -> float:
    return float(client.get("/metrics").text.split("\nemorl_prefill_cache_misses_total ")[1].split("\n")[0])


def test_reloading_under_load_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "server.serving.service.load", lambda settings, group: fake_ensemble(slots=4, step_delay_s=0.001)
    )
    with live(Settings(port=0, bundle="any", max_queue=50)) as server:
        statuses: list[int] = []
        stop = threading.Event()

        def keep_asking() -> None:
            with server.client() as client:
                while not stop.is_set():
                    statuses.append(client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 5}).status_code)

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(4):
            asyncio.run_coroutine_threadsafe(server.service.reload(), server.loop).result(60)
        seen = len(statuses)
        wait_until(lambda: len(statuses) > seen + 8, "the last one serves")
        stop.set()
        for thread in threads:
            thread.join(60)
        assert set(statuses) == {200}
        wait_until(lambda: idle(server), "everything is free again")


async def test_a_server_that_was_given_its_model_says_so() -> None:
    async with in_process(load_settings(admin_keys="boss")) as (client, service):
        response = await client.post("/admin/reload", headers=BOSS)
        assert (response.status_code, error_of(response)["code"]) == (409, "reload_failed")
        with pytest.raises(ReloadFailed, match="there is no bundle"):
            await service.reload()


def test_two_reloads_at_once_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    calls: list[int] = []

    def load(settings: Settings, group: None) -> object:
        calls.append(1)
        assert len(calls) == 1 or go_on.wait(60)
        return fake_ensemble()

    monkeypatch.setattr("server.serving.service.load", load)
    with live(Settings(port=0, bundle="any")) as server:
        first = asyncio.run_coroutine_threadsafe(server.service.reload(), server.loop)
        wait_until(lambda: len(calls) == 2, "it loads")
        with pytest.raises(ReloadFailed, match="try again later"):
            asyncio.run_coroutine_threadsafe(server.service.reload(), server.loop).result(60)
        go_on.set()
        first.result(60)


class Loads:
    """Stands for `load`: every call waits until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self._go_on = threading.Semaphore(0)
        monkeypatch.setattr("server.serving.service.load", self)

    def __call__(self, settings: Settings, group: None) -> Ensemble:
        self.begun += 1
        assert self._go_on.acquire(timeout=60)
        return fake_ensemble()

    def go_on(self, calls: int = 1) -> None:
        self._go_on.release(calls)

    def wait_for(self, calls: int) -> None:
        wait_until(lambda: self.begun == calls, f"load number {calls} has begun")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("SIGHUP")]


def test_of_the_signals_during_a_reload_one_is_kept_and_all_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    loads = Loads(monkeypatch)
    loads.go_on()
    with live(Settings(port=0, bundle="any")) as server:
        wait_until(lambda: server.service.started, "it has started")
        server.call(server.service.reload_soon)
        loads.wait_for(2)
        for _ in range(3):
            server.call(server.service.reload_soon)
        during = server.service.deployment()
        loads.go_on()
        loads.wait_for(3)
        assert server.service.deployment() is not during, "the first one has taken over"
        server.call(server.service.reload_soon)  # the third load may have read what came before this
        loads.go_on(2)
        loads.wait_for(4)
        wait_until(lambda: not server.service._loading.locked(), "the last one is done")
    assert loads.begun == 4
    now, after = "the bundle will be loaded again now", "the bundle will be loaded again after the load in progress"
    waiting = "a reload is waiting already and will see this change too"
    assert told(caplog) == [f"SIGHUP: {line}" for line in (now, after, waiting, waiting, after)]


def test_a_signal_during_the_start_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loads = Loads(monkeypatch)
    with live(Settings(port=0, bundle="any"), ready=False) as server:
        loads.wait_for(1)
        server.call(server.service.reload_soon)
        server.call(server.service.reload_soon)
        loads.go_on(2)
        loads.wait_for(2)
        wait_until(lambda: is_ready(server.service), "it is ready")
        wait_until(lambda: not server.service._loading.locked(), "the reload is done")
    assert len(told(caplog)) == 2
    assert loads.begun == 2


def test_a_signal_and_the_route_do_not_lose_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    loads.go_on()
    with live(Settings(port=0, bundle="any", admin_keys=("boss",))) as server, ThreadPoolExecutor() as pool:

        def post() -> int:
            with server.client() as client:
                return client.post("/admin/reload", headers=BOSS).status_code

        wait_until(lambda: server.service.started, "it has started")
        first = pool.submit(post)
        loads.wait_for(2)
        assert post() == 409, "who can be told is told"
        server.call(server.service.reload_soon)  # who cannot be told is remembered
        loads.go_on()
        assert first.result(60) == 200
        loads.wait_for(3)
        assert post() == 409
        loads.go_on()
        wait_until(lambda: not server.service._loading.locked(), "the second one is done")
        loads.go_on()
        assert post() == 200


def test_a_reload_that_cannot_end_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads(monkeypatch)
    loads.go_on()
    with live(Settings(port=0, bundle="any", admin_keys=("boss",))) as server, ThreadPoolExecutor() as pool:
        wait_until(lambda: server.service.started, "it has started")
        with server.client() as client:
            answer = pool.submit(client.post, "/admin/reload", headers=BOSS)
            loads.wait_for(2)
            server.call(server.service.reload_soon)
            server.call(server.server.begin_drain)
            assert error_of(answer.result(60))["message"] == "the server is shutting down; the bundle was not taken"
        loads.go_on(2)
        server.thread.join(60)
        assert not server.thread.is_alive()
    assert loads.begun == 2


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "reloads"), [("thread", 100), ("process", 10)])
def test_under_a_hundred_reloads_every_receipt_names_the_bundle_that_made_it(
    bundle: Path, tmp_path: Path, engine: str, reloads: int
) -> None:
    """Two bundles change places at random moments; each text is made again by the bundle of its receipt."""
    other = tiny_t5_bundle(tmp_path / "other", seed=5)
    ask = {"prompt": "I can't keep up at work.", "profile": "empathy", "max_new_tokens": 12, "receipt": True}
    texts = {}
    for folder in (bundle, other):
        ensemble = Ensemble.load(folder, dtype="float32", hashed=True)
        assert ensemble.hashes is not None
        text = ensemble.generate(ask["prompt"], profile="empathy", max_new_tokens=12).text
        texts[ensemble.hashes.base, *ensemble.hashes.adapters.values()] = text
    assert len(set(texts.values())) == 2
    stop, chance = threading.Event(), random.Random(0)

    def rename() -> None:
        while not stop.wait(chance.uniform(0, 0.2)):
            bundle.rename(tmp_path / "aside")
            other.rename(bundle)
            (tmp_path / "aside").rename(other)

    with live(settings_for(bundle, engine=engine)) as server, server.client() as client:
        thread = threading.Thread(target=rename)
        thread.start()
        try:
            seen = set()
            for _ in range(reloads):
                status = client.post("/admin/reload", headers=BOSS).status_code
                assert status in (200, 409)  # the second: between two renames there is no bundle
                answer = client.post("/generate", json=ask).json()
                named = answer["receipt"]["identity"]
                key = (named["base"], *named["adapters"].values())
                assert answer["text"] == texts[key]
                seen.add(key)
        finally:
            stop.set()
            thread.join()
        assert seen == set(texts) or (engine == "process" and seen), "of few reloads all may find the same one"


@pytest.mark.slow
def test_sighup_reloads_a_real_process(bundle: Path) -> None:
    program = (
        "import sys; from server.run import run; from server.settings import load_settings;"
        "run(load_settings(port=0, bundle=sys.argv[1], dtype='float32'), on_ready=lambda url: print(url, flush=True))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(bundle)],
        cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            (bundle / BUNDLE_FILE).rename(bundle / "hidden")
            child.send_signal(signal.SIGHUP)  # refused: there is no bundle.yaml
            (bundle / "hidden").rename(bundle / BUNDLE_FILE)
            add_profile(bundle, "plain")

            def has_it() -> bool:
                child.send_signal(signal.SIGHUP)
                return "plain" in httpx.get(f"{url}/profiles").text

            wait_until(has_it, "the new profile is there")
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 0
        finally:
            child.kill()
