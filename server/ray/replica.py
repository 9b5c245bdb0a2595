"""One replica: `create_app`'s application in a Ray Serve actor. Serve's proxy listens, and its controller scales."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.app import create_app
from server.ray.plan import Plan
from server.ray.scorers import ScorerReplica, asking
from server.serving.process import share_the_interpreter, spare_what_stays
from server.serving.service import Service
from server.watch.log_queue import to_stderr
from server.watch.logs import logging_to


class Replica:
    """Serve sends requests once the first `check_health` has returned, and replaces a replica that keeps failing it.

    On shutdown Serve sends nothing new, waits for requests in progress (`graceful_shutdown_timeout_s` at most), then
    ends the application's lifespan.
    """

    def __init__(self, args: dict[str, Any], scorers: DeploymentHandle | None = None) -> None:
        """scorers: the scorer deployment; None: the replica scores itself."""
        settings = Plan.read(args).replica_settings()
        share_the_interpreter()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # requests are already logged by the application
        self._log = ExitStack()
        self._log.enter_context(logging_to(to_stderr(), settings))
        self._application = create_app(settings, scoring=None if scorers is None else asking(scorers))
        self._service: Service = self._application.state.service
        self._service.on_change = spare_what_stays

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return OneRequestId(self._application)

    async def check_health(self) -> None:
        """Check the engine's readiness; the first call waits for the bundle to be loaded and warmed up.

        Raises:
            RuntimeError: one line that says why requests are not accepted.
        """
        await self._service.settled.wait()
        reason = self._service.unready()
        if reason is not None:  # a plain type, since it is sent to a process that may not have our modules
            raise RuntimeError(getattr(self._service.failure, "message", reason.message))

    def __del__(self) -> None:
        self._log.close()


class OneRequestId:
    """Drop the request id header, since Serve's proxy sets the id and adds this header itself."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [each for each in message["headers"] if each[0].lower() != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_without)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file: its `import_path` names this function, its `args` are a `Plan`.

    Raises:
        SettingsError: `args` are invalid; one line.
    """
    plan = Plan.read(args)
    server = serve.deployment(**plan.deployment())(serve.ingress()(Replica))
    if not plan.max_scorers:
        return server.bind(args)
    return server.bind(args, serve.deployment(**plan.scorer_deployment())(ScorerReplica).bind(args))
