"""What fits into the bytes that the keys and values of running branches may take."""

from __future__ import annotations

from collections.abc import Sequence

from emorl_core.engine.seats import Seats
from emorl_core.engine.sequences import Branch
from emorl_core.errors import InvalidRequest, PromptTooLong


class Room:
    """Every lane row has room for as many tokens as the longest may get: prompt and `max_new_tokens`. So what branches
    take is all their lane rows times that, and it is known before they run."""

    def __init__(self, seats: Seats, most_bytes: int | None) -> None:
        """most_bytes: None for no bound."""
        self._seats, self._cache = seats, seats.cache
        self.most_bytes = most_bytes

    def fits(self, branches: Sequence[Branch]) -> bool:
        """Whether these can run together; all that have lane rows are among them, or end when others have copied those.
        If so, the cache grows to what they need and no further."""
        if self.most_bytes is None:
            return True
        unseated = sum(len(branch.lanes) for branch in branches if branch not in self._seats)
        extent = (len(self._seats) + unseated, *_longest(branches))
        if self._cache.bytes_of(*extent) > self.most_bytes:
            return False
        self._cache.bound(*extent, self.most_bytes)
        return True

    def check(self, branch: Branch) -> None:
        """Refuse a branch that would not fit if it were alone.

        Raises:
            InvalidRequest, PromptTooLong: naming what it needs and the limit.
        """
        if self.most_bytes is None:
            return
        rows, (prompt, reply) = len(branch.lanes), _longest([branch])
        needed = self._cache.bytes_of(rows, prompt, reply)
        if needed <= self.most_bytes:
            return
        lanes = f"{rows} lane" if rows == 1 else f"{rows} lanes"
        text = (
            f"the prompt has {prompt} tokens and max_new_tokens is {reply}; in {lanes} their keys and values take"
            f" {needed} bytes; allowed: up to {self.most_bytes} (kv_cache_bytes)"
        )
        if self._cache.bytes_of(rows, prompt, 1) > self.most_bytes:
            raise PromptTooLong(text, param="prompt")
        raise InvalidRequest(text, param="max_new_tokens")


def _longest(branches: Sequence[Branch]) -> tuple[int, int]:
    """The most prompt tokens and reply tokens that any of them may get."""
    prompt = max((len(lane.prompt_ids) for branch in branches for lane in branch.lanes), default=0)
    replies = (branch.members[0].request.sampling.max_new_tokens for branch in branches if branch.members)
    return prompt, max(replies, default=0)
