"""`run`: uvicorn with a drain that keeps its promises."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from emorl_core.ensemble import Ensemble
from server.app import create_app
from server.door.errors import ReloadFailed
from server.door.protocol import guarded
from server.serving.service import Service
from server.settings import Settings, unknown_variables

logger = logging.getLogger("emorl.server")

# Longer than the 60 s of common load balancers: who closes first must be the other side, or requests get lost between.
_IDLE_CONNECTION_S = 75
_LAST_BYTES_S = 5  # for the error events of what was ended at the deadline


class DrainingServer(uvicorn.Server):
    """A first SIGTERM or SIGINT drains, a second one ends the process without waiting."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._signalled = False
        self.on_ready: Callable[[str], None] = lambda _: None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        self.announce()

    def announce(self) -> None:
        """Tell `on_ready` the URL once the socket listens and the bundle is loaded, whichever comes second."""
        if self.started and self._service.started:
            self.on_ready(self.url)

    @property
    def url(self) -> str:
        """Where it listens; with port 0, the port that was found."""
        host, port = self.config.host, self.config.port
        for server in getattr(self, "servers", []):
            for sock in server.sockets:
                port = sock.getsockname()[1]
        host = "127.0.0.1" if host in ("0.0.0.0", "") else host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self._signalled or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._signalled = True
        self._loop.call_soon_threadsafe(self.begin_drain)

    def _reload(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._try_reload(), name="emorl-reload")

    async def _try_reload(self) -> None:
        with contextlib.suppress(ReloadFailed):  # the service has logged why, and serves on
            await self._service.reload()

    def begin_drain(self) -> None:
        """Refuse new requests at once; stop listening after `drain_delay_s`; end what is left at the deadline."""
        if self._drain is None:
            self._service.drain()
            self._drain = asyncio.get_running_loop().create_task(self._finish(), name="emorl-drain")

    async def _finish(self) -> None:
        settings = self._service.settings
        # A load balancer takes a moment to see that readiness has gone; until then it still sends requests here.
        await asyncio.sleep(settings.drain_delay_s)
        self.should_exit = True
        if not await self._service.drained(settings.drain_timeout_s):
            logger.warning("drain_timeout_s has passed: the requests still running were ended with an error")


def run(
    settings: Settings,
    ensemble: Ensemble | None = None,
    *,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP loads the bundle again.

    `on_ready` is called with the URL once requests are taken.

    Raises:
        EmorlError: the bundle could not be served; the server has stopped.
        SystemExit: the address is taken (uvicorn has said so).
    """
    for name in unknown_variables():
        logger.warning("%s is no setting of emorl; it is ignored", name)
    app = create_app(settings, ensemble)
    service: Service = app.state.service
    server = make_server(app, settings)

    def failed(error: BaseException) -> None:  # noqa: ARG001 - raised below, from service.failure
        server.should_exit = True

    service.on_failure = failed
    server.on_ready = on_ready
    service.on_ready = server.announce
    server.run()
    if service.failure is not None:
        raise service.failure


def make_server(app: object, settings: Settings) -> DrainingServer:
    service: Service = app.state.service  # type: ignore[attr-defined]
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        http=guarded(settings.read_timeout_s),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,  # the process that runs this has set up logging
        access_log=False,  # uvicorn's has the raw path in it
        server_header=False,
        timeout_keep_alive=_IDLE_CONNECTION_S,
        timeout_graceful_shutdown=int(settings.drain_timeout_s) + _LAST_BYTES_S,
    )
    return DrainingServer(config, service)
