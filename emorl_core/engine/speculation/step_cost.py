"""Measures what an additional token in a step costs."""

from __future__ import annotations

_ROW = 0.06  # initial estimate, as a fraction of a step: on a CPU, reading the weights dominates a few rows
_NEWEST = 0.05  # the least weight of the newest step
_MOST = 2.0  # as a multiple of a step; longer delays have other causes


class StepCost:
    """The time that an additional token of a lane row adds to a step, as a fraction of the step without any.

    Only steps with the same lane rows are compared: different rows may take different times for the same number.
    """

    def __init__(self) -> None:
        self.of_row = _ROW
        self._found = 1  # the first guess counts as one
        self._plain_s: float | None = None  # of steps with these lane rows, one token each

    def changed(self) -> None:
        """Called when lane rows are added or removed."""
        self._plain_s = None

    def observe(self, further: int, seconds: float) -> None:
        """Record a step. further: tokens beyond the first, over all lane rows."""
        if not further:
            self._plain_s = seconds if self._plain_s is None else (self._plain_s + seconds) / 2
        elif self._plain_s:
            found = min(max(0.0, seconds / self._plain_s - 1), _MOST) / further
            self._found += 1
            self.of_row += max(_NEWEST, 1 / self._found) * (found - self.of_row)
