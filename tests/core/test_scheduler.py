"""Waiting and running branches, without a model."""

from __future__ import annotations

import math
import random

import pytest

from emorl_core.engine.scheduler import Scheduler
from emorl_core.engine.sequences import Branch, Job, members_of
from emorl_core.lanes.lane import Lane, lane_points
from emorl_core.text.detokenize import Detokenizer
from emorl_core.types import Request


def branch(
    *names: str, weights: tuple[float, ...] = (0.0, 1.0), job: Job | None = None, stream: bool = False
) -> Branch:
    points = lane_points(len(weights) - 1)
    members = members_of([Request(name, (1,), weights, stream=stream) for name in names], points, 0.0)
    return Branch((1,), members, Detokenizer(lambda ids: "x" * len(ids)), job=job or Job())


def names(branches: list[Branch]) -> list[list[str]]:
    return [[member.request.request_id for member in each.members] for each in branches]


def admit(scheduler: Scheduler) -> list[Branch]:
    return scheduler.admit(scheduler.next_job())


def test_first_come_first_served_up_to_the_slots() -> None:
    scheduler = Scheduler(2)
    a, b, c = branch("a"), branch("b", "b2"), branch("c")
    for each in (a, b, c):
        scheduler.add(each)
    assert (scheduler.waiting_requests, scheduler.running_requests, scheduler.has_work) == (4, 0, True)
    assert admit(scheduler) == [a, b]
    assert admit(scheduler) == []
    assert (scheduler.waiting_requests, scheduler.running_requests) == (1, 3)
    scheduler.release([a])
    assert admit(scheduler) == [c]
    scheduler.release([b, c])
    assert not scheduler.has_work


def test_forked_branches_go_ahead_of_their_job_in_their_order() -> None:
    scheduler = Scheduler(1)
    sweep = Job()
    for name in ("prompt 1", "prompt 2"):
        scheduler.add(branch(name, job=sweep))
    (first,) = admit(scheduler)
    scheduler.release([first])
    scheduler.add_first([branch("fork 1", job=sweep), branch("fork 2", job=sweep)])
    assert order_of(scheduler) == ["fork 1", "fork 2", "prompt 2"]


def order_of(scheduler: Scheduler) -> list[str]:
    """Run everything, one branch a step."""
    order: list[str] = []
    while scheduler.has_work:
        admit(scheduler)
        ((name, *_), *_) = names(scheduler.running)
        order.append(name)
        scheduler.release(scheduler.running[:1])
    return order


def test_a_slot_goes_to_the_job_that_holds_fewest_then_to_the_one_served_longest_ago() -> None:
    scheduler = Scheduler(4)
    sweep, other = Job(), Job()
    for number in range(6):
        scheduler.add(branch(f"sweep {number}", job=sweep))
    assert len(admit(scheduler)) == 4, "slots that nobody else wants"
    for number in range(2):
        scheduler.add(branch(f"other {number}", job=other))
    scheduler.add(branch("plain"))
    freed: list[list[list[str]]] = []
    for _ in range(5):
        scheduler.release([next(each for each in scheduler.running if each.job is sweep)])
        freed.append(names(admit(scheduler)))
    assert freed == [[["other 0"]], [["plain"]], [["sweep 4"]], [["other 1"]], [["sweep 5"]]]


def test_a_fork_runs_at_once_only_where_nobody_else_is_due() -> None:
    scheduler = Scheduler(3)
    sweep = Job()
    scheduler.add(branch("a", job=sweep))
    admit(scheduler)
    child = branch("b", job=sweep)
    assert scheduler.room_for(child)
    scheduler.add(branch("plain 1"))
    assert scheduler.room_for(child), "one slot for each of them"
    scheduler.add(branch("plain 2"))
    assert not scheduler.room_for(child)
    admit(scheduler)
    assert not scheduler.room_for(child), "no slot is left"


