"""The load programs do what docs/operations.md says of them, in small: they find what is wrong, and only this machine is
ever their target."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import prometheus_client
import pytest

from benchmarks import busy_neighbour, load
from benchmarks.http import drain, leavers
from benchmarks.http.streams import Answer, NotHere, Target
from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import Live, idle, live, wait_until
from tests.http.test_shutdown import process


def target(server: Live) -> Target:
    return Target.parse(server.url)


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1:8000", "http://example.org", "https://127.0.0.1", "http://127.0.0.1.example", "127.0.0.1:80"],
)
def test_only_this_machine_is_a_target(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotHere):
        Target.parse(url)
    assert load.main(["--url", url]) == 2
    assert "this machine only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --bundle or --url"),
        (["--url", "http://127.0.0.1:1", "--bundle", "x"], "give --bundle or --url"),
        (["--url", "http://127.0.0.1:1", "--clients", "1001"], "--clients is 1001; allowed: above 0, up to 1000"),
        (["--url", "http://127.0.0.1:1", "--seconds", "601"], "--seconds is 601; allowed: above 0, up to 600"),
        (["--url", "http://127.0.0.1:1", "--leavers", "0"], "--leavers is 0"),
        (["--url", "http://127.0.0.1:1", "--overhead"], "give --bundle"),
        (["--url", "http://127.0.0.1:1", "--term-after", "1"], "give --bundle"),
    ],
)
def test_load_is_bounded(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_the_commands_in_the_documents_are_accepted() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m benchmarks\.load (.+?)(?: *#.*)?$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        load.parser().parse_args(shlex.split(command))


def test_under_load_every_request_is_completed_or_refused() -> None:
    with live(Settings(port=0, max_queue=8), fake_ensemble(slots=4, step_delay_s=0.002)) as server:
        refused = server.service.metrics.requests.labels("/generate", "rejected")
        # The 12 places are held until one of the 40 clients has found none.
        server.model.on_step = lambda prompts: wait_until(lambda: _value(refused) > 0, "a client was refused")
        report = asyncio.run(load.run(target(server), 40, 2.0, new_tokens=16, pid=os.getpid()))
    assert set(report.outcomes) == {"completed", "refused"}, report.faults()
    assert report.free_after_s is not None
    assert report.tokens == len(report.first_s) + len(report.gaps_s)
    assert report.memory is not None


def _value(counter: prometheus_client.Counter) -> float:
    (sample,) = (sample for family in counter.collect() for sample in family.samples if sample.name.endswith("_total"))
    return sample.value


def test_a_server_that_hangs_is_a_fault() -> None:
    with live(ensemble=fake_ensemble(step_delay_s=1.0)) as server:
        report = asyncio.run(load.run(target(server), 2, 0.2, hang_s=0.3))
    assert report.outcomes == Counter({"no end within 0.3 s": 2})
    assert not report.holds


def test_a_client_asks_at_least_once_and_never_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object) -> Answer:
        return Answer(status=429, retry_after_s=60.0)

    monkeypatch.setattr(load, "ask", refused)
    with live() as server:
        for seconds in (0.0, 0.05):
            assert asyncio.run(load.run(target(server), 3, seconds)).outcomes == Counter(refused=3)


def test_an_error_event_is_a_fault() -> None:
    with live() as server:
        steps: list[int] = []

        def fail(prompts: list[tuple[int, ...]]) -> None:
            steps.append(len(prompts))
            if len(steps) > 2:
                raise MemoryError

        server.model.on_step = fail
        report = asyncio.run(load.run(target(server), 1, 0.05))
        server.model.on_step = None
    assert not set(report.outcomes) & {"completed", "refused"}
    assert not report.holds


def test_memory_that_grows_is_a_fault() -> None:
    flat = load.Report(1, 1.0, Counter(completed=1), rss_mib=[100, 300, 400, 400, 401, 402], free_after_s=0.0)
    assert flat.holds, "growth in the first third is warm-up"
    growing = load.Report(1, 1.0, Counter(completed=1), rss_mib=[400, 400, 400, 400, 500, 600], free_after_s=0.0)
    assert growing.faults() == ["memory grew from 400 to 550 MiB after warm-up"]


def test_clients_that_leave_at_every_moment_leave_nothing_behind() -> None:
    with live(Settings(port=0, max_queue=16), fake_ensemble(slots=4, step_delay_s=0.002)) as server:
        report = asyncio.run(leavers.run(target(server), 60, at_once=12, within_s=20))
        wait_until(lambda: idle(server), "everything is free")
    assert report.holds, report.lines()
    assert sum(report.left.values()) == 60
    assert {"at once", "while streaming", "a plain answer"} <= set(report.left)
    assert {name for name, count in report.outcomes.items() if count} <= {"cancelled", "rejected"}


@pytest.mark.slow
def test_a_sigterm_under_load_loses_nothing_that_was_accepted() -> None:
    with process(step_delay_s=0.005, mean_length=20) as (child, url):
        report = asyncio.run(drain.run(Target.parse(url), 20, child.pid, after_s=0.7, new_tokens=30))
        assert child.wait(60) == 0
    assert report.holds, report.lines()
    assert report.before["completed"] > 0
    assert sum(report.after.values()) >= 20, "every client asked once more"
    assert set(report.after) - {"completed"}, "who comes later is told so"


def test_a_stream_that_is_cut_by_a_sigterm_is_a_fault() -> None:
    sound = drain.Report(2, 2, {"completed": 2}, {"status 503": 1}, 1.0)
    assert sound.holds
    cut = "cut short", "error event: shutting_down", "connection: ConnectionResetError", "hung", "status 500"
    never_heard = "unanswered: ConnectionResetError", "unanswered: IncompleteReadError"
    for kind in (*cut, *never_heard):
        assert not replace(sound, before={"completed": 2, kind: 1}).holds, kind
    for kind in cut:
        assert not replace(sound, after={kind: 1}).holds, kind
    for kind in never_heard:
        assert replace(sound, after={kind: 1}).holds, kind
    assert not replace(sound, ended_after_s=None).holds


def test_a_request_that_goes_on_is_a_fault() -> None:
    with live(ensemble=fake_ensemble(step_delay_s=0.01)) as server, server.client() as client:
        body = {"prompt": "I feel tired", "min_new_tokens": 900, "max_new_tokens": 1000, "stream": True}
        with client.stream("POST", "/generate", json=body) as response:
            lines = response.iter_lines()  # kept: a reader that is let go closes the connection
            next(lines)
            report = asyncio.run(leavers.run(target(server), 1, within_s=0.1))
    assert report.free_after_s is None
    assert report.still_held["emorl_requests_running"] == 1
    assert not report.holds


@pytest.mark.slow
def test_http_and_the_engine_in_process_give_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(tiny_t5_bundle(tmp_path / "bundle"))
    sizes = ["--rounds", "2", "--new-tokens", "5", "--threads", "1", "--dtype", "float32"]
    assert load.main(["--bundle", bundle, "--overhead", *sizes]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (report,) = told["reports"]
    assert len(report["rounds"]) == 2
    assert all(time > 0 for one in report["rounds"] for time in one.values())


@pytest.mark.slow
def test_a_busy_neighbour_is_there_while_answers_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(tiny_t5_bundle(tmp_path / "bundle"))
    core = min(os.sched_getaffinity(0))
    short = ["--answers", "2", "--new-tokens", "3", "--settle", "0.1", "--return-after", "0.1", "--core", str(core)]
    assert busy_neighbour.main(["--bundle", bundle, "--threads", "auto", "1", *short]) == 0
    phases = json.loads(capsys.readouterr().out.splitlines()[-1])["phases"]
    assert [phase["name"] for phase in phases[:4]] == [
        "alone",
        "neighbour, at first",
        "neighbour, later",
        "alone again",
    ]
    assert [phase["threads"] for phase in phases] == ["auto"] * 4 + ["1"] * 4
    assert all(phase["computed_with"] == 1 for phase in phases[4:])
    assert busy_neighbour.main(["--bundle", bundle, "--core", "4096"]) == 2
    assert "--core is 4096" in capsys.readouterr().err
