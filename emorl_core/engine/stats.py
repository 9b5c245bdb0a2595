"""What an engine tells about itself."""

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
    batch_rows: int  # requests that the last step chose a token for
    lane_row_steps: int  # lane rows computed since the start, one token each
    proposed_tokens: int  # copied from prompts and replies, to be verified
    accepted_tokens: int  # of those
    prefill_hits: int  # lanes of prompts that were known to their ends
    prefill_misses: int
    prefill_tokens_found: int  # tokens of lanes of prompts that were known, or read for several lanes at once
    prefill_tokens_computed: int
    prefill_cache_bytes: int
    kv_cache_bytes: int  # of running branches, capacity included
    kv_cache_limit: int | None  # bytes that they may take; None: no bound
    compiled: bool  # the step of requests that begin now
    faults: int  # prefills and steps that failed and were retried individually

    @classmethod
    def none(cls) -> EngineStats:
        """Of an engine that is not there yet."""
        return cls(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kv_cache_limit=None, compiled=False, faults=0)
