"""`create_app`: assembles the application. No globals: two apps in one process share nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware import Middleware

from emorl_core import __version__
from emorl_core.ensemble import Ensemble
from emorl_core.models.parallel.group import ProcessGroup
from server.api import admin, choices, drafts, generate, operations, scores
from server.api import page as playground
from server.api.openai import routes as openai
from server.api.sweeps import map, segments, sweep  # noqa: A004 - the module of a route
from server.door.auth import AuthMiddleware, Cors, Keys
from server.door.context import GENERATION_ROUTES, ContextMiddleware
from server.door.document import document, make_router
from server.door.findings import install_handlers
from server.door.head import HeadMiddleware
from server.door.hosts import HostMiddleware
from server.door.limits import LimitMiddleware
from server.door.prefix import PrefixMiddleware
from server.serving.deployment import Deployment
from server.serving.scoring import MakeScoring
from server.serving.service import Service
from server.settings import Settings, SettingsError
from server.watch.tracing import set_up_tracing

# FastAPI's own telemetry records invalid bodies and exception messages; both can contain a prompt.
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip


def create_app(
    settings: Settings,
    ensemble: Ensemble | None = None,
    *,
    scoring: MakeScoring | None = None,
    group: ProcessGroup | None = None,
) -> FastAPI:
    """The HTTP application. It serves `ensemble` if given; else the lifespan loads `settings.bundle`, split over the
    `group` if there is one. With `scoring`, scores come from there, and the bundle's scorers are not loaded.

    The service is `app.state.service`. Loading happens in the background: liveness answers meanwhile, and a bundle that
    cannot be served shows in liveness and in `service.failure`.

    Raises:
        SettingsError: the file of API keys cannot be used, the packages for tracing are missing, or `root_path` is a
            route of this server.
    """
    keys = Keys.read(settings)
    tracing = set_up_tracing(settings)
    if scoring is None:
        service = Service(settings, ensemble, group=group)
    else:  # the bundle's scorers are not loaded here
        elsewhere = partial(Deployment.make, elsewhere=scoring)
        service = Service(settings.model_copy(update={"score": False}), ensemble, make=elsewhere, group=group)
    page = playground.read_assets() if settings.playground else {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="emorl",
        version=__version__,
        description="N objectives for the price of one model, steered per request.",
        lifespan=lifespan,
        openapi_url=None,  # added by `make_router`
        docs_url=None,  # these pages load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
        middleware=[
            Middleware(
                ContextMiddleware,
                metrics=service.metrics,
                generation_routes=frozenset(GENERATION_ROUTES),
                tracing=tracing,
            ),
            Middleware(PrefixMiddleware, root_path=settings.root_path),
            *([Middleware(HostMiddleware, allowed=settings.allowed_hosts)] if settings.allowed_hosts else []),
            *([Middleware(Cors, origins=settings.cors_origins)] if settings.cors_origins else []),
            Middleware(
                AuthMiddleware,
                keys=keys,
                metrics_key_required=settings.metrics_key_required,
                open_paths=frozenset(page),  # the page reveals nothing; its API calls need the key
            ),
            Middleware(
                LimitMiddleware,
                max_header_bytes=settings.max_header_bytes,
                max_body_bytes=settings.max_body_bytes,
                read_timeout_s=settings.read_timeout_s,
            ),
            Middleware(HeadMiddleware),
        ],
    )
    app.state.service = service
    install_handlers(app)
    app.include_router(generate.router)
    app.include_router(sweep.router)
    app.include_router(segments.router)
    app.include_router(map.router)
    app.include_router(drafts.router)
    app.include_router(scores.router)
    app.include_router(openai.router)
    app.include_router(choices.router)
    app.include_router(operations.router)
    app.include_router(admin.router)
    app.include_router(playground.make_router(page))
    app.include_router(make_router(app))
    app.openapi = document(app, settings.root_path)  # type: ignore[method-assign]  # FastAPI's own way to change it
    if settings.root_path:
        _check_prefix(settings.root_path, [*app.openapi()["paths"], *page])
    return app


def _check_prefix(root_path: str, paths: Iterable[str]) -> None:
    taken = next((path for path in paths if f"{path}/".startswith(f"{root_path}/")), None)
    if taken is not None:  # a proxy may keep or strip the prefix, so one path could mean two routes
        raise SettingsError(f"root_path is {root_path!r}; {taken} is a route of this server", param="root_path")
