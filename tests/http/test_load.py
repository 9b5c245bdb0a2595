"""A crowd that asks for more than there is: every request ends, and memory stays where it was."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.load import crowd, report, resident_mib
from tests.http.test_shutdown import process


@pytest.mark.slow
def test_a_crowd_is_served_or_told_to_wait_and_nothing_grows() -> None:
    with process(step_delay_s=0.0, mean_length=10) as (child, url):
        port = int(url.rsplit(":", 1)[1])

        def round_of(seconds: float) -> dict[str, int]:
            tally = asyncio.run(crowd("127.0.0.1", port, clients=100, seconds=seconds, max_new_tokens=12))
            return report(tally, seconds)["outcomes"]

        round_of(4)
        before = resident_mib(child.pid)
        outcomes = round_of(8)
        assert set(outcomes) == {"completed", "429"}, "anything else is a request that was lost"
        assert outcomes["completed"] > 20
        assert resident_mib(child.pid) < before + 30
