"""What a deployment has counted, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emorl_core import __version__
from server.serving.deployment import Deployment
from server.watch.metrics import EngineReading


def counted(deployment: Deployment) -> dict[str, int]:
    """Since it was loaded. Counters do not start again with a reload, so its successor adds these to its own."""
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


def reading_of(deployment: Deployment, past: Mapping[str, int], door: Mapping[str, Any]) -> EngineReading:
    """past: what the deployments before it had `counted`; door: the fields that are not the engine's."""
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
