"""Tokens copied from the prompt: a guess at what comes next, which costs no model (prompt lookup, Saxena 2023).

A reply that repeats words of the prompt or of itself goes on as they did there. A step feeds the guessed tokens behind
the last one and chooses a token behind each of them: those up to the first wrong guess are what steps of one token
would have chosen (Leviathan et al. 2023, with a draft that is certain). Noise is keyed by position, so that holds for
sampled tokens too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

MOST_TOKENS = 4  # proposed at once
# Of a branch that has proposed nothing yet, and how fast it forgets: what it copied long ago says little.
_FIRST_ACCEPTED, _FIRST_PROPOSED = 1.0, 2.0
_KEPT = 0.95


class Lookup:
    """What one branch may copy, and how much of what it proposed was right.

    The tokens behind the first place where its last two stood before; behind the last one alone a single token, which
    is right about half of the time.
    """

    def __init__(self, prompt_ids: Sequence[int], ends: Collection[int]) -> None:
        """ends: tokens that end a text, which are never proposed: nothing comes behind them."""
        self._ends = ends
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # last one or two tokens -> place of the next one
        self._extend(prompt_ids)
        self._prompt = len(self._ids)
        self._accepted, self._proposed = _FIRST_ACCEPTED, _FIRST_PROPOSED

    @property
    def rate(self) -> float:
        """Of proposed tokens, how many are accepted, by what is known."""
        return self._accepted / self._proposed

    def propose(self, reply: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to so many tokens behind this reply, which only grows from call to call."""
        self._extend(reply[len(self._ids) - self._prompt :])
        for size, tokens in ((2, most), (1, min(most, 1))):
            start = self._behind.get(tuple(self._ids[-size:]))
            if start is not None:
                found = self._ids[start : start + tokens]
                end = next((i for i, token in enumerate(found) if token in self._ends), len(found))
                return tuple(found[:end])
        return ()

    def learn(self, proposed: int, accepted: int) -> None:
        """So many tokens were proposed, and the first so many were right."""
        self._accepted = _KEPT * self._accepted + (1 - _KEPT) * _FIRST_ACCEPTED + accepted
        self._proposed = _KEPT * self._proposed + (1 - _KEPT) * _FIRST_PROPOSED + proposed

    def _extend(self, ids: Sequence[int]) -> None:
        for token in ids:
            place = len(self._ids)
            for size in (1, 2):
                if size <= place:
                    self._behind.setdefault(tuple(self._ids[place - size :]), place)
            self._ids.append(token)
