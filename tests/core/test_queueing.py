"""The simulation of replicas agrees with what can be worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.queueing import Door, Times, capacity, main, simulate

TIMES = Times(step_s=0.02, row_s=0.001, prompt_s=0.05)
DOOR = Door(slots=4, queue=8)


def test_a_request_by_itself_waits_for_its_prompt_and_one_step() -> None:
    seen = simulate(TIMES, DOOR, replicas=1, rate=0.01, tokens=5, seconds=1000, seed=1)
    assert seen.refused == 0
    assert seen.completed == len(seen.first_s) > 0
    assert seen.quantile(0.5) == pytest.approx(0.07)


def test_every_request_is_completed_or_refused_and_overload_gives_what_the_slots_can() -> None:
    most = capacity(TIMES, DOOR, tokens=20)
    seen = simulate(TIMES, DOOR, replicas=1, rate=3 * most, tokens=20, seconds=500, seed=2)
    assert seen.completed / seen.seconds == pytest.approx(most, rel=0.1)
    assert seen.refused / (seen.refused + seen.completed) == pytest.approx(2 / 3, abs=0.05)


def test_more_replicas_at_the_same_load_each_wait_less() -> None:
    rate = 0.8 * capacity(TIMES, DOOR, tokens=20)
    one, many = (simulate(TIMES, DOOR, replicas=n, rate=n * rate, tokens=20, seconds=300, seed=3) for n in (1, 16))
    assert many.quantile(0.99) < one.quantile(0.99)
    assert many.completed > 12 * one.completed


def test_the_same_seed_gives_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--step-ms", "20", "--row-ms", "1", "--prompt-ms", "50", "--tokens", "4", "--seconds", "2"]
    tables = []
    for _ in range(2):
        assert main(arguments) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert tables[0].count("\n| 64 |") == 6
