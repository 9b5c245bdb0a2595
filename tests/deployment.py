"""What the tests of docker/ share: reading its files, and what the code says that they must agree with."""

from __future__ import annotations

import re
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from emorl_core.fake import fake_ensemble
from server.app import create_app
from server.serving.worker import Worker
from server.settings import ENV_PREFIX, Settings
from server.watch.metrics import EngineReading, Metrics

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", DOCKER / "Dockerfile.cuda"]
DASHBOARD = DOCKER / "grafana" / "dashboards" / "emorl.json"
ALERTS = DOCKER / "prometheus" / "alerts.yml"
KUBERNETES = DOCKER / "kubernetes"
ENGINE_STOP_S = signature(Worker.stop).parameters["timeout_s"].default


def longest_end_s(settings: Settings) -> float:
    """From SIGTERM to the end of the process, at the latest."""
    asked = settings.drain_delay_s + settings.drain_timeout_s + settings.last_bytes_s + settings.log_flush_s
    return asked + ENGINE_STOP_S


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def paths() -> frozenset[str]:
    """Every path that the server documents."""
    return frozenset(create_app(Settings(), fake_ensemble()).openapi()["paths"])


def settings_of(variables: dict[str, Any]) -> dict[str, str]:
    """The settings among environment variables; one called EMORL_… that is none fails."""
    found = {
        name.removeprefix(ENV_PREFIX).lower(): value for name, value in variables.items() if name.startswith(ENV_PREFIX)
    }
    assert set(found) <= set(Settings.model_fields), set(found) - set(Settings.model_fields)
    return found


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments on one line), comments left out."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def final_stage(dockerfile: Path) -> list[tuple[str, str]]:
    steps = instructions(dockerfile)
    last = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    return steps[last:]


def environment(dockerfile: Path) -> dict[str, str]:
    pairs = " ".join(value for name, value in final_stage(dockerfile) if name == "ENV").split()
    return dict(pair.split("=", 1) for pair in pairs)


def exported() -> set[str]:
    """Every name under which a sample can be asked for, and of each histogram the name that is documented."""
    metrics = Metrics(lambda: EngineReading(info={"version": "1"}, kv_cache_limit=1), ["/generate"])
    metrics.know_objectives(["reflection"])
    names: set[str] = set()
    for family in metrics.registry.collect():
        names |= {sample.name for sample in family.samples if not sample.name.endswith("_created")}
    return names


def families() -> set[str]:
    return {re.sub("_(bucket|sum|count)$", "", name) for name in exported()}
