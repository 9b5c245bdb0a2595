"""Routes about the server: what it serves, health probes and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from emorl_core import __version__
from emorl_core.choices.record import REASONS
from emorl_core.weights import BASE
from server.api.answers import json_response, service_of
from server.api.documented import errors
from server.api.operations_models import Health, Info, Objectives, Profiles
from server.door.errors import NotReady

router = APIRouter(tags=["operations"])


@router.get("/objectives", response_model=Objectives, responses=errors(401, 421, 503))
async def objectives(request: Request) -> Response:
    """The objectives that can be given weight."""
    spec = service_of(request).deployment().ensemble.spec
    listed: list[dict[str, Any]] = [
        {"name": BASE, "description": "the model without any adapter", "adapter": False, "prompt": None}
    ]
    for name, objective in spec.objectives.items():
        told = None if objective.prompt is None else objective.prompt.model_dump()
        has_adapter = objective.adapter is not None
        listed.append({"name": name, "description": objective.description, "adapter": has_adapter, "prompt": told})
    return json_response({"objectives": listed})


@router.get("/profiles", response_model=Profiles, responses=errors(401, 421, 503))
async def profiles(request: Request) -> Response:
    """Named weights and where they came from."""
    ensemble = service_of(request).deployment().ensemble
    listed: list[dict[str, Any]] = []
    for name, profile in ensemble.profiles.items():
        weights = {} if profile.predictor is not None else ensemble.resolve(profile=name).as_dict()
        listed.append({"name": name, "kind": profile.kind, "weights": weights, "origin": profile.origin})
    return json_response({"default": ensemble.spec.default_profile, "profiles": listed})


@router.get("/info", response_model=Info, responses=errors(401, 421, 503))
async def info(request: Request) -> Response:
    """The bundle, the device and the limits of this server."""
    service = service_of(request)
    deployment, settings = service.deployment(), service.settings
    ensemble = deployment.ensemble
    spec = ensemble.spec
    return json_response(
        {
            "model": ensemble.name,
            "version": __version__,
            "format": spec.format,
            "architecture": ensemble.held.architecture,
            "prompt_template": spec.prompt_template,
            "chat": None if spec.chat is None else spec.chat.model_dump(),
            "objectives": list(ensemble.lanes),
            "profiles": list(ensemble.profiles),
            "default_profile": spec.default_profile,
            "device": ensemble.device,
            "dtype": ensemble.dtype,
            "compiled": ensemble.compiled,
            "threads": ensemble.held.threads,
            "parameter_bytes": ensemble.parameter_bytes(),
            "identity": deployment.identity.model_dump(),
            "limits": {
                "max_source_tokens": spec.max_source_tokens,
                "max_prompt_chars": ensemble.max_prompt_chars,
                "max_new_tokens": settings.max_new_tokens,
                "max_body_bytes": settings.max_body_bytes,
                "max_choices": settings.max_choices,
                "max_sweep": settings.max_sweep,
                "slots": service.admission.slots,
                "max_queue": service.admission.queue,
            },
            "choices": {
                "kept": settings.choices_file is not None,
                "profiles": deployment.learned.kept,
                "reasons": list(REASONS),
            },
        }
    )


@router.get("/healthz", response_model=Health, responses=errors(503))
@router.get("/livez", response_model=Health, responses=errors(503))
async def livez(request: Request) -> Response:
    """Liveness: the process answers, and the engine is alive and making progress. 503: replace this process."""
    dead = service_of(request).dead()
    if dead is not None:
        raise NotReady(dead)
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=Health, responses=errors(503))
async def readyz(request: Request) -> Response:
    """Readiness: a real one-token mix over all lanes has worked, and the server takes requests."""
    unready = service_of(request).unready()
    if unready is not None:
        raise unready
    return json_response({"status": "ok"})


@router.get("/startupz", response_model=Health, responses=errors(503))
async def startupz(request: Request) -> Response:
    """Startup: the bundle is loaded and has been ready at least once."""
    service = service_of(request)
    if not service.started and (reason := service.unready()) is not None:
        raise reason
    return json_response({"status": "ok"})


_EXPOSITION = "# TYPE emorl_requests_running gauge\nemorl_requests_running 3.0\n"
_METRICS = {"content": {"text/plain": {"schema": {"type": "string"}, "example": _EXPOSITION}}}


@router.get("/metrics", responses={200: _METRICS, **errors(401, 421)})
async def metrics(request: Request) -> Response:
    """Prometheus exposition."""
    body, content_type = service_of(request).metrics.render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
