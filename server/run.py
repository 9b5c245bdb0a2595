"""`run`: uvicorn with draining and bounded shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from emorl_core.ensemble import Ensemble
from emorl_core.errors import EmorlError
from emorl_core.models.parallel.group import ProcessGroup
from server.app import create_app
from server.door.connections import Connections
from server.door.listener import Listener, bind
from server.door.protocol import guarded
from server.serving.process import share_the_interpreter, spare_what_stays
from server.serving.service import Service
from server.serving.signals import hangups, hangups_held
from server.settings import Settings, unknown_variables

logger = logging.getLogger("emorl.server")


class Helpers(ThreadPoolExecutor):
    """The event loop's threads, for work that a request waits for. Shutdown does not wait for running work."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - see above
        super().shutdown(wait=False, cancel_futures=True)


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains, a second one exits at once; SIGHUP reloads the bundle."""

    _listener: Listener  # from `startup` on

    def __init__(self, config: uvicorn.Config, service: Service, connections: Connections) -> None:
        super().__init__(config)
        self._service = service
        self._connections = connections
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._signalled = False
        self.on_ready: Callable[[str], None] = lambda _: None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().capture_signals())
            if threading.current_thread() is threading.main_thread():
                stack.enter_context(hangups(self._reload_soon))
            yield

    def _reload_soon(self) -> None:
        assert self._loop is not None  # signals are captured within it
        self._loop.call_soon_threadsafe(self._service.reload_soon)

    async def startup(self, sockets: object = None) -> None:  # noqa: ARG002 - always its own
        asyncio.get_running_loop().set_default_executor(Helpers(thread_name_prefix="emorl-helper"))
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        try:
            bound = bind(self.config.host, self.config.port)
        except EmorlError:
            await self.lifespan.shutdown()
            raise
        self._listener = Listener(bound, self._make_protocol, self._connections, self.config.backlog)
        self.servers = [self._listener]  # type: ignore[list-item]  # what uvicorn needs of one it has
        self.started = True
        self.announce()

    def _make_protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    def announce(self) -> None:
        """Call `on_ready` with the URL once the socket listens and the bundle is loaded."""
        if self.started and self._service.started:
            self.on_ready(self.url)

    @property
    def url(self) -> str:
        """The URL it listens on; with port 0, the port that was assigned."""
        host, port = self.config.host, self.config.port
        for server in getattr(self, "servers", []):
            for sock in server.sockets:
                port = sock.getsockname()[1]
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self._signalled or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._signalled = True
        self._loop.call_soon_threadsafe(self.begin_drain)

    def begin_drain(self) -> None:
        """Refuse new requests at once; stop listening after `drain_delay_s`; end remaining requests at the deadline."""
        if self._drain is None:
            self._service.drain()
            self._drain = asyncio.get_running_loop().create_task(self._finish(), name="emorl-drain")

    async def _finish(self) -> None:
        settings = self._service.settings
        # A load balancer takes a moment to notice that readiness failed; until then it still sends requests here.
        await asyncio.sleep(settings.drain_delay_s)
        self.should_exit = True
        if not await self._service.drained(settings.drain_timeout_s):
            logger.warning("drain_timeout_s has passed: the requests still running were ended with an error")

    async def shutdown(self, sockets: object = None) -> None:  # noqa: ARG002 - always its own
        self._connections.hurry(self._service.settings.last_bytes_s)  # no client may delay the shutdown
        await self._listener.finish()
        await super().shutdown()


def run(
    settings: Settings,
    ensemble: Ensemble | None = None,
    *,
    group: ProcessGroup | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP reloads the bundle.

    `on_ready` is called with the URL once requests are accepted. group: processes over which the model is split; this
    one serves.

    Raises:
        EmorlError: the bundle or the address could not be served; the server has stopped.
    """
    for name in unknown_variables():
        logger.warning("%s is no setting of emorl; it is ignored", name)
    share_the_interpreter()
    with hangups_held():
        app = create_app(settings, ensemble, group=group)
        service: Service = app.state.service
        server = make_server(app, settings)

        def failed(error: BaseException) -> None:  # noqa: ARG001 - raised below, from service.failure
            server.should_exit = True

        service.on_failure = failed
        server.on_ready = on_ready
        service.on_ready = server.announce
        service.on_change = spare_what_stays
        asyncio.run(server.serve())
    if service.failure is not None:
        raise service.failure


def make_server(app: object, settings: Settings) -> DrainingServer:
    """Raises `SettingsError` when the limits on connections contradict each other."""
    service: Service = app.state.service  # type: ignore[attr-defined]
    connections = service.connections = Connections(settings)
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http=guarded(connections),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,  # logging is set up by the caller
        access_log=False,  # uvicorn's access log contains the raw path
        server_header=False,
        backlog=settings.backlog,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s + settings.last_bytes_s),
    )
    return DrainingServer(config, service, connections)
