"""Token ids -> text that can be shown now. Holds back incomplete characters and anything that may become a stop
string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "�"  # the decoder's output for an incomplete character

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Incremental decoding of one sequence.

    `push` and `finish` return the text that became final; the returned pieces concatenate to `text`. A stop string and
    the text after it are never returned. Decoding works on a window (the tokens since the last clean boundary), so the
    cost per token does not grow with the length of the text.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window = 0  # first id of the window; ids from here to _read are already decoded and serve as context
        self._read = 0
        self._held = ""  # decoded, but possibly the beginning of a stop string
        self.text = ""
        self.stopped = False  # a stop string was found

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that became final (often empty)."""
        self._ids.append(token_id)
        known = self._decode(self._ids[self._window : self._read])
        whole = self._decode(self._ids[self._window :])
        if len(whole) <= len(known) or whole.endswith(HALF):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._release(whole[len(known) :])

    def finish(self) -> str:
        """Called after the last token; returns the text held back."""
        if self.stopped:
            return ""
        known = self._decode(self._ids[self._window : self._read])
        rest = self._decode(self._ids[self._window :])[len(known) :]
        self._window = self._read = len(self._ids)
        delta = self._release(rest)
        if not self.stopped:
            delta += self._held
            self.text += self._held
            self._held = ""
        return delta

    def fork(self) -> Detokenizer:
        """An independent copy, for a branch that continues with another token."""
        other = self.fresh()
        other._ids = list(self._ids)
        other._window, other._read, other._held = self._window, self._read, self._held
        other.text, other.stopped = self.text, self.stopped
        return other

    def fresh(self) -> Detokenizer:
        """A new detokenizer for another sequence."""
        return Detokenizer(self._decode, self._stop)

    def _release(self, new: str) -> str:
        pending = self._held + new
        found = [at for at in (pending.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            delta, self._held = pending[: min(found)], ""
        else:
            keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
            delta, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += delta
        return delta


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