def test_slots_are_shared_out_between_clients_before_their_jobs() -> None:
    scheduler = Scheduler(4)
    for number in range(8):
        scheduler.add(branch(f"many {number}", job=Job("many")))
    admit(scheduler)
    for number in range(3):
        scheduler.add(branch(f"few {number}", job=Job("few")))
    freed: list[list[list[str]]] = []
    for _ in range(3):
        scheduler.release([next(each for each in scheduler.running if each.job.client == "many")])
        freed.append(names(admit(scheduler)))
    assert freed == [[["few 0"]], [["few 1"]], [["many 4"]]], "two each, and then the one that has waited longest"
    child = branch("fork", job=scheduler.running[0].job)
    scheduler.release([scheduler.running[0]])
    assert scheduler.room_for(child) == (child.job.client == "few"), "a fork, too, waits for those who have less"


def test_what_nobody_streams_gives_its_slot_to_who_has_much_less() -> None:
    scheduler, sweep = Scheduler(3), Job()
    first, second, third = (branch(f"sweep {number}", job=sweep) for number in range(3))
    for each in (first, second, third):
        scheduler.add(each)
    admit(scheduler)
    assert scheduler.preempt(scheduler.next_job()) is None, "nobody waits"
    scheduler.add(branch("plain"))
    scheduler.add(branch("plain 2"))
    assert scheduler.preempt(scheduler.next_job()) is None, "it has only begun"
    for each, tokens in ((first, 40), (second, 20), (third, 30)):
        each.tokens = [1] * tokens
    assert scheduler.preempt(scheduler.next_job()) is second, "its tokens are soonest fed again"
    assert names(admit(scheduler)) == [["plain"]]
    scheduler.add(branch("plain 3"))
    assert scheduler.preempt(scheduler.next_job()) is third
    assert names(admit(scheduler)) == [["plain 2"]]
    assert scheduler.preempt(scheduler.next_job()) is None, "the sweep has only one more than who waits"
    scheduler.release(scheduler.running[1:])
    assert sorted(names(admit(scheduler))) == [["plain 3"], ["sweep 2"]], "the last one put back is the first again"
    assert third.tokens_before == 30


def test_beside_streams_sweeps_run_with_few_members() -> None:
    scheduler, sweep, other = Scheduler(8), Job(), Job()
    crowd = [str(number) for number in range(20)]
    for job in (sweep, sweep, other):
        scheduler.add(branch(*crowd, job=job))
    assert len(admit(scheduler)) == 3, "nobody streams"
    scheduler, sweep, other = Scheduler(8), Job(), Job()
    scheduler.add(branch("stream", stream=True))
    for job in (sweep, sweep, other):
        scheduler.add(branch(*crowd, job=job))
    assert names(admit(scheduler)) == [["stream"], crowd], "a second crowd is more than 4 a slot"
    scheduler.add(branch("a", "b", job=Job()))
    scheduler.add(branch("plain"))
    assert names(admit(scheduler)) == [["plain"]], "the small sweep does not pass the one whose turn it is"
    scheduler.release([each for each in scheduler.running if each.job is sweep])
    assert [each.job for each in admit(scheduler)] == [other]
    scheduler.release([each for each in scheduler.running if each.job is other])
    assert sorted(names(admit(scheduler))) == [crowd, ["a", "b"]], "22 are no more than 4 a slot"


def test_beside_the_streams_of_others_a_sweep_is_split() -> None:
    scheduler, sweep = Scheduler(8), Job("b")
    scheduler.add(branch("stream", job=Job("a"), stream=True))
    crowd = [str(number) for number in range(20)]
    scheduler.add(branch(*crowd, job=sweep))
    scheduler.add(branch("plain", job=Job("b")))
    assert names(admit(scheduler)) == [["stream"], crowd[:8], ["plain"]], "one member a slot"
    assert names(scheduler.waiting) == [crowd[8:]]
    scheduler.release([each for each in scheduler.running if each.job is sweep])
    assert names(admit(scheduler)) == [crowd[8:16]]
    scheduler.release([each for each in scheduler.running if each.job.client == "a"])
    assert names(admit(scheduler)) == [crowd[16:]], "nobody streams any more"


