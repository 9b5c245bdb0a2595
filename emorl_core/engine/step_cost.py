"""What one more row in a step costs, by measuring."""

from __future__ import annotations

_ROW = 0.06  # of a step without rows, before anything is known: on a CPU, reading the weights takes longer than a row
_DOUBT = 0.5  # how much steps must differ in rows, as a variance, until what they took counts more than that
_FORGOTTEN = 0.02  # of what is known, with every step
_ODD = 4.0  # times as long as expected, or as short: something else took part


class StepCost:
    """Seconds that a step takes, as a line over its number of rows."""

    def __init__(self) -> None:
        self._steps = 0
        self._rows = self._seconds = 0.0  # means
        self._variance = self._covariance = 0.0  # of rows; with seconds

    def observe(self, rows: int, seconds: float) -> None:
        """A step has ended."""
        if self._steps > 1 / _FORGOTTEN:
            expected = self._expected(rows)
            seconds = min(max(seconds, expected / _ODD), expected * _ODD)
        self._steps += 1
        share = max(_FORGOTTEN, 1 / self._steps)
        more_rows, more_seconds = rows - self._rows, seconds - self._seconds
        self._rows += share * more_rows
        self._seconds += share * more_seconds
        self._variance = (1 - share) * (self._variance + share * more_rows**2)
        self._covariance = (1 - share) * (self._covariance + share * more_rows * more_seconds)

    def of_row(self, rows: int) -> float:
        """What one more row adds to a step of so many, as a part of what that takes."""
        if not self._steps:
            return _ROW / (1 + _ROW * rows)
        return self._slope() / self._expected(rows)

    def _slope(self) -> float:
        assumed = _ROW * self._seconds / (1 + _ROW * self._rows)
        return max(0.0, (self._covariance + _DOUBT * assumed) / (self._variance + _DOUBT))

    def _expected(self, rows: int) -> float:
        return max(self._seconds + self._slope() * (rows - self._rows), self._seconds / _ODD)
