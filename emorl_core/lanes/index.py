"""Which adapters each lane row uses.

A *lane row* is one lane of one sequence. Lane rows are flat, [M, in], each with its point in adapter space. So a batch
contains exactly the lanes that its requests give weight to, one sequence may use one lane and another five, and
prefill, decoding, sweeps and training have the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

from emorl_core.lanes.lane import Coefficients

BASE_LANE = 0  # lane 0 is the bare model; lane i > 0 uses adapter i - 1


class LaneIndex:
    """The coefficients of M lane rows over N stacked adapters.

    The low-rank part is computed for all N adapters side by side, [M, N * R], and multiplied by the coefficients before
    the second factor, which zeroes the adapters that a row does not use. R is small, so the unused columns cost less
    than sorting the rows by adapter; there is no loop over adapters.
    """

    def __init__(self, coefficients: Tensor) -> None:
        """coefficients: [M, N] float32."""
        self.coefficients = coefficients
        self.rows, self.adapters = coefficients.shape
        self.any_adapter = bool(coefficients.any())
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._repeated: dict[tuple[int, bool], LaneIndex] = {}
        self._used: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, points: Sequence[Coefficients], adapters: int, device: torch.device) -> LaneIndex:
        """One row per point."""
        return cls(torch.tensor(points, dtype=torch.float32, device=device).view(len(points), adapters))

    def mask(self, rank: int, dtype: torch.dtype) -> Tensor:
        """[M, 1, N * rank]: each row's coefficient in the columns of each adapter (base rows are all 0)."""
        key = (rank, dtype)
        if key not in self._masks:
            self._masks[key] = self.coefficients.to(dtype).repeat_interleave(rank, dim=1).unsqueeze(1)
        return self._masks[key]

    def used(self) -> tuple[Tensor, Tensor]:
        """Which adapters each row uses, and how much of each: [M, K] numbers from 0, [M, K] coefficients. K is 1 while
        no row mixes adapters, else N: few values, since a compiled step or a graph is made for each."""
        if self._used is None:
            mixed = self.adapters > 1 and bool(((self.coefficients != 0).sum(dim=1) > 1).any())
            if mixed or not self.adapters:
                numbers = torch.arange(max(1, self.adapters), device=self.coefficients.device).expand(self.rows, -1)
                own = self.coefficients if self.adapters else self.coefficients.new_zeros(self.rows, 1)
                self._used = numbers, own
            else:
                numbers = (self.coefficients != 0).long().argmax(dim=1, keepdim=True)
                self._used = numbers, self.coefficients.gather(1, numbers)
        return self._used

    def each(self, times: int) -> LaneIndex:
        """The index of [M * times] rows in which every row stands `times` times in a row."""
        return self if times == 1 else LaneIndex(self.coefficients.repeat_interleave(times, dim=0))

    def repeat(self, times: int) -> LaneIndex:
        """Like `each`, for the tokens of lane rows: `with_spare` rows, and the result is kept."""
        if times == 1:
            return self
        key = (times, torch.is_grad_enabled())
        if key not in self._repeated:
            self._repeated[key] = self.each(times).with_spare()
        return self._repeated[key]

    def with_spare(self) -> LaneIndex:
        """Without gradients on a CPU, these rows followed by spare ones of the base, up to `round_rows`."""
        # Prompts have any length, and oneDNN compiles and caches a kernel for every number of rows, half a MiB each
        # (docs/log.md).
        if self.coefficients.device.type != "cpu" or torch.is_grad_enabled() or self.rows == round_rows(self.rows):
            return self
        return LaneIndex(F.pad(self.coefficients, (0, 0, 0, round_rows(self.rows) - self.rows)))


def round_rows(rows: int) -> int:
    """The next of a few row counts, at most a fourth (or 15 rows) above: 16, 32, ... 128, 160, ... 256, 320, ..."""
    step = max(16, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step
