"""Waiting and running branches, without a model."""

from __future__ import annotations

from emorl_core.detokenize import Detokenizer
from emorl_core.scheduler import Branch, Member, Scheduler
from emorl_core.types import Request


def branch(*names: str, weights: tuple[float, ...] = (0.0, 1.0)) -> Branch:
    members = [Member(Request(name, (1,), weights), 0.0) for name in names]
    return Branch((1,), members, Detokenizer(lambda ids: "x" * len(ids)))


def names(branches: list[Branch]) -> list[list[str]]:
    return [[member.request.request_id for member in each.members] for each in branches]


def test_first_come_first_served_up_to_the_slots() -> None:
    scheduler = Scheduler(2)
    a, b, c = branch("a"), branch("b", "b2"), branch("c")
    for each in (a, b, c):
        scheduler.add(each)
    assert (scheduler.waiting_requests, scheduler.running_requests, scheduler.has_work) == (4, 0, True)
    assert scheduler.admit() == [a, b]
    assert scheduler.admit() == []
    assert (scheduler.waiting_requests, scheduler.running_requests) == (1, 3)
    scheduler.release([a])
    assert scheduler.admit() == [c]
    scheduler.release([b, c])
    assert not scheduler.has_work


def test_forked_branches_go_ahead_of_the_queue_in_their_order() -> None:
    scheduler = Scheduler(1)
    for name in ("old", "older"):
        scheduler.add(branch(name))
    scheduler.add_first([branch("fork 1"), branch("fork 2")])
    order = []
    while scheduler.has_work:
        (each,) = scheduler.admit()
        order += names([each])
        scheduler.release([each])
    assert order == [["fork 1"], ["fork 2"], ["old"], ["older"]]


def test_a_branch_that_waits_again_keeps_the_time_it_was_admitted_first() -> None:
    scheduler = Scheduler(1)
    each = branch("a")
    scheduler.add(each)
    scheduler.admit()
    first = each.admitted
    assert first > 0
    scheduler.release([each])
    scheduler.add_first([each])
    scheduler.admit()
    assert each.admitted == first


def test_cancelled_members_leave_their_branches_and_empty_waiting_branches_the_queue() -> None:
    scheduler = Scheduler(1)
    running, shared, lone = branch("r1", "r2"), branch("s1", "s2"), branch("l")
    for each in (running, shared, lone):
        scheduler.add(each)
    scheduler.admit()
    assert scheduler.take_cancelled() == []
    for name in ("r1", "s2", "l", "nobody", "l"):
        scheduler.cancel(name)
    taken = [(each, member.request.request_id, was) for each, member, was in scheduler.take_cancelled()]
    assert sorted(taken, key=lambda item: item[1]) == [(lone, "l", False), (running, "r1", True), (shared, "s2", False)]
    assert names(list(scheduler.waiting)) == [["s1"]]
    assert names(scheduler.running) == [["r2"]]
    assert scheduler.take_cancelled() == [], "once only"


def test_a_fork_takes_its_members_and_a_copy_of_the_past() -> None:
    parent = branch("a", "b", "c")
    parent.tokens, parent.texts, parent.admitted, parent.first_token = [5, 6], ["x", "y"], 1.0, 2.0
    child = parent.fork(parent.members[1:])
    assert names([parent, child]) == [["a"], ["b", "c"]]
    child.tokens.append(7)
    child.texts.append("z")
    child.meter.lane_row_steps += 3
    assert (parent.tokens, parent.texts, child.admitted, child.first_token) == ([5, 6], ["x", "y"], 1.0, 2.0)
    assert parent.meter.lane_row_steps == 3  # what a group costs is counted together


def test_the_lanes_of_a_branch_are_those_that_any_member_uses() -> None:
    each = branch("a", weights=(0.0, 0.0, 2.0, 0.0))
    each.members += branch("b", weights=(-1.0, 0.0, 0.5, 0.0)).members
    assert each.lanes == (0, 2)
