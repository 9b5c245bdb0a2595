"""Layers split over the processes of a group (Shoeybi et al. 2019, arXiv 1909.08053).

Split by columns, a process has some of the outputs: part of the rows of W and B, and all of A. Split by rows, it has
some of the inputs: part of the columns of W and A, and all of B; its product, low-rank part included, is a summand of
the layer's, so one all-reduce completes both.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.parallel.group import ProcessGroup


class ColumnLinear(LaneLinear):
    """A column-parallel layer: this process's share of every projection's outputs."""

    def __init__(self, weight: Tensor, outs: Sequence[int], bias: Tensor | None, group: ProcessGroup) -> None:
        """weight [sum of outs, in], outs and bias: of this process."""
        super().__init__(weight, outs=outs, bias=bias)
        self._group = group

    def features(self, projection: int) -> tuple[int, int]:
        return self.in_features, self.outs[projection] * self._group.size

    def own(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b.chunk(self._group.size, dim=0)[self._group.rank]


class RowLinear(LaneLinear):
    """A row-parallel layer: this process's share of the inputs; the result is the whole layer's."""

    def __init__(self, weight: Tensor, bias: Tensor | None, group: ProcessGroup) -> None:
        """weight [out, in]: of this process; bias [out]: added once."""
        super().__init__(weight, bias=bias if group.leads else None)
        self._group = group

    def features(self, projection: int) -> tuple[int, int]:
        return self.in_features * self._group.size, self.outs[projection]

    def own(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.chunk(self._group.size, dim=1)[self._group.rank], b

    def side_by_side(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        return self._group.sum(super().side_by_side(x, lanes))


class VocabularyMatrix(FrozenMatrix):
    """This process's share of the rows of an embedding or a head, one row per token. Shares are equally large, except
    the last ones, which may be smaller or empty."""

    def __init__(self, weight: Tensor, vocabulary: int, group: ProcessGroup) -> None:
        """weight [share, D]; vocabulary: V."""
        super().__init__(weight)
        self._group, self.vocabulary = group, vocabulary
        self._most = -(-vocabulary // group.size)
        self._first = self._most * group.rank

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of these tokens [...] -> [..., D], from all processes."""
        local = ids - self._first
        here = (local >= 0) & (local < self.shape[0])
        if not self.shape[0]:
            return self._group.sum(ids.new_zeros((*ids.shape, self.shape[1]), dtype=self.dtype))
        found = super().rows(local.clamp(0, self.shape[0] - 1))
        return self._group.sum(found * here.unsqueeze(-1))

    def joined(self, logits: Tensor) -> Tensor:
        """[B, share] of every process -> [B, V]."""
        padded = F.pad(logits, (0, self._most - logits.shape[1]))
        return self._group.joined(padded, dim=1)[:, : self.vocabulary].contiguous()
