"""Tokens copied from the prompt: guesses that need no draft model (prompt lookup, Saxena 2023).

A reply that repeats words of the prompt or of itself often continues as they did. A step feeds the guessed tokens after
the last one and chooses a token after each of them. The tokens up to the first wrong guess are those that single-token
steps would have chosen (Leviathan et al. 2023, with a deterministic draft). Noise is keyed by position, so this holds
for sampled tokens too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MOST_TOKENS = 4  # most tokens proposed per step
# The prior for a branch that has proposed nothing yet, as measured on reflections (docs/performance.md): tokens
# verified, and how many of them were right. Counts decay with every step, since old proposals say less.
_FIRST_VERIFIED, _FIRST_ACCEPTED = 8.0, 4.8
_FORGOTTEN = 0.05


class Lookup:
    """One branch's proposals, and how many of them were right.

    It proposes the tokens that followed the first occurrence of its last two tokens; failing that, half as many after
    the first occurrence of the last one alone, which is less certain. The first occurrence is right more often than the
    latest.
    """

    def __init__(self, prompt_ids: Sequence[int], ends: Collection[int]) -> None:
        """ends: tokens that end a text; they are never proposed, since nothing follows them."""
        self._ends = ends
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # last one or two tokens -> position of the next one
        self._extend(prompt_ids)
        self._prompt = len(self._ids)
        self._verified, self._accepted = _FIRST_VERIFIED, _FIRST_ACCEPTED

    @property
    def rate(self) -> float:
        """The estimated probability that a token is right if those before it are."""
        return self._accepted / self._verified

    def worth(self, cost: float) -> int:
        """Tokens to propose if each costs this fraction of a decoded token: those expected to be right more often than
        that."""
        tokens, chance = 0, self.rate
        while tokens < MOST_TOKENS and chance > cost:
            tokens += 1
            chance *= self.rate
        return tokens

    def propose(self, reply: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to this many tokens to follow the reply, which only grows from call to call."""
        self._extend(reply[len(self._ids) - self._prompt :])
        for size, tokens in ((2, most), (1, (most + 1) // 2)):
            start = self._behind.get(tuple(self._ids[-size:]))
            if start is not None:
                found = self._ids[start : start + max(0, tokens)]
                end = next((i for i, token in enumerate(found) if token in self._ends), len(found))
                return tuple(found[:end])
        return ()

    def learn(self, proposed: int, accepted: int) -> None:
        """Record how many tokens were proposed, and how many leading ones were right."""
        self._verified += _FORGOTTEN * (_FIRST_VERIFIED - self._verified) + min(proposed, accepted + 1)
        self._accepted += _FORGOTTEN * (_FIRST_ACCEPTED - self._accepted) + accepted

    def _extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            place = len(self._ids)
            for size in (1, 2):
                if size <= place:
                    self._behind.setdefault(tuple(self._ids[place - size :]), place)
            self._ids.append(token)
