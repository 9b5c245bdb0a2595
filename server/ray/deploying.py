"""Handing a plan to Ray Serve, by a program that is connected to Ray."""

from __future__ import annotations

from ray import serve

from emorl_core.errors import EmorlError
from server.ray.plan import APPLICATION, Plan
from server.ray.replica import build
from server.settings import Settings


class DeployFailed(EmorlError):
    """The application does not come up."""

    code = "deploy_failed"


def deploy(plan: Plan, settings: Settings) -> str:
    """Blocking: returns the URL once the replicas of this version serve. Where the application runs already, its
    replicas are replaced, a few at a time; each of the old ones ends what it has begun.

    Raises:
        DeployFailed: they do not come up; a version that served before goes on.
    """
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(build(plan.model_dump()), name=APPLICATION)
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DeployFailed(f"the replicas do not come up: {reason}") from None
    host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
