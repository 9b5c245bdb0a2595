"""The first steps of a loaded ensemble: do they work, and with how many threads are they the fastest?"""

from __future__ import annotations

import time
from dataclasses import replace

from emorl_core.engine.driver import Driver
from emorl_core.machine.threads import ThreadChoice
from emorl_core.text.prompts import Encoded
from emorl_core.types import Request, Sampling


def warm_up(driver: Driver, threads: ThreadChoice, prompt: Encoded, name: str) -> None:
    """Run one token through all lanes at once, then the steps of a trial where there are threads to choose.

    Belongs on the thread that will run the steps. prompt: with tokens for every lane; name: begins the ids of the
    requests. Raises EngineError when the model, its adapters or the head do not work.
    """
    lanes = len(prompt.of_lanes)
    first = Request(
        f"{name}-0",
        prompt.ids,
        (1.0 / lanes,) * lanes,
        Sampling(max_new_tokens=1),
        stream=False,
        lane_prompts=prompt.of_lanes,
        prompt_lookup=False,  # the time between two tokens is that of a step
    )
    threads.start()
    driver.finish([first])
    if not threads.measuring:
        return
    steps = threads.trial_steps
    sampling = Sampling(max_new_tokens=steps, min_new_tokens=steps)
    began = time.perf_counter()
    for _ in driver.stream(replace(first, request_id=f"{name}-1", sampling=sampling, stream=True)):
        now = time.perf_counter()
        threads.observe(now - began, lanes)
        began = now