def test_a_sweep_that_began_before_the_streams_of_others_is_split() -> None:
    scheduler, sweep = Scheduler(8), Job("b")
    crowd = [str(number) for number in range(20)]
    scheduler.add(branch(*crowd, job=sweep))
    (whole,) = admit(scheduler)
    scheduler.add(branch("own", job=Job("b"), stream=True))
    admit(scheduler)
    assert scheduler.preempt(scheduler.next_job()) is None, "its own client's stream"
    scheduler.add(branch("stream", job=Job("a"), stream=True))
    admit(scheduler)
    assert scheduler.preempt(scheduler.next_job()) is whole
    assert scheduler.preempt(scheduler.next_job()) is None
    assert names(admit(scheduler)) == [crowd[:8]]
    assert scheduler.preempt(scheduler.next_job()) is None, "one member a slot is not too many"


def test_a_stream_keeps_its_slot() -> None:
    scheduler = Scheduler(2)
    for number in range(2):
        scheduler.add(branch(f"stream {number}", job=Job("a"), stream=True))
    for each in admit(scheduler):
        each.tokens = [1] * 100
    scheduler.add(branch("plain", job=Job("b")))
    assert scheduler.preempt(scheduler.next_job()) is None


def test_a_job_keeps_its_place_while_it_runs() -> None:
    """A branch ended and another had forked from it in the same step: the job is not at the end of the queue now."""
    scheduler = Scheduler(1)
    sweep = Job()
    scheduler.add(branch("a", job=sweep))
    (parent,) = admit(scheduler)
    scheduler.add(branch("later"))
    scheduler.release([parent])
    scheduler.add_first([branch("b", job=sweep)])
    assert order_of(scheduler) == ["b", "later"]
    assert list(scheduler.waiting) == []
    admit(scheduler)
    assert list(scheduler.waiting.heads) == [], "nothing of a finished job is kept"
    assert not scheduler._in_slots


def test_who_lost_a_slot_to_the_fault_of_another_is_first_in_turn() -> None:
    scheduler = Scheduler(2)
    for name in ("a", "b", "c", "d"):
        scheduler.add(branch(name))
    running = admit(scheduler)
    scheduler.release(running)
    scheduler.resume(running)
    assert names(admit(scheduler)) == [["a"], ["b"]]
    assert names(list(scheduler.waiting)) == [["c"], ["d"]]


@pytest.mark.parametrize("seed", range(5))
def test_whoever_waits_gets_a_slot_before_long(seed: int) -> None:
    """Sweeps that fork without end and plain requests that keep coming: nobody waits for more than one slot per job
    that was there before, and every branch leaves its slot after at most STEPS steps."""
    steps, slots, dice = 6, 3, random.Random(seed)
    scheduler = Scheduler(slots)
    age: dict[int, int] = {}  # id of a running branch -> steps so far
    since: dict[Job, tuple[int, int]] = {}  # job without a slot -> (since when, jobs before it in the order)
    sweeps = [Job() for _ in range(4)]  # more than slots
    for job in sweeps:
        scheduler.add(branch("sweep", job=job))
    for now in range(400):
        if dice.random() < 0.5:
            scheduler.add(branch("plain"))
        for each in admit(scheduler):
            age[id(each)] = 0
        assert len(scheduler.running) <= slots
        heads = dict(scheduler.waiting.heads)
        order = list(heads)
        holding = {each.job for each in scheduler.running}
        waiting = [job for job in order if job not in holding and heads[job]]
        since = {job: since.get(job, (now, order.index(job))) for job in waiting}
        for begun, before in since.values():
            # Every slot comes free once in STEPS steps.
            assert now - begun <= steps * math.ceil((before + 1) / slots), "starved"
        done = []
        for each in list(scheduler.running):
            age[id(each)] += 1
            if each.job in sweeps:  # forks at every step: more branches than there ever are slots
                scheduler.add_first([branch("fork", job=each.job)])
            if age[id(each)] >= dice.randint(1, steps):
                done.append(each)
        scheduler.release(done)
    assert all(any(each.job is job for each in [*scheduler.running, *scheduler.waiting]) for job in sweeps)


