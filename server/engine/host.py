"""Runs an ensemble's engine: the thread, the choice of torch's threads, and background compilation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from emorl_core.engine.engine import Engine
from emorl_core.engine.stats import EngineStats
from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError
from emorl_core.machine.threads import ThreadChoice
from server.door.errors import EngineRestarted
from server.engine.clock import StepClock
from server.engine.commands import Command, Stop, Switch
from server.engine.reports import Ready, Report, Stepped
from server.engine.thread import EngineThread

logger = logging.getLogger("emorl.server")

LONG_WORK = "emorl-load"  # name prefix of threads that the process joins at exit


_MOST_STILL_S = 600.0  # the longest pause of the compiler


class Patience:
    """Whether the compiler should pause: while requests wait for a slot, since even at the lowest priority it slows
    down steps. The pause is bounded, since a compiled step is most useful when requests always wait."""

    def __init__(self, most_s: float = _MOST_STILL_S) -> None:
        self._left_s = most_s
        self._since: float | None = None

    def still(self, waiting: bool, now: float) -> bool:
        if self._since is not None:
            self._left_s -= now - self._since
        self._since = now if waiting and self._left_s > 0 else None
        return self._since is not None


class EngineHost:
    """A `Link` to the engine of an ensemble in this process."""

    def __init__(self, ensemble: Ensemble, *, queue_timeout_s: float, clock: StepClock | None = None) -> None:
        ensemble.threads.on_choice = logger.info
        self._ensemble = ensemble
        self._thread = EngineThread(
            ensemble.engine,
            warm_up=ensemble.warm_up,
            rebuild=lambda: emptied(ensemble.engine),
            on_step=_observer(ensemble.threads),
            queue_timeout_s=queue_timeout_s,
            clock=clock,
        )
        self._compiling: threading.Thread | None = None
        self._patience = Patience()

    def start(self, report: Callable[[Report], None]) -> None:
        def heard(told: Report) -> None:
            if isinstance(told, Ready) and self._compiling is None and self._ensemble.compilation is not None:
                self._compiling = threading.Thread(target=self._compile, name=LONG_WORK, daemon=True)
                self._compiling.start()
            if self._compiling is not None and self._ensemble.compilation is not None:
                # no other report may follow for a long time
                waiting = isinstance(told, Stepped) and told.stats.waiting > 0
                self._ensemble.compilation.pause(self._patience.still(waiting, time.monotonic()))
            report(told)

        self._thread.start(heard)

    def send(self, command: Command) -> None:
        if isinstance(command, Stop) and self._ensemble.compilation is not None:
            self._ensemble.compilation.stop()
        self._thread.send(command)

    @property
    def alive(self) -> bool:
        return self._thread.alive

    def stalled_for_s(self) -> float:
        return self._thread.stalled_for_s()

    def kill(self) -> bool:
        return self._thread.kill()

    def _compile(self) -> None:
        """Compile the decoding step in the background while the plain one serves."""
        assert self._ensemble.compilation is not None
        logger.info("the decoding step is being compiled in the background; the plain one serves meanwhile")
        began = time.monotonic()
        try:
            model = self._ensemble.compilation.make(idly=True)
        except EmorlError as error:
            logger.info("the plain decoding step serves on: %s", error.message)
            return
        self._thread.send(Switch(model))
        took_s = time.monotonic() - began
        logger.info("the decoding step is compiled, after %.0f s; requests that begin from now on use it", took_s)


def emptied(engine: Engine) -> Engine:
    """A fresh engine over the same weights: no lane rows, no cached prompts."""
    engine.drop_all(EngineRestarted("the engine failed and starts again"))
    engine.runner.prefill_cache.clear()
    return engine


def _observer(threads: ThreadChoice) -> Callable[[EngineStats, float], None]:
    """Observe one step, on the engine's thread."""
    rows = computed = 0
    compiled: bool | None = None

    def note(stats: EngineStats, took_s: float) -> None:
        nonlocal rows, computed, compiled
        # A step that includes prefill says nothing about decoding times.
        plain = stats.prefill_tokens_computed == computed
        threads.observe(took_s, stats.lane_row_steps - rows if plain else 0)
        rows, computed = stats.lane_row_steps, stats.prefill_tokens_computed
        if compiled is False and stats.compiled:
            threads.start()  # the new step may be fastest with another number
        compiled = stats.compiled

    return note
