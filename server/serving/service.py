"""The state of one running server: its deployment, its requests, and whether it accepts more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError
from emorl_core.frontend import Frontend
from emorl_core.models.parallel.group import ProcessGroup
from emorl_core.types import Request
from server.door.admission import Admission
from server.door.connections import Connections
from server.door.context import GENERATION_ROUTES, context_of
from server.door.errors import NotReady, ReloadFailed, ShuttingDown
from server.engine.remote import RemoteFrontend
from server.policy.door import Conversation, PolicyDoor
from server.policy.loading import load_policy
from server.serving.bulk import Bulk
from server.serving.channel import Unread
from server.serving.deployment import Deployment, Make, daemon_threads_ended, in_daemon_thread, load, never_again
from server.serving.generation import Generation
from server.serving.readings import counted, reading_of
from server.serving.replacing import Replacing
from server.serving.retiring import Retiring
from server.settings import Settings
from server.watch.metrics import EngineReading, Metrics

logger = logging.getLogger("emorl.server")

_POLL_S = 0.02
T = TypeVar("T")
Said = Callable[[Frontend], Sequence[Conversation]]
_LOAD_STOP_S = 10.0  # as long as a worker may take, beside it


class Service:
    """Loaded in the background by `start`, so that liveness answers from the first second."""

    def __init__(
        self,
        settings: Settings,
        ensemble: Ensemble | None = None,
        *,
        make: Make = Deployment.make,
        group: ProcessGroup | None = None,
    ) -> None:
        self.settings, self._given, self._make, self._group = settings, ensemble, make, group
        self.metrics = Metrics(self.reading, GENERATION_ROUTES)
        self.admission = Admission(settings.slots, settings.max_queue, settings.max_concurrent_per_key)
        self._policy = PolicyDoor(load_policy(settings), settings.policy_timeout_s)
        self.draining = False
        self.started = False  # whether it has been ready at least once
        self.failure: BaseException | None = None  # why the bundle cannot be served at all
        self.on_failure: Callable[[BaseException], None] = lambda _: None
        self.on_ready: Callable[[], None] = lambda: None
        # called when a bundle starts to serve, or an earlier one was released
        self.on_change: Callable[[], None] = lambda: None
        self.connections: Connections | None = None  # the URL it listens on
        self._deployment: Deployment | None = None
        self.active: set[Generation] = set()
        self._unread = Unread(settings.max_unread_events, self._make_room)
        self._retiring = Retiring(self._gone)
        self.settled = asyncio.Event()  # set when the bundle is served, or failed to load
        self._loading = asyncio.Lock()  # one bundle is loaded at a time
        self._load: asyncio.Task[Deployment] | None = None  # of a reload
        self._next_reload: asyncio.Task[None] | None = None  # the queued reload
        self._replacing = Replacing(lambda lost: lost is self._deployment and not self.draining, self._replace)
        self._bulk = Bulk()
        self._past = Counter[str]()  # counts of earlier deployments
        self._bring_up_task: asyncio.Task[None] | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._bring_up_task = asyncio.create_task(self._bring_up(), name="emorl-bring-up")

    async def _bring_up(self) -> None:
        try:
            ensemble: Frontend | None = self._given
            if ensemble is None:
                ensemble = await in_daemon_thread(lambda: load(self.settings, self._group))
            deployment = self._deploy(ensemble)
            self.admission.slots = ensemble.held.slots
            self._deployment = deployment
            await deployment.start()
        except Exception as error:  # noqa: BLE001  whatever it is, there is nothing to serve; the owner decides what then
            self.failure = error
            reason = error.message if isinstance(error, EmorlError) else type(error).__name__
            logger.error("the bundle cannot be served: %s", reason)
            self.settled.set()
            self.on_failure(error)
            return
        self.started = True
        self.settled.set()
        logger.info("ready: bundle %s on %s in %s", ensemble.name, ensemble.device, ensemble.dtype)
        self.on_change()
        self.on_ready()

    def _deploy(self, ensemble: Frontend) -> Deployment:
        deployment = self._make(ensemble, self.settings, self.metrics)
        if isinstance(ensemble, RemoteFrontend):
            deployment.worker.on_end = lambda: self._replacing.begin(deployment)
        return deployment

    async def _replace(self, lost: Deployment) -> Deployment:
        async with self._loading:
            if self._deployment is lost:
                await self._reload()
                self._past["restarts"] += 1
            return self.deployment()

    def reload_soon(self) -> None:
        """Reload in the background, on SIGHUP: at once, or after the load in progress. At most one reload is queued,
        since it reads the newest bundle anyway."""
        if (never := never_again(self.settings, self._group)) is not None:
            logger.warning("SIGHUP: %s", never)
        elif self.draining or self.failure is not None:
            logger.warning("SIGHUP: the server is shutting down; the bundle is not loaded again")
        elif self._next_reload is not None:
            logger.info("SIGHUP: a reload is waiting already and will see this change too")
        else:
            busy = self._loading.locked() or not self.started
            logger.info("SIGHUP: the bundle will be loaded again %s", "after the load in progress" if busy else "now")
            self._next_reload = asyncio.create_task(self._reload_in_turn(), name="emorl-reload")

    async def _reload_in_turn(self) -> None:
        await self.settled.wait()
        async with self._loading:
            turn, self._next_reload = self._next_reload, None  # a later SIGHUP may mean a newer bundle
            assert turn is asyncio.current_task()
            if self.started and not self.draining:
                with contextlib.suppress(ReloadFailed):  # the log has the reason
                    await self._reload()

    async def reload(self) -> Deployment:
        """Load the bundle again beside the current one, warm it up, and then switch to it.

        Running requests finish on the deployment they started with. Meanwhile both are in memory.

        Raises:
            ReloadFailed: one line with the reason; the current deployment keeps serving.
        """
        if (never := never_again(self.settings, self._group)) is not None:
            raise ReloadFailed(never)
        if self._loading.locked() or self._next_reload is not None or not self.started or self.draining:
            raise ReloadFailed("the server is loading, reloading or shutting down; try again later")
        async with self._loading:
            return await self._reload()

    async def _reload(self) -> Deployment:
        self._load = asyncio.create_task(self._load_beside(), name="emorl-load-beside")
        try:
            fresh = await self._load
        except asyncio.CancelledError:
            if not self.draining:
                raise
            raise ReloadFailed("the server is shutting down; the bundle was not taken") from None
        finally:
            self._load = None
        old, self._deployment = self.deployment(), fresh
        self._retiring.add(old)
        logger.info("reloaded: bundle %s", fresh.ensemble.name)
        return fresh

    async def _load_beside(self) -> Deployment:
        try:
            fresh = self._deploy(await in_daemon_thread(lambda: load(self.settings, self._group)))
            try:
                await fresh.start()
            except asyncio.CancelledError:
                self._retiring.add(fresh)
                raise
        except Exception as error:
            reason = error.message if isinstance(error, EmorlError) else f"it failed with {type(error).__name__}"
            logger.error("the bundle was not taken: %s", reason)
            raise ReloadFailed(f"the bundle was not taken and the old one serves on: {reason}") from error
        return fresh

    def _gone(self, old: Deployment) -> None:
        self._past.update(counted(old))
        self.on_change()

    def drain(self) -> None:
        """From now on readiness answers 503 and new requests are refused; running ones continue."""
        if not self.draining:
            self.draining = True
            logger.info("draining: %d requests in progress", len(self.active))
            if self._load is not None:
                self._load.cancel()

    async def drained(self, timeout_s: float) -> bool:
        """Let requests in progress finish, then end the rest with an error. True when nothing had to be ended."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.active and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL_S)
        left = list(self.active)
        for generation in left:
            generation.fail(ShuttingDown("the server is shutting down and did not wait longer for this request"))
        return not left

    async def stop(self) -> None:
        """End everything. Safe at any time, also while loading."""
        load = self._load
        self.drain()
        self._bulk.close()
        self._replacing.cancel()
        for task in (self._bring_up_task, self._next_reload):
            if task is not None:
                task.cancel()
        if load is not None:
            await asyncio.wait({load})  # a deployment that was being started is among the retired now
        for generation in list(self.active):
            generation.fail(ShuttingDown("the server is shutting down"))
        deployments = [*self._retiring.cancel(), *([] if self._deployment is None else [self._deployment])]
        await asyncio.gather(*(deployment.stop() for deployment in deployments), daemon_threads_ended(_LOAD_STOP_S))

    # --- what it can do now ----------------------------------------------------------------------------------------

    def deployment(self) -> Deployment:
        """The deployment, ready or not. Raises `NotReady` while there is none."""
        if self._deployment is None:
            raise NotReady("the bundle is still being loaded")
        return self._deployment

    def unready(self) -> EmorlError | None:
        """Why a request cannot be accepted now, or None."""
        if self.draining:
            return ShuttingDown("the server is shutting down")
        if self.failure is not None:
            return NotReady("the bundle could not be loaded")
        if self._deployment is None:
            return NotReady("the bundle is still being loaded")
        worker = self._deployment.worker
        if worker.failure is not None:
            return NotReady(f"the engine {'is starting again' if self._replacing.going_on else 'has stopped'}")
        if not worker.ready:
            return NotReady("the engine is starting again" if worker.restarts else "the engine is warming up")
        if worker.stalled_for_s() > self.settings.stall_s:
            return NotReady("the engine does not answer")
        return None

    def dead(self) -> str | None:
        """Why this process should be replaced, or None."""
        if self.failure is not None:
            return "the bundle could not be loaded"
        worker = None if self._deployment is None else self._deployment.worker
        if worker is None or self.draining or self._replacing.going_on:
            return None
        if worker.failure is not None:
            return "the engine has ended"
        if worker.stalled_for_s() > self.settings.stall_s:
            return "the engine does not answer"
        return None

    # --- requests --------------------------------------------------------------------------------------------------

    async def accept(
        self,
        http: HttpRequest,
        said: Said,
        build: Callable[[Frontend], Sequence[Request]],
        rows: int = 1,
    ) -> Generation:
        """`accept_built` for a `build` that makes the engine's requests themselves."""
        generation, _ = await self.accept_built(http, said, build, lambda built: built, rows)
        return generation

    async def accept_built(
        self,
        http: HttpRequest,
        said: Said,
        build: Callable[[Frontend], T],
        requests_of: Callable[[T], Sequence[Request]],
        rows: int = 1,
        *,
        many: bool = False,
    ) -> tuple[Generation, T]:
        """Admit a request: a permit first, then the policy, then tokenising off the event loop, then the engine. Also
        returns the result of `build`.

        `said` returns every conversation in the request. `build` runs on another thread, as does `requests_of`, which
        returns the engine requests of its result; with `many`, on the thread for long tokenising. The generation ends
        with the HTTP request at the latest (`server.door.context` closes it).

        Raises:
            NotReady, ShuttingDown, QueueFull, KeyLimit: at the door.
            NotDrafted: the policy refuses a draft for one of the conversations.
            InvalidRequest: raised by `build`.
        """
        unready = self.unready()
        if unready is not None:
            raise unready
        deployment = self.deployment()
        context = context_of(http.scope)
        permit = self.admission.acquire(rows, context.key)
        deployment.users += 1

        def work() -> tuple[T, Sequence[Request]]:
            made = build(deployment.ensemble)
            return made, requests_of(made)

        try:
            await self._policy.check(context, lambda: said(deployment.ensemble))
            built, requests = await (self._bulk.run(work) if many else asyncio.to_thread(work))
            generation = Generation(deployment, requests, permit, self.metrics, self._unread, self._closed)
        except BaseException:
            permit.release()
            deployment.users -= 1
            raise
        self.active.add(generation)
        context.generation = generation
        generation.watch(http.receive)
        return generation, built

    @contextmanager
    def borrowed(self) -> Iterator[Deployment]:
        """The current deployment, held for the block, for work beside the engine. Raises NotReady, ShuttingDown."""
        unready = self.unready()
        if unready is not None:
            raise unready
        deployment = self.deployment()
        deployment.users += 1
        try:
            yield deployment
        finally:
            deployment.users -= 1

    def _closed(self, generation: Generation) -> None:
        self.active.discard(generation)
        generation.deployment.users -= 1

    def _make_room(self) -> None:
        """Called for too many unread events: drop the slowest client's answer."""
        max(self.active, key=lambda generation: generation.unread).fall_behind()

    # --- numbers -----------------------------------------------------------------------------------------------------

    def reading(self) -> EngineReading:
        earlier = sum((Counter(counted(each)) for each in self._retiring), self._past)
        return reading_of(self._deployment, earlier, self.admission, self.connections)