def test_a_branch_that_waits_again_keeps_the_time_it_was_admitted_first() -> None:
    scheduler = Scheduler(1)
    each = branch("a")
    scheduler.add(each)
    admit(scheduler)
    first = each.admitted
    assert first > 0
    scheduler.release([each])
    scheduler.add_first([each])
    admit(scheduler)
    assert each.admitted == first


def test_cancelled_members_leave_their_branches_and_empty_waiting_branches_the_queue() -> None:
    scheduler = Scheduler(1)
    running, shared, lone = branch("r1", "r2"), branch("s1", "s2"), branch("l")
    for each in (running, shared, lone):
        scheduler.add(each)
    admit(scheduler)
    assert scheduler.take_cancelled() == []
    for name in ("r1", "s2", "l", "nobody", "l"):
        scheduler.cancel(name)
    taken = [(each, member.request.request_id, was) for each, member, was in scheduler.take_cancelled()]
    assert sorted(taken, key=lambda item: item[1]) == [(lone, "l", False), (running, "r1", True), (shared, "s2", False)]
    assert names(list(scheduler.waiting)) == [["s1"]]
    assert names(scheduler.running) == [["r2"]]
    assert scheduler.take_cancelled() == [], "once only"


def test_a_fork_has_a_copy_of_the_past() -> None:
    parent = branch("a", "b", "c")
    parent.tokens, parent.texts, parent.admitted, parent.first_token = [5, 6], ["x", "y"], 1.0, 2.0
    child = parent.fork(parent.members[1:])
    parent.members = parent.members[:1]
    assert names([parent, child]) == [["a"], ["b", "c"]]
    child.tokens.append(7)
    child.texts.append("z")
    child.meter.lane_row_steps += 3
    assert (parent.tokens, parent.texts, child.admitted, child.first_token) == ([5, 6], ["x", "y"], 1.0, 2.0)
    assert parent.meter.lane_row_steps == 3  # what a group costs is counted together


def test_the_lanes_of_a_branch_are_those_that_any_member_uses() -> None:
    each = branch("a", weights=(0.0, 0.0, 2.0, 0.0))
    each.members += branch("b", weights=(-1.0, 0.0, 0.5, 0.0)).members
    points = lane_points(3)
    assert each.lanes == (Lane(points[0], (1,)), Lane(points[2], (1,)))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_counted_along_is_what_a_count_finds(seed: int) -> None:
    dice = random.Random(seed)
    scheduler = Scheduler(3)
    jobs, ids = [Job() for _ in range(4)], [f"request {number}" for number in range(12)]
    for number in range(300):
        kind = dice.randrange(4)
        if kind == 0:
            name = f"more {number}"
            ids.append(name)
            scheduler.add(branch(name, f"{name} too", job=dice.choice(jobs)))
        elif kind == 1:
            admit(scheduler)
        elif kind == 2 and scheduler.running:
            scheduler.release([gone := dice.choice(scheduler.running)])
            if dice.random() < 0.5:
                scheduler.resume([gone])
        else:
            for name in dice.sample(ids, 3):
                scheduler.cancel(name)
            taken = {member.request.request_id for _, member, _ in scheduler.take_cancelled()}
            everywhere = [*scheduler.running, *scheduler.waiting]
            assert not taken.intersection(member.request.request_id for each in everywhere for member in each.members)
            scheduler.release([each for each in scheduler.running if not each.members])
        waiting = list(scheduler.waiting)
        assert len(scheduler.waiting) == len(waiting)
        assert scheduler.waiting_requests == sum(len(each.members) for each in waiting)
        assert all(each.members for each in waiting)
