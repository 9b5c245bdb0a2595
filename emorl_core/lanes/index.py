"""Which adapters each lane row uses.

A *lane row* is one lane of one sequence. Lane rows are kept flat, [M, in], each with the number of its adapter: a
batch may then hold exactly the lanes that its requests give weight to, a sequence may use one lane and its neighbour
five, and prefill, decoding, sweeps and training are one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's usual name

BASE_LANE = 0  # lane 0 is the bare model; lane i > 0 uses adapter i - 1


class LaneIndex:
    """Which adapter each of M lane rows uses.

    The low-rank part is computed for all N adapters side by side, [M, N * R], and the columns of the other adapters
    are masked away before the second factor. R is small, so those spare columns cost less than sorting the rows by
    adapter; there is no loop over adapters.
    """

    def __init__(self, lanes: Tensor, adapters: int) -> None:
        """lanes: [M] int64 lane numbers (0 is base); adapters: N, the number of stacked adapters."""
        self.lanes = lanes
        self.rows = lanes.shape[0]
        self.adapters = adapters
        self.any_adapter = adapters > 0 and bool((lanes != BASE_LANE).any())
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._repeated: dict[tuple[int, bool], LaneIndex] = {}

    def mask(self, rank: int, dtype: torch.dtype) -> Tensor:
        """[M, 1, N * rank]: 1 in the columns of the row's own adapter, 0 elsewhere (base rows are all 0)."""
        key = (rank, dtype)
        if key not in self._masks:
            adapter = torch.arange(1, self.adapters + 1, device=self.lanes.device)
            own = self.lanes.unsqueeze(1) == adapter  # [M, N]
            self._masks[key] = own.to(dtype).repeat_interleave(rank, dim=1).unsqueeze(1)
        return self._masks[key]

    def repeat(self, times: int) -> LaneIndex:
        """The index of [M * times] rows in which every lane row stands `times` times in a row (its tokens).

        Without gradients on a CPU, spare rows of the base follow, up to `round_rows`."""
        if times == 1:
            return self
        # Prompts come in any length, and oneDNN compiles a product for every number of rows it meets and keeps it, half
        # a MiB each (docs/log.md).
        rounded = self.lanes.device.type == "cpu" and not torch.is_grad_enabled()
        if (times, rounded) not in self._repeated:
            lanes = self.lanes.repeat_interleave(times)
            if rounded:
                lanes = F.pad(lanes, (0, round_rows(len(lanes)) - len(lanes)), value=BASE_LANE)
            self._repeated[times, rounded] = LaneIndex(lanes, self.adapters)
        return self._repeated[times, rounded]


def round_rows(rows: int) -> int:
    """The next of a few row counts, at most a fourth (or 15 rows) above: 16, 32, ... 128, 160, ... 256, 320, ..."""
    step = max(16, 1 << max(0, (rows - 1).bit_length() - 3))
    return -(-rows // step) * step
