"""What one more token in a step costs, by measuring."""

from __future__ import annotations

_ROW = 0.06  # of a step, before anything is known: on a CPU, reading the weights takes longer than a few rows
_NEWEST = 0.05  # how much the newest step counts, at least
_MOST = 2.0  # steps; what took longer than that was not the tokens


class StepCost:
    """What a lane row's further token adds to a step, as a part of what the step takes without any.

    Steps are compared with others of the same lane rows alone: some take longer than others for the same number.
    """

    def __init__(self) -> None:
        self.of_row = _ROW
        self._found = 1  # the first guess counts as one
        self._plain_s: float | None = None  # that steps of these lane rows take, one token each

    def changed(self) -> None:
        """Lane rows come or leave."""
        self._plain_s = None

    def observe(self, further: int, seconds: float) -> None:
        """A step has ended. further: tokens beyond the first, over all lane rows."""
        if not further:
            self._plain_s = seconds if self._plain_s is None else (self._plain_s + seconds) / 2
        elif self._plain_s:
            found = min(max(0.0, seconds / self._plain_s - 1), _MOST) / further
            self._found += 1
            self.of_row += max(_NEWEST, 1 / self._found) * (found - self.of_row)
