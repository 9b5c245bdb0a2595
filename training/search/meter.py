"""How far a search is."""

from __future__ import annotations

from training.progress import Progress


class Meter:
    """Texts settled, of those that the budget could need. Points that were known already jump ahead at the end."""

    def __init__(self, evaluations: int, prompts: int, held_out: int, progress: Progress) -> None:
        self._searching = evaluations * prompts
        self._total = self._searching + 4 * held_out
        self._done = 0
        self._progress = progress

    def settled(self, texts: int) -> None:
        self._done = min(self._total, self._done + texts)
        self._progress("texts", self._done, self._total)

    def searched(self) -> None:
        self.settled(max(0, self._searching - self._done))

    def finished(self) -> None:
        self.settled(self._total - self._done)
