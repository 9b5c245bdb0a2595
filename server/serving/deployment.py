"""What is being served right now: an ensemble and the worker that runs its engine. Swapped as one piece on a reload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch

from emorl_core.engine.engine import Engine
from emorl_core.engine.stats import EngineStats
from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError
from emorl_core.machine.threads import ThreadChoice, most_threads
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import LaneModel
from emorl_core.models.parallel.group import ProcessGroup
from server.door.errors import EngineRestarted, NotReady
from server.serving.learned import LearnedProfiles
from server.serving.receipt import Identity
from server.serving.scoring import Scoring
from server.serving.worker import Worker
from server.settings import Settings, SettingsError
from server.watch.metrics import Metrics

logger = logging.getLogger("emorl.server")

T = TypeVar("T")
_THREAD = "emorl-load"
_POLL_S = 0.02
_COMPILE: dict[str, bool | Literal["auto"]] = {"on": True, "auto": "auto", "off": False}


@dataclass(slots=True, eq=False)
class Deployment:
    """`since`: Unix time at which it was loaded, which `/v1/models` reports as `created`.

    `identity`: what was loaded, for receipts, with the hub id it came from; a folder's name is nothing that clients
    should see.
    `users`: requests that hold it, from before their tokenising to their end; it may be stopped when there are none.
    """

    ensemble: Ensemble
    worker: Worker
    since: int
    identity: Identity
    scoring: Scoring
    learned: LearnedProfiles
    users: int = 0
    compiling: asyncio.Task[None] | None = None

    @classmethod
    def make(cls, ensemble: Ensemble, settings: Settings, metrics: Metrics) -> Deployment:
        """The worker is made, not started."""
        metrics.know_objectives(ensemble.objectives)
        ensemble.threads.on_choice = logger.info
        worker = Worker(
            ensemble.engine,
            warm_up=ensemble.warm_up,
            rebuild=lambda: emptied(ensemble.engine),
            on_step=_observer(metrics, ensemble.threads),
            on_orphan=metrics.abandoned,
            queue_timeout_s=settings.queue_timeout_s,
        )
        source = settings.bundle if ensemble.bundle is not None and not _is_folder(settings.bundle) else None
        metrics.know_scorers(ensemble.scorers)
        identity = Identity.of(ensemble.spec, ensemble.hashes, source)
        scoring = Scoring(ensemble.scorers, settings, metrics)
        return cls(ensemble, worker, int(time.time()), identity, scoring, LearnedProfiles(ensemble, settings))

    async def start(self) -> None:
        """Run the warm-up on the worker's thread.

        Raises:
            NotReady: the warm-up failed; the thread has ended.
            ChoicesError: the file of learned profiles cannot be used.
        """
        if self.learned.kept:
            await in_daemon_thread(self.learned.recall)
        self.worker.start()
        await self.worker.settled()
        if self.worker.failure is not None:
            raise NotReady(f"the warm-up failed ({type(self.worker.failure).__name__})") from self.worker.failure
        if self.ensemble.compilation is not None:
            compiling = compile_beside(self.ensemble.compilation, self.worker.switch)
            self.compiling = asyncio.create_task(compiling, name="emorl-compile")

    async def stop(self) -> None:
        """End the thread; what is still in it hears of it."""
        if self.compiling is not None and self.ensemble.compilation is not None:
            self.ensemble.compilation.stop()
            await self.compiling
        await asyncio.gather(self.worker.stop(), self.scoring.stop())


async def compile_beside(compilation: Compilation[LaneModel], take: Callable[[LaneModel], None]) -> None:
    """Have a decoding step compiled while the plain one serves."""
    logger.info("the decoding step is being compiled in the background; the plain one serves meanwhile")
    began = time.monotonic()
    try:
        model = await in_daemon_thread(lambda: compilation.make(idly=True))
    except EmorlError as error:
        logger.info("the plain decoding step serves on: %s", error.message)
        return
    take(model)
    took_s = time.monotonic() - began
    logger.info("the decoding step is compiled, after %.0f s; requests that begin from now on use it", took_s)


def _observer(metrics: Metrics, threads: ThreadChoice) -> Callable[[EngineStats, float], None]:
    """Observe one step, on the engine's thread."""
    rows = computed = 0
    compiled: bool | None = None

    def note(stats: EngineStats, took_s: float) -> None:
        nonlocal rows, computed, compiled
        metrics.batch_rows.observe(stats.batch_rows)
        # A step with a prefill in it says nothing about how long decoding steps take.
        plain = stats.prefill_tokens_computed == computed
        threads.observe(took_s, stats.lane_row_steps - rows if plain else 0)
        rows, computed = stats.lane_row_steps, stats.prefill_tokens_computed
        if compiled is False and stats.compiled:
            threads.start()  # another number may be the fastest for another step
        compiled = stats.compiled

    return note


def _is_folder(bundle: str | None) -> bool:
    return bundle is not None and Path(bundle).is_dir()


def emptied(engine: Engine) -> Engine:
    """A fresh engine over the same weights: no lane rows, no cached prompts."""
    engine.drop_all(EngineRestarted("the engine failed and starts again"))
    engine.runner.prefill_cache.clear()
    return engine


def load(settings: Settings, group: ProcessGroup | None = None) -> Ensemble:
    """Blocking. group: processes that hold the model in parts with this one, which leads. Raises `BundleError` or
    `SettingsError`, one line each."""
    if settings.bundle is None:
        raise SettingsError("bundle is not set; allowed: a bundle folder or a hub id owner/name", param="bundle")
    compile_step = _COMPILE[settings.compile]
    if group is not None and compile_step == "auto":
        logger.info("the plain decoding step serves: a model in parts has no compiled one")
        compile_step = False
    # An engine that runs already may compute with fewer, and a thread begun after its choice would load with as few.
    torch.set_num_threads(most_threads())
    return Ensemble.load(
        settings.bundle,
        device=settings.device if group is None else str(group.device),
        dtype=settings.dtype,
        quantize=settings.quantize,
        slots=settings.slots,
        prefill_cache_bytes=settings.prefill_cache_bytes,
        prefill_tokens=settings.prefill_tokens,
        kv_cache_bytes=settings.kv_cache_bytes,
        compile=compile_step,
        compile_cache=settings.compiled_steps,
        hashed=True,
        max_prompt_chars=settings.max_prompt_chars,
        threads=settings.threads,
        scorer_device=settings.scorer_device if settings.score else None,
        scorer_code=settings.scorer_code,
        group=group,
    )


def never_again(settings: Settings, group: ProcessGroup | None) -> str | None:
    """Why a server cannot load its bundle a second time, or None."""
    if settings.bundle is None:
        return "this server was given its model; there is no bundle to load again"
    if group is not None:
        return f"{group.size} processes hold the model in parts and load it once; start them again"
    return None


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run something long off the event loop. Unlike asyncio's executor it does not hold up the end of the process."""
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
        with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile; nobody waits
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=main, name=_THREAD, daemon=True).start()
    return await result


async def daemon_threads_ended(timeout_s: float) -> bool:
    """Wait for what `in_daemon_thread` began and nobody waits for any more. An interpreter that ends under a thread in
    native code aborts, so a process that ends should have waited; False when one still runs after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while running := any(each.name == _THREAD for each in threading.enumerate()):
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(_POLL_S)
    return not running
