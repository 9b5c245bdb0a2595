"""The choice of a number of threads, on a clock and a machine of the test's own: no time passes here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emorl_core.ensemble import Ensemble
from emorl_core.errors import InvalidRequest
from emorl_core.fake import fake_ensemble
from emorl_core.machine.threads import ThreadChoice, check_threads, fastest_threads

CPU = torch.device("cpu")


class Machine:
    """Runs steps that take as long as `seconds(threads, rows)` says."""

    def __init__(self, counts: tuple[int, ...], seconds: Callable[[int, int], float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.threads = 0
        self.used: list[int] = []
        self.told: list[str] = []
        self.probed: list[int] = []
        self.probe_s = 0.0  # of every number
        self.choice = ThreadChoice(counts, apply=self._set, probe=self._probe, clock=lambda: self.now)
        self.choice.on_choice = self.told.append

    def _set(self, threads: int) -> None:
        self.threads = threads

    def _probe(self, threads: int) -> float:
        self.probed.append(threads)
        return self.probe_s

    def run(self, steps: int, rows: int = 4) -> list[int]:
        """The number of threads of each of these steps."""
        used = []
        for _ in range(steps):
            took = self.seconds(self.threads, rows)
            used.append(self.threads)
            self.now += took
            self.choice.observe(took, rows)
        return used

    def warm_up(self) -> None:
        self.choice.start()
        self.run(self.choice.trial_steps)
        assert not self.choice.measuring


def quiet(threads: int, rows: int) -> float:
    return 0.03 / threads


def busy(threads: int, rows: int) -> float:
    """Somebody else has one of two cores."""
    return 0.03 if threads == 1 else 0.3


def small(threads: int, rows: int) -> float:
    """A model so small that a second thread helps next to nothing."""
    return 0.0021 if threads == 1 else 0.002


def many_cores(threads: int, rows: int) -> float:
    """Fastest with 8: beyond that they wait for each other."""
    return 0.1 / threads + 0.0015 * threads


@pytest.mark.parametrize(
    ("counts", "machine", "best"),
    [
        ((1, 2), quiet, 2),
        ((1, 2), busy, 1),
        ((1, 2), small, 1),
        ((1, 2, 4, 8, 16, 32, 64), many_cores, 8),
        ((1, 2, 3), quiet, 3),
    ],
)
def test_the_fastest_number_is_chosen_at_the_start_and_told(
    counts: tuple[int, ...], machine: Callable[[int, int], float], best: int
) -> None:
    it = Machine(counts, machine)
    it.warm_up()
    assert (it.choice.count, it.threads) == (best, best)
    assert len(it.told) == 1
    assert it.told[0].startswith(f"computing with {best} thread{'s' if best > 1 else ''}; a step takes ")
    assert f"{1000 * machine(best, 4):.1f} ms with {best}" in it.told[0]


def test_numbers_beyond_the_best_are_not_all_tried() -> None:
    it = Machine((1, 2, 4, 8, 16, 32, 64), many_cores)
    it.choice.start()
    assert max(it.run(it.choice.trial_steps)) == 16, "after it got worse with 16"


def test_a_hopeless_number_is_given_up_after_two_steps() -> None:
    it = Machine((1, 2), busy)
    it.choice.start()
    assert it.run(12).count(2) == 2


def test_a_number_that_a_little_work_shows_to_be_hopeless_runs_no_step() -> None:
    """On cores with many others one step could take seconds."""
    it = Machine((1, 2, 4), busy)
    it.choice = ThreadChoice((1, 2, 4), apply=it._set, probe=lambda n: busy(n, 1), clock=lambda: it.now)
    it.choice.on_choice = it.told.append
    it.choice.start()
    used = []
    while it.now < 7200:
        used += it.run(10)
    assert set(used) == {1}
    assert it.told == ["computing with 1 thread; a step takes 30.0 ms with 1"]


def test_a_neighbour_that_comes_is_noticed_and_one_that_goes_too() -> None:
    it = Machine((1, 2), quiet)
    it.warm_up()
    it.run(1000)
    assert it.choice.count == 2
    it.seconds = busy
    came = it.now
    while it.choice.count == 2:
        it.run(1)
    assert 2.0 <= it.now - came < 6.0, "after some seconds of slow steps, and few more of trying"
    it.run(100)
    it.seconds = quiet
    went = it.now
    while it.choice.count == 1:
        it.run(1)
    assert it.now - went <= 60.0
    assert [line.partition(";")[0] for line in it.told] == [
        "computing with 2 threads",
        "computing with 1 thread",
        "computing with 2 threads",
    ]


def test_one_slow_step_is_no_reason() -> None:
    it = Machine((1, 2), quiet)
    it.warm_up()
    for _ in range(20):
        it.seconds = lambda threads, rows: 5.0
        it.run(1)
        it.seconds = quiet
        assert set(it.run(50)) == {2}


def test_trials_that_change_nothing_become_rare() -> None:
    """With a neighbour that stays, each of them costs slow steps."""
    it = Machine((1, 2), busy)
    it.warm_up()
    used = []
    while it.now < 3600:
        used += it.run(10)
    assert 4 <= used.count(2) <= 2 * 12
    it.seconds = lambda threads, rows: 0.3  # whatever is tried: the machine has become slow for good
    more = []
    while it.now < 7200:
        more += it.run(10)
    assert more.count(2) < 60
    assert len(it.told) == 1, "and nothing is told twice"


def test_steps_of_another_size_are_not_compared() -> None:
    """A larger batch takes longer; that is no neighbour."""
    it = Machine((1, 2), lambda threads, rows: 0.001 * rows / threads)
    it.warm_up()
    assert it.choice.count == 2
    used = []
    for rows in (1, 64, 4, 16, 128, 8, 32) * 200:
        used += it.run(10, rows)
    assert set(used) == {2}


def test_a_trial_goes_on_with_the_steps_that_come() -> None:
    it = Machine((1, 2), quiet)
    it.choice.start()
    it.run(3, rows=4)
    assert it.choice.measuring
    it.run(100, rows=32)
    it.run(100, rows=32)
    assert not it.choice.measuring
    assert it.threads == it.choice.count == 2


def test_steps_that_did_something_else_besides_do_not_count() -> None:
    it = Machine((1, 2), quiet)
    it.warm_up()
    it.choice.observe(100.0, 0)
    for _ in range(50):
        it.now += 10.0
        it.choice.observe(10.0, 0)
    assert not it.choice.measuring


def test_a_number_that_is_set_is_never_measured() -> None:
    it = Machine((3,), busy)
    it.choice.start()
    assert set(it.run(500)) == {3}
    assert it.told == ["computing with 3 threads"]


@pytest.mark.parametrize(
    ("most", "counts"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_what_auto_chooses_among(most: int, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: most)
    assert ThreadChoice.of("auto", CPU).counts == counts
    assert ThreadChoice.of(5, CPU).counts == (5,)
    assert ThreadChoice.of("auto", torch.device("cuda")).counts == (most,)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, True, "2", "Auto", None, 10**5])
def test_what_is_no_number_of_threads_is_refused(threads: Any) -> None:
    with pytest.raises(InvalidRequest, match="allowed: auto, or a whole number from 1 to 1024") as caught:
        check_threads(threads)
    assert caught.value.param == "threads"


def test_a_warm_up_chooses_with_real_steps() -> None:
    ensemble = fake_ensemble()
    used: list[int] = []
    ensemble.threads = ThreadChoice((1, 2), apply=used.append, probe=lambda count: 0.0)
    ensemble.warm_up()
    assert not ensemble.threads.measuring
    assert used[:2] == [1, 2]
    assert used[-1] == ensemble.threads.count
    assert not ensemble.engine.has_work


def test_a_loaded_ensemble_computes_with_the_number_it_was_given(plain_bundle: Path) -> None:
    before = torch.get_num_threads()
    try:
        ensemble = Ensemble.load(plain_bundle, device="cpu", dtype="float32", threads=2)
        assert torch.get_num_threads() == ensemble.threads.count == 2
        Ensemble.load(plain_bundle, device="cpu", dtype="float32").warm_up()
        assert torch.get_num_threads() in (1, 2)
    finally:
        torch.set_num_threads(before)
    with pytest.raises(InvalidRequest, match="threads is 0"):
        Ensemble.load(plain_bundle, threads=0)


def test_the_faster_number_for_long_work_is_one_of_two_and_changes_nothing() -> None:
    before = torch.get_num_threads()
    assert fastest_threads(2) in (1, 2)
    assert fastest_threads(1) == 1
    assert torch.get_num_threads() == before
