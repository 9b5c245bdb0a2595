"""A deployment plan as data: validated here, written for `serve deploy`, read by each replica.

Imports no Ray, so that a plan can be made and inspected without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from emorl_core.bundles.snapshot import Snapshot
from emorl_core.config import Strict, explain
from server.settings import Settings, SettingsError, load_settings

APPLICATION = "emorl"
SERVER, SCORERS = "server", "scorers"  # Serve's deployments
IMPORT_PATH = "server.ray.replica:build"
MAX_REPLICAS = 1000
NO_SCORERS = (0, 0)
PROBES = 16  # requests that do not generate: probes, metrics, the page
_CALLS = 2  # requests in progress per scorer, beyond which one more is started
LAST_S = 20.0  # beyond drain_timeout_s, for the engine's last step and the log

# Ray's proxy listens, so these settings would have no effect.
_OF_A_LISTENER = (
    "max_connections", "backlog", "head_timeout_s", "write_timeout_s", "idle_timeout_s", "last_bytes_s",
    "drain_delay_s",
)  # fmt: skip
_SECRETS = ("api_keys", "admin_keys")
_OF_THE_PROXY = ("host", "port")
_ELSEWHERE = {"config", "bundle", *_SECRETS, *_OF_THE_PROXY}  # already read, or secrets that do not belong in a file
NOT_DEPLOYED = frozenset({*_OF_A_LISTENER, *_SECRETS})


class Plan(Strict):
    """The arguments of the Serve application.

    `version`: a digest of the bundle's files, so that `serve deploy` sees a change of them. `max_scorers`: 0 where each
    replica asks its own scorers. `settings`: as of `emorl serve`, those that differ from their defaults.
    """

    bundle: str
    version: str
    min_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    min_scorers: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    max_scorers: int = Field(default=0, ge=0, le=MAX_REPLICAS)
    session_affinity: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what, low, high in (
            ("replicas", self.min_replicas, self.max_replicas), ("scorers", self.min_scorers, self.max_scorers),
        ):  # fmt: skip
            if low > high:
                raise ValueError(f"min_{what} is {low}; allowed: up to max_{what}, {high}")
        if self.max_scorers and not self.min_scorers:
            raise ValueError("min_scorers is 0; allowed: from 1, where max_scorers is")
        return self

    @classmethod
    def make(
        cls, settings: Settings, replicas: tuple[int, int], scorers: tuple[int, int] = NO_SCORERS,
        *, session_affinity: bool = False,
    ) -> Self:  # fmt: skip
        """Blocking: reads every file of the bundle once. replicas, scorers: (minimum, maximum).

        Raises:
            SettingsError: a setting that has no effect behind Ray's proxy, no bundle, or scorers for a bundle that has
                none.
            BundleError: the bundle cannot be read.
        """
        if settings.bundle is None:
            raise SettingsError("bundle: none given; name a folder or a hub id", param="bundle")
        _check(settings)
        low, high = replicas
        with Snapshot.open(settings.bundle) as snapshot:
            version = _digest(asdict(snapshot.hashes()))
            if scorers != NO_SCORERS and not (settings.score and snapshot.bundle.spec.scorers):
                why = "the bundle names no scorers" if settings.score else "the setting score is off"
                raise SettingsError(f"scorers: there is nothing for them to do: {why}", param="scorers")
        folder = Path(settings.bundle)
        return cls(
            bundle=str(folder.resolve()) if folder.is_dir() else settings.bundle,
            version=version,
            min_replicas=low,
            max_replicas=high,
            min_scorers=scorers[0],
            max_scorers=scorers[1],
            session_affinity=session_affinity,
            settings=_carried(settings),
        )

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Self:
        """From an application's arguments. Raises `SettingsError`."""
        try:
            return cls(**args)
        except ValidationError as error:
            raise SettingsError(f"args of {IMPORT_PATH}: {explain(error)}") from None

    def replica_settings(self) -> Settings:
        """A replica's settings: this plan's, then the environment's, then defaults. It uses one core unless `threads`
        is set.

        Raises:
            SettingsError: a setting is invalid.
        """
        settings = load_settings(bundle=self.bundle, **self.settings)
        _check(settings)
        return settings if settings.threads != "auto" else settings.model_copy(update={"threads": 1})

    def cores(self) -> int:
        """The number of cores a cluster needs for every replica, and for one of a new version beside them."""
        scorers = self.max_scorers + 1 if self.max_scorers else 0
        return (self.max_replicas + 1 + scorers) * int(self.replica_settings().threads)

    def deployments(self) -> list[dict[str, Any]]:
        """The options of Serve's deployments, by Serve's names: the server's, and the scorers' if there are any."""
        return [self.deployment(), *([self.scorer_deployment()] if self.max_scorers else [])]

    def deployment(self) -> dict[str, Any]:
        settings = self.replica_settings()
        door = settings.slots + settings.max_queue
        return {
            "name": SERVER,
            **_scaled(self.min_replicas, self.max_replicas, settings.slots),
            **_computing(settings, settings.device),
            # More than a replica admits: a full one answers itself, with 429 and Retry-After.
            "max_ongoing_requests": door + PROBES,
            "max_queued_requests": door,  # while there is no replica yet
            "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
            "graceful_shutdown_wait_loop_s": 0.2,
            "graceful_shutdown_timeout_s": settings.drain_timeout_s + LAST_S,
            **({"request_router_config": {"request_router_class": _BY_SESSION}} if self.session_affinity else {}),
        }

    def scorer_deployment(self) -> dict[str, Any]:
        settings = self.replica_settings()
        return {
            "name": SCORERS,
            **_scaled(self.min_scorers, self.max_scorers, _CALLS),
            **_computing(settings, settings.scorer_device),
            "max_ongoing_requests": settings.score_queue,  # requests of up to 32 texts; it counts the texts itself
            "max_queued_requests": settings.score_queue,
            "graceful_shutdown_wait_loop_s": 0.2,
            "graceful_shutdown_timeout_s": settings.score_timeout_s + LAST_S,
        }

    def serve_config(self, settings: Settings) -> dict[str, Any]:
        """The config file of `serve deploy`."""
        return {
            "proxy_location": "EveryNode",
            "http_options": {"host": settings.host, "port": settings.port},
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": "/",
                    "import_path": IMPORT_PATH,
                    "args": self.model_dump(exclude_defaults=True),
                    "deployments": self.deployments(),
                }
            ],
        }


_BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def _scaled(low: int, high: int, ongoing: int) -> dict[str, Any]:
    """ongoing: requests per replica beyond which one more is started."""
    if low == high:
        return {"num_replicas": low}
    scaling = {"min_replicas": low, "initial_replicas": low, "max_replicas": high, "target_ongoing_requests": ongoing}
    return {"autoscaling_config": scaling}


def _computing(settings: Settings, device: str) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": settings.threads, "num_gpus": int(device.startswith("cuda"))},
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "max_surge_percent": 20,  # new replicas start before old ones stop, which needs a spare core
    }


def parse_range(text: str, name: str = "replicas") -> tuple[int, int]:
    """Parse `2` or `1..8` into (minimum, maximum). Raises `SettingsError`."""
    found = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text, re.ASCII)
    low, high = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
    if not 1 <= low <= high <= MAX_REPLICAS:
        raise SettingsError(
            f"{name} is {text[:40]!r}; allowed: a number from 1 to {MAX_REPLICAS}, or fewest..most such as 1..8",
            param=name,
        )
    return low, high


def _check(settings: Settings) -> None:
    for name in _OF_A_LISTENER:
        if name in settings.model_fields_set:
            raise SettingsError(f"{name} has no effect on replicas: Ray's proxy listens; leave it out", param=name)
    if settings.admin_keys:  # a route under /admin would reach one replica of many
        raise SettingsError(
            "admin_keys: replicas have no /admin routes; deploy again to change a bundle", param="admin_keys"
        )


def check_keys_stay(settings: Settings) -> None:
    """Raises `SettingsError` for keys that would have to be written to a file for other machines."""
    if settings.api_keys:
        raise SettingsError(
            "api_keys: keys are not sent to other machines; set api_keys_file, or EMORL_API_KEYS where Ray is started",
            param="api_keys",
        )


def _carried(settings: Settings) -> dict[str, Any]:
    given = settings.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True)
    for name, value in given.items():  # a replica's working directory is another
        if name in ("api_keys_file", "choices_file", "policy") and (name != "policy" or Path(value).is_file()):
            given[name] = str(Path(value).resolve())
    return given


def _digest(hashes: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
