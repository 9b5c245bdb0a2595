"""The siege and the reloads of docs/operations.md, in small: they find what is wrong, and only this machine is a target."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import load, reloads, siege
from benchmarks.http import attackers
from benchmarks.http.streams import Target
from emorl_core.fake import fake_ensemble
from server.settings import load_settings
from tests.http.harness import PROMPT, idle, live, wait_until
from tests.http.test_shutdown import process

SOUND = siege.Report(
    calm=load.Report(10, 1.0, Counter(completed=9), gaps_s=[0.01] * 100),
    siege=load.Report(10, 1.0, Counter(completed=9, refused=3), gaps_s=[0.02] * 100),
    probes=siege.Probes([0.01, 0.9]),
    memory=(300.0, 500.0, 330.0),
    log_bytes=999_999,
    ended_after_s=26.0,
    attacks={"silent: cut": 3},
)


def test_a_siege_that_is_borne_holds() -> None:
    assert SOUND.faults() == []
    assert SOUND.ratio == 2.0
    assert SOUND.facts()["holds"] is True


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        ({"siege": load.Report(10, 1.0, Counter(completed=1), gaps_s=[0.02] * 90 + [0.031] * 10)}, "3.1 times as long"),
        ({"siege": load.Report(10, 1.0, Counter(refused=1))}, "no stream was completed"),
        (
            {"siege": load.Report(10, 1.0, Counter({"completed": 1, "cut short": 2}), gaps_s=[0.01])},
            "2 streams: cut short",
        ),
        ({"probes": siege.Probes([0.01, 1.01])}, "a probe took 1.01 s"),
        ({"probes": siege.Probes([0.01], Counter({"/livez 503": 2}))}, "2 probes: /livez 503"),
        ({"memory": (300.0, 500.0, 340.0)}, "memory grew from 300 to 340 MiB"),
        ({"log_bytes": 1_000_001}, "the log has 1,000,001 bytes"),
        ({"ended_after_s": 27.1}, "did not end within 27 s"),
        ({"ended_after_s": None}, "did not end within 27 s"),
    ],
)
def test_whatever_is_worse_is_a_fault(worse: dict[str, object], says: str) -> None:
    (fault,) = replace(SOUND, **worse).faults()  # type: ignore[arg-type]
    assert says in fault


@pytest.mark.parametrize("arguments", [["--seconds", "601"], ["--seconds", "0"], ["--streams", "17"]])
def test_a_siege_is_bounded(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert siege.main(arguments) == 2
    assert "allowed: above 0" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://example.org"])
def test_attackers_attack_this_machine_only(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        attackers.main(["--url", url])
    assert "this machine only" in capsys.readouterr().err


def test_the_commands_in_the_documents_are_accepted() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    for program in (siege, reloads):
        commands = re.findall(rf"^python -m {program.__name__}(.*?)(?: *#.*)?$", text, re.MULTILINE)
        assert commands
        for command in commands:
            program.parser().parse_args(shlex.split(command))


def test_every_kind_of_attack_is_borne_and_leaves_nothing() -> None:
    settings = load_settings(port=0, api_keys="good,bad", head_timeout_s=0.5, read_timeout_s=0.5, write_timeout_s=0.5)
    with live(settings, fake_ensemble()) as server, server.client() as client:
        tally = asyncio.run(attackers.run(Target.parse(server.url, "bad"), 2.0))
        assert {kind.split(":")[0] for kind in tally} == set(attackers.KINDS)
        assert client.get("/livez").status_code == 200
        answer = client.post("/generate", json={"prompt": PROMPT}, headers={"Authorization": "Bearer good"})
        assert answer.status_code == 200
        wait_until(lambda: idle(server), "nothing is held")


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_a_siege_runs_from_the_calm_to_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a line\n")
    kinds = ["silent", "garbage", "leaver"]
    with process(step_delay_s=0.002, mean_length=10) as (child, url):
        target = Target.parse(url)
        sizes = {"streams": 2, "seconds": 1.0, "new_tokens": 8}
        report = asyncio.run(siege.run(target, target, child.pid, log, **sizes, kinds=kinds))
        assert child.wait(60) == 0
    assert report.calm.outcomes["completed"] > 0
    assert report.siege.outcomes["completed"] > 0
    assert report.probes.seconds
    assert report.log_bytes == 7
    assert report.ended_after_s is not None
    assert {kind.split(":")[0] for kind in report.attacks} <= set(kinds)
    assert len(report.lines()) >= 9


@pytest.mark.slow
@pytest.mark.usefixtures("own_process")
def test_a_receipt_is_replayed_on_the_bundle_that_it_names(tmp_path: Path) -> None:
    places = reloads.Places(tmp_path, "t5-tiny")
    ask = {"prompt": PROMPT, "max_new_tokens": 8, "min_new_tokens": 8, "receipt": True}
    settings = load_settings(port=0, bundle=str(places.current), dtype="float32", admin_keys="boss")
    with live(settings) as server, server.client() as client:
        receipts = [client.post("/generate", json=ask).json()["receipt"]]
        places.put("third")
        assert client.post("/admin/reload", headers={"Authorization": "Bearer boss"}).status_code == 200
        receipts.append(client.post("/generate", json=ask).json()["receipt"])
    assert [receipt["identity"]["bundle"] for receipt in receipts] == ["first", "third"]
    ids = [receipt["id"] for receipt in receipts]
    assert reloads.replayed_otherwise(places, "third", receipts) == ids[:1]
    assert reloads.replayed_otherwise(places, "first", receipts) == ids[1:]
    assert reloads.replayed_otherwise(places, "unheard of", receipts) == ids


def test_a_receipt_that_names_another_bundle_is_a_fault() -> None:
    served = dict.fromkeys(("first", "second", "third"), 2)
    sound = reloads.Report(100, 100, {"taken": 60, "refused": 3}, 49, served, [], {})
    assert sound.faults() == []
    assert replace(sound, wrong=["gen-1"]).faults() == ["1 receipts do not replay on the bundle they name, first gen-1"]
    assert replace(sound, failed={"status 500": 1}).faults() == ["1 requests: status 500"]
    assert replace(sound, receipts={"first": 6}).faults() == ["only first served; this shows nothing"]
    assert replace(sound, reloads=99).faults() == ["99 reloads of 100 wanted"]
    assert reloads.main(["--reloads", "1001"]) == 2
