"""`emorl demo`: builds once, shows a request that works, and tells a taken port before it builds for minutes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest

import training.pipeline.demo
from emorl_cli import demo, serving
from emorl_core.bundle import Bundle
from server.settings import Settings


@pytest.fixture
def builds(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The calls of the builder, which puts the tiny bundle there instead of training for minutes."""
    calls: list[dict[str, object]] = []

    def build_demo(folder: Path, *, rebuild: bool, progress: training.pipeline.demo.Progress) -> Path:
        calls.append({"folder": folder, "rebuild": rebuild})
        if not folder.exists():
            shutil.copytree(bundle, folder)
            progress("corpus", 1, 1)
            for done in (1, 2, 3):
                progress("base", done, 3)
        return folder

    monkeypatch.setattr(training.pipeline.demo, "build_demo", build_demo)
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
    ran = emorl("demo", "--folder", tmp_path / "demo", "--build-only")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'demo'}\n")
    assert ran.err.splitlines()[1:] == ["corpus: 1 of 1", "base: 3 of 3"]
    again = emorl("demo", "--folder", tmp_path / "demo", "--build-only", "--rebuild")
    assert again.code == 0
    assert [call["rebuild"] for call in builds] == [False, True]


def test_the_default_folder_is_in_the_users_cache_and_named_by_the_demos_key(
    emorl, builds: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(emorl("demo", "--build-only").out.strip())
    assert folder.parent == tmp_path / "emorl"
    assert re.fullmatch(r"demo-[0-9a-f]{12}", folder.name)
    monkeypatch.setattr(training.pipeline.demo, "_FORMAT", training.pipeline.demo._FORMAT + 1)
    assert demo.default_folder() != folder


def test_the_curl_line_is_a_request_that_the_server_takes(
    emorl, builds: list, ready_texts: list[Settings], tmp_path: Path
) -> None:
    from server.api.fields import GenerateRequest

    ran = emorl("demo", "--folder", tmp_path / "demo", "--port", 0)
    assert ran.code == 0
    assert ready_texts[0].bundle == str(tmp_path / "demo")
    (line,) = (line for line in ran.out.splitlines() if "curl" in line)
    words = shlex.split(line)
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:0/generate"]
    body = json.loads(words[-1])
    GenerateRequest.model_validate(body)
    assert set(body["weights"]) <= set(Bundle.open(tmp_path / "demo").spec.objectives)


def test_a_taken_port_is_told_before_the_build(emorl, builds: list, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"port {port}" in emorl("demo", "--folder", tmp_path / "demo", "--port", port).refused()
    assert builds == []


def test_a_folder_with_something_else_in_it_is_left_alone(emorl, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("mine")
    for flag in ("--build-only", "--rebuild"):
        ran = emorl("demo", "--folder", tmp_path / "letters", "--port", 0, flag)
        assert ran.code == 2
        assert "holds something else" in ran.err
        assert "Traceback" not in ran.err
    assert (tmp_path / "letters" / "mine.txt").read_text() == "mine"
