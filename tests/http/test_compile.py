"""`compile: auto`: the plain step serves, and the compiled one takes over between requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import UnsupportedModel
from emorl_core.fake import fake_ensemble
from server.engine.host import EngineHost
from server.engine.reports import Ready, Report, Stepped, Told
from server.serving.deployment import load
from server.settings import Settings, SettingsError, load_settings
from tests.http.harness import live, wait_until

ASKED = {"prompt": "you feel tired", "max_new_tokens": 4, "receipt": True}


class Slow:
    """A compilation that takes as long as the test wants it to."""

    def __init__(self, ensemble: Ensemble, fails: str = "") -> None:
        self._model = ensemble.engine.model.compilation(Path("unused")).load()
        self._fails = fails
        self.go = threading.Event()
        self.stopped = False

    def make(self, *, idly: bool) -> Any:
        assert idly
        assert self.go.wait(60)
        if self._fails or self.stopped:
            raise UnsupportedModel(self._fails or "it was stopped")
        return self._model

    def pause(self, paused: bool) -> None:
        """Nobody waits here."""
        assert not paused

    def stop(self) -> None:
        self.stopped = True
        self.go.set()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[str], bool]:
    caplog.set_level(logging.INFO, "emorl.server")
    return lambda words: any(words in record.getMessage() for record in caplog.records)


def test_requests_get_the_compiled_step_once_it_is_there(told: Callable[[str], bool]) -> None:
    ensemble = fake_ensemble()
    ensemble.compilation = slow = Slow(ensemble)  # type: ignore[assignment]
    with live(ensemble=ensemble) as server, server.client() as client:
        before = client.post("/generate", json=ASKED).json()
        assert client.get("/info").json()["compiled"] is before["receipt"]["compiled"] is False
        assert "emorl_step_compiled 0.0" in client.get("/metrics").text
        slow.go.set()
        wait_until(lambda: client.get("/info").json()["compiled"], "the step is exchanged")
        after = client.post("/generate", json=ASKED).json()
        assert after["receipt"]["compiled"] is True
        assert after["text"] == before["text"]
        wait_until(lambda: "emorl_step_compiled 1.0" in client.get("/metrics").text, "the metric follows")
        assert told("the decoding step is compiled, after")


def test_where_it_cannot_be_compiled_the_plain_step_serves_on(told: Callable[[str], bool]) -> None:
    ensemble = fake_ensemble()
    ensemble.compilation = slow = Slow(ensemble, "torch finds no C++ compiler")  # type: ignore[assignment]
    slow.go.set()
    with live(ensemble=ensemble) as server, server.client() as client:
        wait_until(lambda: told("the plain decoding step serves on: torch finds no C++ compiler"), "the log says why")
        assert client.post("/generate", json=ASKED).json()["receipt"]["compiled"] is False


def test_a_server_that_ends_stops_the_compiler() -> None:
    ensemble = fake_ensemble()
    ensemble.compilation = slow = Slow(ensemble)  # type: ignore[assignment]
    with live(ensemble=ensemble):
        assert not slow.stopped
    assert slow.stopped


@pytest.mark.parametrize(
    ("given", "meant"),
    [("auto", "auto"), ("on", "on"), ("off", "off"), (True, "on"), (False, "off"), ("true", "on"), ("0", "off")],
)
def test_it_is_a_setting(given: object, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(compile=given).compile == meant
    monkeypatch.setenv("EMORL_COMPILE", str(given))
    assert load_settings().compile == meant
    monkeypatch.delenv("EMORL_COMPILE")
    file = tmp_path / "settings.yaml"
    file.write_text(f"compile: {str(given).lower()}\n")
    settings = load_settings(config=file, bundle="my-bundle", engine="process", compile_cache=tmp_path)
    assert settings.compile == meant
    with mock.patch("server.serving.deployment.load_apart") as loaded:
        load(settings)
    _, options = loaded.call_args.args
    assert options["compile"] == {"auto": "auto", "on": True, "off": False}[meant]
    assert options["compile_cache"] == tmp_path


def test_the_compiler_goes_on_when_those_who_waited_have_gone_without_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = fake_ensemble()
    told: list[bool] = []
    ensemble.compilation = mock.Mock(pause=told.append)
    host = EngineHost(ensemble, queue_timeout_s=1.0)
    heard: list[Callable[[Report], None]] = []
    monkeypatch.setattr(host._thread, "start", heard.append)
    host.start(lambda _: None)
    (report,) = heard
    stats = ensemble.engine.stats
    for each in (Ready(stats), Stepped(replace(stats, waiting=3), ()), Told(())):
        report(each)
    assert told == [False, True, False]


def test_by_default_it_compiles_into_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMORL_COMPILE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings().compile == "auto"
    assert Settings().compiled_steps == tmp_path / "emorl" / "compiled"


@pytest.mark.parametrize("given", ["yes please", 2, "None", []])
def test_what_it_cannot_be_is_refused_in_one_line(given: object) -> None:
    with pytest.raises(SettingsError, match=r"^compile: ") as caught:
        load_settings(compile=given)
    assert "\n" not in caught.value.message
