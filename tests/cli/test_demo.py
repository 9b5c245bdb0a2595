"""`emorl demo --tiny`, and what both demos share: builds once, shows a request that works, and tells a taken port before it builds for minutes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

import training.pipeline.demo
from emorl_cli import serving
from emorl_cli.demo import demo
from emorl_cli.main import main
from emorl_core.bundles.bundle import Bundle
from server.settings import Settings
from tests.documents import ROOT


@pytest.fixture
def builds(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The calls of the builder, which puts the tiny bundle there instead of training for minutes."""
    calls: list[dict[str, object]] = []

    def build_demo(folder: Path, *, rebuild: bool, cached: Path, progress: training.pipeline.demo.Progress) -> Path:
        calls.append({"folder": folder, "rebuild": rebuild, "cached": cached})
        if not folder.exists():
            training.pipeline.demo.publish(
                bundle, folder, training.pipeline.demo.build_key(training.pipeline.demo.DemoSettings())
            )
            progress("corpus", 1, 1)
            for done in (1, 2, 3):
                progress("base", done, 3)
        return folder

    monkeypatch.setattr(training.pipeline.demo, "build_demo", build_demo)
    monkeypatch.setattr(demo, "build_apart", demo.build_here)  # another process would not see this
    return calls


@pytest.fixture
def ready_texts(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Serving is: being ready at once."""
    seen: list[Settings] = []

    def serve(settings: Settings, on_ready) -> int:
        seen.append(settings)
        on_ready(f"http://{settings.host}:{settings.port}")
        return 0

    monkeypatch.setattr(serving, "serve", serve)
    return seen


def test_build_only_prints_the_folder_and_progress_stays_off_stdout(emorl, builds: list, tmp_path: Path) -> None:
    ran = emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--build-only")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'demo'}\n")
    assert ran.err.splitlines()[1:] == ["corpus: 1 of 1", "base: 3 of 3"]
    again = emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--build-only", "--rebuild")
    assert again.code == 0
    assert [call["rebuild"] for call in builds] == [False, True]
    assert {call["cached"] for call in builds} == {demo.tiny_folder()}


def test_the_default_folder_is_in_the_users_cache_and_named_by_the_demos_key(
    emorl, builds: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(emorl("demo", "--tiny", "--build-only").out.strip())
    assert folder.parent == tmp_path / "emorl"
    assert re.fullmatch(r"demo-tiny-[0-9a-f]{12}", folder.name)
    monkeypatch.setattr(training.pipeline.demo, "_FORMAT", training.pipeline.demo._FORMAT + 1)
    assert demo.tiny_folder() != folder


def test_the_curl_line_is_a_request_that_the_server_takes(
    emorl, builds: list, ready_texts: list[Settings], tmp_path: Path
) -> None:
    from server.api.generate_models import GenerateRequest

    ran = emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", 0)
    assert ran.code == 0
    assert ready_texts[0].bundle == str(tmp_path / "demo")
    (line,) = (line for line in ran.out.splitlines() if "curl" in line)
    words = shlex.split(line)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:0/generate"]
    body = json.loads(words[-1])
    GenerateRequest.model_validate(body)
    assert set(body["weights"]) <= set(Bundle.open(tmp_path / "demo").spec.objectives)


def test_a_bundle_that_is_there_is_served_without_a_build(
    emorl, builds: list, ready_texts: list[Settings], tmp_path: Path
) -> None:
    for _ in range(2):
        assert emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", 0).code == 0
    assert len(builds) == 1


def test_the_build_is_a_process_of_its_own_with_the_same_words(
    ready_texts: list[Settings],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """So that the serving process keeps none of the memory that training took."""
    command = demo.build_command(tmp_path / "demo", Namespace(tiny=True, base=None, rebuild=True))
    options = ["--build-only", "--tiny", "--rebuild"]
    assert command[1:] == ["-m", "emorl_cli", "demo", "--folder", str(tmp_path / "demo"), *options]
    script = (
        "import os, sys; from pathlib import Path; from training.pipeline.demo import *;"
        f"publish(Path({str(bundle)!r}), Path({str(tmp_path / 'demo')!r}), build_key(DemoSettings()));"
        "print(os.getpid(), file=sys.stderr); print('a folder')"
    )
    monkeypatch.setattr(demo, "build_command", lambda folder, args: [sys.executable, "-c", script])
    assert main(["demo", "--tiny", "--folder", str(tmp_path / "demo"), "--port", "0"]) == 0
    out, err = capfd.readouterr()
    assert int(err) != os.getpid()
    assert "a folder" not in out
    assert "The demo is ready" in out


@pytest.mark.parametrize(("ending", "code", "lines"), [("sys.exit(2)", 2, 0), ("os.kill(os.getpid(), 9)", 1, 1)])
def test_a_build_that_fails_is_one_line_and_nothing_is_served(
    emorl,
    ready_texts: list[Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    code: int,
    lines: int,
) -> None:
    command = [sys.executable, "-c", f"import os, sys; {ending}"]
    monkeypatch.setattr(demo, "build_command", lambda folder, args: command)
    ran = emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", 0)
    assert (ran.code, ran.out, ran.err.count("\n"), ready_texts) == (code, "", lines, [])
    if lines:  # the other line is the process's own
        assert (
            ran.err
            == "emorl: error: the demo's build was ended by SIGKILL; the same command goes on where it stopped\n"
        )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_ends_the_command_ends_the_build(tmp_path: Path, number: signal.Signals, code: int) -> None:
    pid = tmp_path / "pid"
    sleeper = f"import os, time; open({str(pid)!r} + '.new', 'w').write(str(os.getpid()));"
    sleeper += f"os.rename({str(pid)!r} + '.new', {str(pid)!r}); time.sleep(600)"
    script = (
        # Where the tests run in the background, interrupts are ignored from the start.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from emorl_cli.demo import demo; from emorl_cli.main import main;"
        f"demo.build_command = lambda folder, args: [sys.executable, '-c', {sleeper!r}];"
        f"sys.exit(main(['demo', '--folder', {str(tmp_path / 'demo')!r}, '--port', '0']))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, cwd=ROOT) as command:
        while not pid.exists():
            assert command.poll() is None, command.communicate()
            time.sleep(0.05)
        build = int(pid.read_text())
        command.send_signal(number)  # to it alone: a terminal would tell both
        try:
            _, err = command.communicate(timeout=120)
        finally:
            command.kill()
    assert (command.returncode, err) == (code, "")
    with pytest.raises(ProcessLookupError):
        os.kill(build, 0)


@pytest.mark.parametrize(
    ("arguments", "environment", "hosts"),
    [
        ((), {}, ("127.0.0.1", "localhost", "[::1]")),
        (("--host", "0.0.0.0"), {}, ("127.0.0.1", "localhost", "[::1]")),
        (("--host", "::"), {}, ("127.0.0.1", "localhost", "[::1]")),
        (("--host", "::1"), {}, ("127.0.0.1", "localhost", "[::1]")),
        (("--host", "127.0.0.2"), {}, ("127.0.0.1", "localhost", "[::1]", "127.0.0.2")),
        ((), {"EMORL_ALLOWED_HOSTS": "emorl.ward.example"}, ("emorl.ward.example",)),
        ((), {"EMORL_API_KEYS": "secret"}, ()),
    ],
)
def test_a_demo_without_a_key_answers_to_this_machines_names_only(
    emorl,
    builds: list,
    ready_texts: list[Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    hosts: tuple[str, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", 0, *arguments).code == 0
    assert ready_texts[0].allowed_hosts == hosts


def test_a_taken_port_is_told_before_the_build(emorl, builds: list, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port}" in emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", port).refused()
    assert builds == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("mine")
    for flag in ("--build-only", "--rebuild"):
        capfd.readouterr()
        code = main(["demo", "--tiny", "--folder", str(tmp_path / "letters"), "--port", "0", flag])
        err = capfd.readouterr().err.splitlines()
        assert code == 2
        assert "holds something else" in err[-1]
        assert sum("emorl: error" in line for line in err) == 1
        assert "Traceback" not in err
    assert (tmp_path / "letters" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("environment", "policy"), [({}, "crisis-cues"), ({"EMORL_POLICY": "ours.yaml"}, "ours.yaml")])
def test_the_demo_drafts_nothing_beside_crisis_cues(
    emorl,
    builds: list,
    ready_texts: list[Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    policy: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert emorl("demo", "--tiny", "--folder", tmp_path / "demo", "--port", 0).code == 0
    assert ready_texts[0].policy == policy
