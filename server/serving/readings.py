"""A deployment's counters, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emorl_core import __version__
from server.door.admission import Admission
from server.door.connections import Connections
from server.serving.deployment import Deployment
from server.watch.log_queue import dropped_lines
from server.watch.metrics import EngineReading


def counted(deployment: Deployment) -> dict[str, int]:
    """Counts since loading. Counters must not reset on a reload, so the next deployment adds these to its own."""
    worker = deployment.worker
    return {
        "prefill_hits": worker.stats.prefill_hits,
        "prefill_misses": worker.stats.prefill_misses,
        "prefill_tokens_found": worker.stats.prefill_tokens_found,
        "prefill_tokens_computed": worker.stats.prefill_tokens_computed,
        "proposed_tokens": worker.stats.proposed_tokens,
        "accepted_tokens": worker.stats.accepted_tokens,
        "restarts": worker.restarts,
        "faults": worker.stats.faults,
    }


def reading_of(
    deployment: Deployment | None, past: Mapping[str, int], admission: Admission, connections: Connections | None
) -> EngineReading:
    """deployment: None before there is one; past: the sum of earlier deployments' `counted`."""
    door: dict[str, Any] = {
        "permits": admission.in_use,
        "connections": 0 if connections is None else len(connections),
        "connections_cut": {} if connections is None else connections.cut,
        "log_lines_dropped": dropped_lines(),
    }
    if deployment is None:
        return EngineReading(**door)
    worker, ensemble, stats = deployment.worker, deployment.ensemble, deployment.worker.stats
    counts: dict[str, Any] = {name: count + past.get(name, 0) for name, count in counted(deployment).items()}
    return EngineReading(
        running=stats.running,
        waiting=max(0, worker.pending - stats.running),
        lanes_running=stats.lanes_running,
        slots=stats.slots,
        slots_used=stats.slots_used,
        kv_cache_bytes=stats.kv_cache_bytes,
        kv_cache_limit=stats.kv_cache_limit,
        compiled=stats.compiled,
        info={"version": __version__, "bundle": ensemble.name, "device": ensemble.device, "dtype": ensemble.dtype},
        **counts,
        **door,
    )
