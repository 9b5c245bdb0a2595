"""The current deployment: a bundle and the worker that talks to its engine. A reload replaces it as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from emorl_core.engine.stats import EngineStats
from emorl_core.ensemble import Ensemble
from emorl_core.frontend import Frontend
from emorl_core.machine.threads import most_threads
from emorl_core.models.parallel.group import ProcessGroup
from server.door.errors import NotReady
from server.engine.host import LONG_WORK, EngineHost
from server.engine.remote import RemoteFrontend, load_apart
from server.engine.reports import Link
from server.serving.learned import LearnedProfiles
from server.serving.receipt import Identity
from server.serving.scoring import MakeScoring, Scoring, ScoringThread
from server.serving.worker import Worker
from server.settings import Settings, SettingsError
from server.watch.metrics import Metrics

logger = logging.getLogger("emorl.server")

T = TypeVar("T")
_POLL_S = 0.02
_COMPILE: dict[str, bool | Literal["auto"]] = {"on": True, "auto": "auto", "off": False}


@dataclass(slots=True, eq=False)
class Deployment:
    """`since`: Unix time of loading, which `/v1/models` reports as `created`.

    `identity`: hashes and hub id of the bundle, for receipts; folder names are not shown to clients.
    `users`: number of requests that use it, from before tokenising to their end; it may be stopped at 0.
    """

    ensemble: Frontend
    worker: Worker
    since: int
    identity: Identity
    scoring: Scoring
    learned: LearnedProfiles
    users: int = 0

    @classmethod
    def make(
        cls, ensemble: Frontend, settings: Settings, metrics: Metrics, elsewhere: MakeScoring | None = None
    ) -> Deployment:
        """Create the worker without starting it. elsewhere: makes a client of scorers in another process."""

        def on_step(stats: EngineStats) -> None:
            metrics.batch_rows.observe(stats.batch_rows)

        metrics.know_objectives(ensemble.objectives)
        worker = Worker(_link_of(ensemble, settings), on_step=on_step, on_orphan=metrics.abandoned)
        from_hub = settings.bundle is not None and not Path(settings.bundle).is_dir()
        source = settings.bundle if from_hub and ensemble.hashes is not None else None
        identity = Identity.of(ensemble.spec, ensemble.hashes, source)
        scoring = (
            ScoringThread(ensemble.scorers, settings, metrics)
            if elsewhere is None
            else elsewhere(ensemble.spec, settings, metrics)
        )
        metrics.know_scorers(scoring.names)
        return cls(ensemble, worker, int(time.time()), identity, scoring, LearnedProfiles(ensemble, settings))

    async def start(self) -> None:
        """Warm the engine up.

        Raises:
            NotReady: the warm-up failed; the engine has ended.
            ChoicesError: the file of learned profiles cannot be used.
        """
        if self.learned.kept:
            await in_daemon_thread(self.learned.recall)
        self.worker.start()
        await self.worker.settled()
        if self.worker.failure is not None:
            raise NotReady(f"the warm-up failed ({self.worker.failure})")

    async def stop(self) -> None:
        """Stop the engine; requests still in it get an error."""
        await asyncio.gather(self.worker.stop(), self.scoring.stop())


Make = Callable[[Frontend, Settings, Metrics], Deployment]


def _link_of(ensemble: Frontend, settings: Settings) -> Link:
    if isinstance(ensemble, RemoteFrontend):
        return ensemble.process
    assert isinstance(ensemble, Ensemble), "there are no others"
    return EngineHost(ensemble, queue_timeout_s=settings.queue_timeout_s)


def load(settings: Settings, group: ProcessGroup | None = None) -> Frontend:
    """Blocking. group: processes over which the model is split; this one leads.

    Raises:
        BundleError, EngineLost, SettingsError: one line each.
    """
    if settings.bundle is None:
        raise SettingsError("bundle is not set; allowed: a bundle folder or a hub id owner/name", param="bundle")
    if group is not None and settings.prompt_lookup != "off":
        raise SettingsError(
            f"prompt_lookup is {settings.prompt_lookup}; allowed for a model in parts: off", param="prompt_lookup"
        )
    compile_step = _COMPILE[settings.compile]
    if group is not None and compile_step == "auto":
        logger.info("the plain decoding step serves: a model in parts has no compiled one")
        compile_step = False
    options: dict[str, Any] = {
        "device": settings.device if group is None else str(group.device),
        "dtype": settings.dtype,
        "quantize": settings.quantize,
        "slots": settings.slots,
        "prefill_cache_bytes": settings.prefill_cache_bytes,
        "prefill_tokens": settings.prefill_tokens,
        "kv_cache_bytes": settings.kv_cache_bytes,
        "prompt_lookup": settings.prompt_lookup,
        "compile": compile_step,
        "compile_cache": settings.compiled_steps,
        "threads": settings.threads,
    }
    here: dict[str, Any] = {
        "max_prompt_chars": settings.max_prompt_chars,
        "scorer_device": settings.scorer_device if settings.score else None,
        "scorer_code": settings.scorer_code,
    }
    if settings.engine == "process" and group is None:  # the model is split over the group's processes
        return load_apart(settings.bundle, options, queue_timeout_s=settings.queue_timeout_s, **here)
    # A running engine may have chosen fewer threads, and a thread started afterwards would inherit that number.
    torch.set_num_threads(most_threads())
    return Ensemble.load(settings.bundle, hashed=True, group=group, **options, **here)


def never_again(settings: Settings, group: ProcessGroup | None) -> str | None:
    """Why a server cannot reload its bundle, or None."""
    if settings.bundle is None:
        return "this server was given its model; there is no bundle to load again"
    if group is not None:
        return f"{group.size} processes hold the model in parts and load it once; start them again"
    return None


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run long work off the event loop. Unlike asyncio's executor it does not delay the exit of the process."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def main() -> None:
        value, error = None, None
        try:
            value = work()
        except BaseException as caught:  # noqa: BLE001  handed to the waiter
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile; nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=main, name=LONG_WORK, daemon=True).start()
    return await result


async def daemon_threads_ended(timeout_s: float) -> bool:
    """Wait for abandoned `in_daemon_thread` work before the process exits, because the interpreter aborts if it exits
    while a thread is in native code. Returns False when one still runs after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while running := any(each.name == LONG_WORK for each in threading.enumerate()):
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(_POLL_S)
    return not running
