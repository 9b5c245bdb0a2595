"""Tokens copied from the prompt: a guess at what comes next, which costs no model (prompt lookup, Saxena 2023).

A reply that repeats words of the prompt or of itself goes on as they did there. A step feeds the guessed tokens behind
the last one and chooses a token behind each of them: those up to the first wrong guess are what steps of one token
would have chosen (Leviathan et al. 2023, with a draft that is certain). Noise is keyed by position, so that holds for
sampled tokens too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MOST_TOKENS = 4  # proposed at once
# Of a branch that has proposed nothing yet: tokens that were verified, and how many of them were right, as measured on
# reflections (docs/performance.md). With every step it forgets a little: what it copied long ago says less.
_FIRST_VERIFIED, _FIRST_ACCEPTED = 8.0, 4.8
_FORGOTTEN = 0.05


class Lookup:
    """What one branch may copy, and how much of what it proposed was right.

    What stands behind the first place where its last two tokens stood before; or its last one alone, which is less
    certain, so half as many. The first place is right more often than the latest.
    """

    def __init__(self, prompt_ids: Sequence[int], ends: Collection[int]) -> None:
        """ends: tokens that end a text, which are never proposed: nothing comes behind them."""
        self._ends = ends
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # last one or two tokens -> place of the next one
        self._extend(prompt_ids)
        self._prompt = len(self._ids)
        self._verified, self._accepted = _FIRST_VERIFIED, _FIRST_ACCEPTED

    @property
    def rate(self) -> float:
        """How often a token is right if those before it are, by what is known."""
        return self._accepted / self._verified

    def worth(self, cost: float) -> int:
        """Tokens to propose where each costs so much of what a token takes: those that are right more often than
        that."""
        tokens, chance = 0, self.rate
        while tokens < MOST_TOKENS and chance > cost:
            tokens += 1
            chance *= self.rate
        return tokens

    def propose(self, reply: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to so many tokens behind this reply, which only grows from call to call."""
        self._extend(reply[len(self._ids) - self._prompt :])
        for size, tokens in ((2, most), (1, (most + 1) // 2)):
            start = self._behind.get(tuple(self._ids[-size:]))
            if start is not None:
                found = self._ids[start : start + max(0, tokens)]
                end = next((i for i, token in enumerate(found) if token in self._ends), len(found))
                return tuple(found[:end])
        return ()

    def learn(self, proposed: int, accepted: int) -> None:
        """So many tokens were proposed, and the first so many were right."""
        self._verified += _FORGOTTEN * (_FIRST_VERIFIED - self._verified) + min(proposed, accepted + 1)
        self._accepted += _FORGOTTEN * (_FIRST_ACCEPTED - self._accepted) + accepted

    def _extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            place = len(self._ids)
            for size in (1, 2):
                if size <= place:
                    self._behind.setdefault(tuple(self._ids[place - size :]), place)
            self._ids.append(token)
