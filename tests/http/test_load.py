"""A crowd that asks for more than there is: every request ends as completed or refused, and memory stays flat."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.http.streams import Target
from benchmarks.load import run
from tests.http.test_shutdown import process


@pytest.mark.slow
def test_a_crowd_is_served_or_told_to_wait_and_nothing_grows() -> None:
    with process(step_delay_s=0.0, mean_length=10) as (child, url):
        report = asyncio.run(run(Target.parse(url), clients=100, seconds=5, new_tokens=12, pid=child.pid))
    assert report.faults() == []
    assert report.outcomes["completed"] > 0
