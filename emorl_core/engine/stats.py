"""Counters and gauges of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Plain numbers for metrics; a snapshot."""

    waiting: int  # requests
    running: int  # requests
    slots: int  # branches that can run at once
    slots_used: int
    lanes_running: int  # distinct lanes
    batch_rows: int  # requests that got a token in the last step
    lane_row_steps: int  # lane rows computed since the start, one token each
    proposed_tokens: int  # copied from prompts and replies, to be verified
    accepted_tokens: int  # of those
    prefill_hits: int  # prompts found whole in the cache, per lane
    prefill_misses: int
    prefill_tokens_found: int  # prompt tokens found in the cache or read for several lanes at once, per lane
    prefill_tokens_computed: int
    prefill_cache_bytes: int
    kv_cache_bytes: int  # held for running branches, capacity included
    kv_cache_limit: int | None  # bound on them in bytes; None: no bound
    compiled: bool  # whether new requests use the compiled step
    faults: int  # prefills and steps that failed and were retried individually

    @classmethod
    def none(cls) -> EngineStats:
        """The stats of an engine that does not exist yet."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kv_cache_limit=None, compiled=False, faults=0)
