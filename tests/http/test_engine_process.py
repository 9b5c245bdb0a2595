"""The engine in a process of its own: what goes to and fro arrives, and its end ends no connection."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from emorl_core import errors as core_errors
from emorl_core.errors import EmorlError
from server.door import errors as door_errors
from server.engine import child
from server.engine.clock import StepClock
from server.engine.commands import Add
from server.engine.host import Patience
from server.engine.process import EngineLost, _parts
from server.engine.remote import RemoteFrontend
from server.serving.deployment import load
from server.settings import Settings, load_settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import NO_TLS, PROMPT, Live, error_of, events, live, wait_until

LONG = {"prompt": PROMPT, "stream": True, "min_new_tokens": 200, "max_new_tokens": 200}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("process") / "bundle")


def settings_of(bundle: Path, **more: Any) -> Settings:
    return load_settings(
        **{"port": 0, "bundle": str(bundle), "dtype": "float32", "threads": 1, "engine": "process", **more}
    )


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Live]:
    with live(settings_of(bundle)) as running:
        yield running


def pid_of(server: Live) -> int:
    frontend = server.service.deployment().ensemble
    assert isinstance(frontend, RemoteFrontend)
    return frontend.process.pid


VARYING = ("id", "request_id", "created", "seed", "timing", "receipt")


def steady(answer: Any) -> Any:
    """Without what differs from run to run."""
    if isinstance(answer, dict):
        return {name: steady(value) for name, value in answer.items() if name not in VARYING}
    return [steady(each) for each in answer] if isinstance(answer, list) else answer


THREE = [{"empathy": 1.0}, {"reflection": 1.0}, {"base": 1.0}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": PROMPT, "attribution": True, "max_new_tokens": 9}),
    ("/generate", {"prompt": PROMPT, "temperature": 0.9, "seed": 7, "top_p": 0.9, "max_new_tokens": 9}),
    ("/generate", {"prompt": PROMPT, "weights": {"empathy": 2.0, "base": -1.0}, "normalize": False}),
    ("/sweep", {"prompts": [f"{PROMPT} {i}" for i in range(150)], "weights": THREE, "max_new_tokens": 3}),
    ("/sweep/line", {"prompt": PROMPT, "from": THREE[0], "to": THREE[1], "max_new_tokens": 5}),
    ("/sweep/map", {"prompt": PROMPT, "corners": THREE, "max_new_tokens": 3}),
    ("/v1/completions", {"model": "tiny", "prompt": PROMPT, "logprobs": 3, "seed": 5, "max_tokens": 6}),
    ("/drafts", {"prompt": PROMPT, "seed": 3, "max_new_tokens": 6}),
]


def test_every_kind_of_request_gets_what_an_engine_in_the_same_process_gives(server: Live, bundle: Path) -> None:
    with live(settings_of(bundle, engine="thread")) as other, other.client() as one, server.client() as two:
        for path, body in ASKED:
            here, there = one.post(path, json=body), two.post(path, json=body)
            assert (here.status_code, there.status_code) == (200, 200), (path, here.text, there.text)
            assert steady(there.json()) == steady(here.json()), path
        assert steady(two.get("/info").json()) == steady(one.get("/info").json())


def test_an_engine_that_is_killed_ends_its_streams_with_an_error_and_comes_back(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with live(settings_of(bundle)) as server, server.client() as client:
        with client.stream("POST", "/generate", json=LONG) as stream:
            lines = stream.iter_lines()
            next(lines)
            killed = pid_of(server)
            os.kill(killed, signal.SIGKILL)
            rest = "\n".join(lines)
        assert '"code":"engine_restarted"' in rest
        assert client.get("/livez").status_code == 200
        wait_until(lambda: client.get("/readyz").status_code == 200, "another engine serves")
        assert pid_of(server) != killed
        whole = client.post("/generate", json={**LONG, "stream": False})
        assert whole.json()["usage"]["completion_tokens"] == 200
        assert "\nemorl_engine_restarts_total 1.0" in client.get("/metrics").text
    told = [record.getMessage() for record in caplog.records if record.name == "emorl.server"]
    assert "the engine's process is gone: ended by SIGKILL" in told
    assert "the engine's process is started again" in told


def test_an_engine_that_does_not_come_back_makes_the_server_unfit(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.serving.replacing._PAUSES_S", (0.0, 0.0))
    mine = shutil.copytree(bundle, tmp_path / "mine")
    with live(settings_of(mine)) as server, server.client() as client:
        (mine / "bundle.yaml").write_text("nonsense")
        os.kill(pid_of(server), signal.SIGKILL)
        wait_until(lambda: client.get("/livez").status_code == 503, "liveness says so")
        answer = client.post("/generate", json={"prompt": PROMPT})
        assert answer.status_code == 503
        assert error_of(answer)["message"] == "the engine has stopped"


def test_signals_that_end_a_server_do_not_end_its_engine(server: Live) -> None:
    """A terminal sends Ctrl-C to both; requests in progress still have to end."""
    with server.client() as client, client.stream("POST", "/generate", json=LONG) as stream:
        lines = stream.iter_lines()
        first = next(lines)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid_of(server), number)
        rest = "\n".join([first, *lines]) + "\n"
    assert events(rest.lstrip("\n"))[-1]["usage"]["completion_tokens"] == 200


def test_an_engine_ends_with_a_server_that_is_killed(bundle: Path) -> None:
    command = [sys.executable, "-m", "emorl_cli", "serve", str(bundle), "--port", "0", "--engine", "process"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            httpx.get(f"{url}/readyz", verify=NO_TLS).raise_for_status()
            children = psutil.Process(server.pid).children(recursive=True)
            assert children
        finally:
            server.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_what_the_engine_logs_is_in_the_servers_log(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live(settings_of(bundle)):
        pass
    told = {(record.levelname, record.name, record.getMessage()) for record in caplog.records}
    assert ("INFO", "emorl.server", "computing with 1 thread") in told


def test_a_step_that_hangs_is_seen_from_another_process() -> None:
    now = 5.0
    clock = StepClock.create(now=lambda: now)
    assert clock.running_for_s() == 0.0
    script = (
        "import sys; from server.engine.clock import StepClock;"
        "clock = StepClock(int(sys.argv[1]), now=lambda: 2.0); clock.begin()"
    )
    command = [sys.executable, "-c", script, str(clock.fileno())]
    subprocess.run(command, check=True, pass_fds=[clock.fileno()], cwd=Path(__file__).parents[2])
    assert clock.running_for_s() == 3.0
    clock.end()
    assert clock.running_for_s() == 0.0


def test_a_job_of_many_prompts_is_sent_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.process._GROUPS", 2)
    whole = Add(3, tuple((name,) for name in "abcde"), "somebody")  # type: ignore[misc]
    parts = list(_parts(whole))
    assert all(isinstance(part, Add) for part in parts)
    assert [(part.job, part.client, part.last) for part in parts] == [(3, "somebody", last) for last in (0, 0, 1)]
    assert sum((part.groups for part in parts), ()) == whole.groups


def every_error() -> list[type[EmorlError]]:
    modules = (core_errors, door_errors)
    found = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, EmorlError)] + [EngineLost]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_errors_arrive_as_they_were(kind: type[EmorlError]) -> None:
    error = kind("what is wrong")
    error.param = "field.0"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.param, copy.code, vars(copy)) == ("what is wrong", "field.0", kind.code, vars(error))


def test_a_process_that_ends_while_it_loads_is_told_in_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.process._CHILD", "raise SystemExit(3)")
    with pytest.raises(EngineLost, match="ended while it loaded the bundle: exit code 3"):
        load(settings_of(bundle))


def test_a_compiler_stands_still_while_requests_wait_but_not_for_ever() -> None:
    patience = Patience(most_s=10.0)
    assert not patience.still(False, 0.0)
    assert patience.still(True, 1.0)
    assert patience.still(True, 5.0)
    assert not patience.still(False, 6.0)
    assert patience.still(True, 100.0), "only the time that it stood still counts"
    assert patience.still(True, 104.0)
    assert not patience.still(True, 105.0)
    assert not patience.still(True, 106.0)


def test_the_thread_that_loads_the_bundle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it lived, OpenMP would share the cores out between its threads and the engine's."""
    loading: list[threading.Thread] = []
    monkeypatch.setattr(child.Ensemble, "load", lambda files, **options: loading.append(threading.current_thread()))
    child._loaded(SimpleNamespace(files=None, options={}))  # type: ignore[arg-type]
    (thread,) = loading
    assert not thread.is_alive()
