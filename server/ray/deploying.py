"""Handing a plan to Ray Serve: on a cluster that runs, or on one of this machine's that ends with it."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from emorl_core.errors import EmorlError
from server.ray.plan import APPLICATION, Plan
from server.settings import Settings

try:
    import ray
    from ray import serve
except ImportError:
    raise EmorlError("this needs Ray, which is not installed; pip install 'emorl[ray]'") from None

from server.ray.replica import build

_SPARE_CORES = 1  # for a replica of a new version, while the old ones still serve


class DeployFailed(EmorlError):
    """Ray cannot be reached, or the application does not come up."""

    code = "deploy_failed"


class Cluster:
    """A connection to Ray. Without an address it starts a Ray on this machine, and ends that on the way out."""

    def __init__(self, plan: Plan, address: str | None) -> None:
        self._plan = plan
        self._address = address

    def __enter__(self) -> Self:
        """Raises `DeployFailed` when there is no cluster at the address."""
        try:
            if self._address is None:
                settings = self._plan.replica_settings()
                cores = (self._plan.max_replicas + _SPARE_CORES) * int(settings.threads)
                ray.init(num_cpus=cores, include_dashboard=False, logging_level=logging.WARNING)
            else:
                ray.init(address=self._address, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = "on this machine" if self._address is None else f"at {self._address!r}"
            raise DeployFailed(f"no Ray cluster {where}: {_first_line(error)}", param="ray") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._address is None:
            serve.shutdown()  # replicas drain first
        ray.shutdown()

    def deploy(self, plan: Plan, settings: Settings) -> str:
        """Blocking: returns the URL once the replicas of this version serve. Where the application runs already, its
        replicas are replaced, a few at a time; each of the old ones ends what it has begun.

        Raises:
            DeployFailed: they do not come up; a version that served before goes on.
        """
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(build(plan.model_dump()), name=APPLICATION)
        except RuntimeError as error:
            raise DeployFailed(f"the replicas do not come up: {_first_line(error)}") from None
        host = "127.0.0.1" if settings.host in ("", "0.0.0.0", "::") else settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"

    def alive(self) -> bool:
        return bool(ray.is_initialized())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
