"""Decides which branches fit into the memory bound for keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.engine.batch import Batch
from emorl_core.engine.runner import Runner
from emorl_core.engine.sequences import Branch
from emorl_core.errors import InvalidRequest, PromptTooLong


class Room:
    """Every lane row reserves as many tokens as the longest branch may need, prompt plus `max_new_tokens`. So the
    memory of a set of branches is their number of lane rows times that, and known before they run."""

    def __init__(self, runner: Runner, most_bytes: int | None) -> None:
        """most_bytes: None for no bound."""
        self._runner = runner
        self.most_bytes = most_bytes

    def fits(self, branches: Sequence[Branch]) -> bool:
        """Whether these branches fit together. They must include all that have lane rows, except those that end once
        others have copied their rows. If they fit, the caches may grow to what they need and no further."""
        if self.most_bytes is None:
            return True
        extents = {batch: _extent(batch, branches, self._runner) for batch in self._runner.batches.values()}
        needed = {batch: batch.seats.cache.bytes_of(*extent) for batch, extent in extents.items() if extent[0]}
        total = sum(needed.values())
        if total > self.most_bytes:
            return False
        for batch, extent in extents.items():
            if batch in needed:
                batch.seats.cache.bound(*extent, self.most_bytes - total + needed[batch])
            else:
                batch.seats.cache.shrink_if_empty()
        return True

    def check(self, branch: Branch) -> None:
        """Refuse a branch that would not fit even alone.

        Raises:
            InvalidRequest, PromptTooLong: naming what it needs and the limit.
        """
        if self.most_bytes is None:
            return
        rows, (prompt, reply) = len(branch.lanes), _longest([branch])
        cache = self._runner.seats.cache
        needed = cache.bytes_of(rows, prompt, reply)
        if needed <= self.most_bytes:
            return
        lanes = f"{rows} lane" if rows == 1 else f"{rows} lanes"
        text = (
            f"the prompt has {prompt} tokens and max_new_tokens is {reply}; in {lanes} their keys and values take"
            f" {needed} bytes; allowed: up to {self.most_bytes} (kv_cache_bytes)"
        )
        if cache.bytes_of(rows, prompt, 1) > self.most_bytes:
            raise PromptTooLong(text, param="prompt")
        raise InvalidRequest(text, param="max_new_tokens")


def _extent(batch: Batch, branches: Sequence[Branch], runner: Runner) -> tuple[int, int, int]:
    """The number of lane rows of these branches, and the longest prompt and reply among them."""
    own = [branch for branch in branches if runner.batch_of(branch) is batch]
    unseated = sum(len(branch.lanes) for branch in own if branch not in batch.seats)
    return len(batch.seats) + unseated, *_longest(own)


def _longest(branches: Sequence[Branch]) -> tuple[int, int]:
    """The largest number of prompt tokens and of reply tokens that any of them may have."""
    prompt = max((len(lane.prompt_ids) for branch in branches for lane in branch.lanes), default=0)
    replies = (branch.members[0].request.sampling.max_new_tokens for branch in branches if branch.members)
    return prompt, max(replies, default=0)
