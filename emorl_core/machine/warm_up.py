"""The first steps of a loaded ensemble: do they work, and with how many threads are they the fastest?"""

from __future__ import annotations

import time
from collections.abc import Sequence

from emorl_core.engine.driver import Driver
from emorl_core.machine.threads import ThreadChoice
from emorl_core.types import Request, Sampling


def warm_up(driver: Driver, threads: ThreadChoice, prompt_ids: Sequence[int], lanes: int, name: str) -> None:
    """Run one token through all lanes at once, then the steps of a trial where there are threads to choose.

    Belongs on the thread that will run the steps. name: begins the ids of the requests. Raises EngineError when the
    model, its adapters or the head do not work.
    """
    even = (1.0 / lanes,) * lanes
    threads.start()
    driver.finish([Request(f"{name}-0", tuple(prompt_ids), even, Sampling(max_new_tokens=1), stream=False)])
    if not threads.measuring:
        return
    steps = threads.trial_steps
    sampling = Sampling(max_new_tokens=steps, min_new_tokens=steps)
    began = time.perf_counter()
    for _ in driver.stream(Request(f"{name}-1", tuple(prompt_ids), even, sampling)):
        now = time.perf_counter()
        threads.observe(now - began, lanes)
        began = now
