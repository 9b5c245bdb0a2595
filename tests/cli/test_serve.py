"""`emorl serve`: flags are the settings by the same names, and a real process serves and stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from emorl_cli import serving
from emorl_cli.serve import NOT_FLAGS
from server.settings import Settings

pytestmark = pytest.mark.usefixtures("own_process")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that would have been served."""
    seen: list[Settings] = []
    monkeypatch.setattr(serving, "serve", lambda settings, on_ready, group: seen.append(settings) or 0)
    return seen


def test_every_setting_is_a_flag_except_secrets(emorl) -> None:
    flags = set(re.findall(r"--[a-z-]+", emorl("serve", "--help").out))
    for name in Settings.model_fields:
        assert (f"--{name.replace('_', '-')}" in flags) == (name not in NOT_FLAGS), name


def test_flags_win_over_the_environment_and_the_file(
    emorl, served: list[Settings], bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "emorl.yaml"
    config.write_text("slots: 3\nmax_queue: 4\nkeep_alive_s: 5\n")
    monkeypatch.setenv("EMORL_MAX_QUEUE", "6")
    monkeypatch.setenv("EMORL_KEEP_ALIVE_S", "7")
    ran = emorl("serve", bundle, "--config", config, "--keep-alive-s", "8", "--port", 0, "--metrics-key-required")
    assert (ran.code, ran.err) == (0, "")
    (settings,) = served
    assert (settings.slots, settings.max_queue, settings.keep_alive_s) == (3, 6, 8.0)
    assert settings.metrics_key_required is True
    assert settings.bundle == str(bundle)


def test_the_bundle_may_come_from_the_environment(
    emorl, served: list[Settings], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMORL_BUNDLE", str(bundle))
    assert emorl("serve", "--port", 0).code == 0
    assert served[0].bundle == str(bundle)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "x"], "port"),
        (["--port", "70000"], "port"),
        (["--slots", "0"], "slots"),
        (["--config", "nope"], "nope"),
    ],
)
def test_a_bad_setting_is_one_line(emorl, served: list[Settings], bundle: Path, flags: list[str], words: str) -> None:
    assert words in emorl("serve", bundle, *flags).refused()
    assert served == []


def test_a_bundle_that_is_not_there_is_one_line(emorl, served: list[Settings], tmp_path: Path) -> None:
    assert "bundle: none given" in emorl("serve").refused()
    assert "no such folder" in emorl("serve", tmp_path / "nope", "--port", 0).refused()
    assert served == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--api-keys-file", "no-such-keys"], "api_keys_file is 'no-such-keys'"),
        (["--device", "cuda:77"], "device is 'cuda:77'"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_check_tries_what_a_setting_names(emorl, bundle: Path, flags: list[str], words: str) -> None:
    assert words in emorl("serve", bundle, "--check", *flags).refused()


def test_check_notes_a_misspelt_variable(emorl, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMORL_SLOTTS", "3")
    ran = emorl("serve", bundle, "--check")
    assert ran.code == 0
    assert "EMORL_SLOTTS is no setting" in ran.err


def test_a_taken_port_is_told_before_anything_is_loaded(emorl, served: list[Settings], bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port}" in emorl("serve", bundle, "--port", port).refused()
    assert served == []


@pytest.mark.slow
def test_a_process_serves_streams_and_stops_on_sigterm(bundle: Path) -> None:
    command = [sys.executable, "-m", "emorl_cli", "serve", str(bundle), "--port", "0", "--log-format", "json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # blocks until it is ready, or ends
            assert line.startswith("serving on http://127.0.0.1:"), process.communicate()
            url = line.split()[-1]
            body = {"prompt": "I am tired of work", "weights": {"empathy": 1}, "max_new_tokens": 4, "stream": True}
            request = urllib.request.Request(
                url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                events = [row.removeprefix("data: ") for row in answer.read().decode().split("\n\n") if row]
            assert events.pop() == "[DONE]"
            tokens = [json.loads(event) for event in events]
            done = tokens.pop()
            assert done["type"] == "done"
            assert "".join(token["text"] for token in tokens) == done["text"]
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "tired" not in err
    assert all(set(json.loads(line)) >= {"time", "level", "logger", "message"} for line in err.splitlines())


WATCHED = """
import os, signal, sys
from emorl_cli.main import main  # all that the command itself imports before it begins

class Signals:  # at the first import of each of these
    at = {"server.settings": signal.SIGHUP, "torch": signal.SIGHUP, "server.run": signal.Signals[sys.argv.pop(1)]}
    def find_spec(self, name, path=None, target=None):
        if name in self.at:
            os.kill(os.getpid(), self.at.pop(name))

sys.meta_path.insert(0, Signals())
sys.exit(main())
"""


def started(bundle: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments, "serve", str(bundle), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_sighup_before_there_is_a_server_is_kept(bundle: Path) -> None:
    with started(bundle, WATCHED, "SIGHUP") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("serving on ")
        finally:
            process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err.count("SIGHUP: the bundle will be loaded again after the load in progress") == 1


def test_a_sigterm_before_there_is_a_server_ends_it_cleanly(bundle: Path) -> None:
    with started(bundle, WATCHED, "SIGTERM") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


LOADING = """
import os, signal, sys
from emorl_cli.main import main
import server.serving.service

load = server.serving.service.load

def loads(settings, group):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(settings, group)

server.serving.service.load = loads
sys.exit(main())
"""


@pytest.mark.slow
def test_a_sigterm_while_the_bundle_is_loaded_ends_it_cleanly(bundle: Path) -> None:
    with started(bundle, LOADING) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert "terminate called" not in err
