"""Deploys a plan to Ray Serve, from a program that is connected to Ray."""

from __future__ import annotations

from ray import serve

from emorl_core.errors import EmorlError
from server.ray.plan import APPLICATION, Plan
from server.ray.replica import build
from server.settings import Settings


class DeployFailed(EmorlError):
    """The application does not start."""

    code = "deploy_failed"


def deploy(plan: Plan, settings: Settings) -> str:
    """Blocking: returns the URL once this version's replicas serve. If the application is already running, its replicas
    are replaced a few at a time; each old one finishes its requests first.

    Raises:
        DeployFailed: the replicas do not start; an earlier version keeps serving.
    """
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(build(plan.model_dump()), name=APPLICATION)
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeployFailed(f"the replicas do not come up: {reason}") from None
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
