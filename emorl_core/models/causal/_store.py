"""Stand-ins for the engine's rooms: lanes (`Lane`, `LaneIndex`), cache (`Store`, `Memory`, `KVCache`) and models
(`Facts`, `Group`), with their names and methods, until both are in one house."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.lanes import round_rows

SIZE_STEP = 16  # whoever reads may round up to this; there is always room for it
Coefficients = tuple[float, ...]  # one number per stacked adapter


@dataclass(frozen=True, slots=True)
class Lane:
    """A point in adapter space and the prompt that is read there."""

    coefficients: Coefficients
    prompt_ids: tuple[int, ...]


class LaneIndex:
    """The coefficients of M lane rows over N stacked adapters."""

    def __init__(self, coefficients: Tensor) -> None:
        """coefficients: [M, N] float32."""
        self.coefficients = coefficients
        self.rows, self.adapters = coefficients.shape
        self.any_adapter = bool(coefficients.any())
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}
        self._repeated: dict[tuple[int, bool], LaneIndex] = {}

    @classmethod
    def of(cls, points: Iterable[Coefficients], adapters: int, device: torch.device) -> LaneIndex:
        rows = list(points)
        return cls(torch.tensor(rows, dtype=torch.float32, device=device).view(len(rows), adapters))

    def mask(self, rank: int, dtype: torch.dtype) -> Tensor:
        key = (rank, dtype)
        if key not in self._masks:
            self._masks[key] = self.coefficients.to(dtype).repeat_interleave(rank, dim=1).unsqueeze(1)
        return self._masks[key]

    def each(self, times: int) -> LaneIndex:
        return self if times == 1 else LaneIndex(self.coefficients.repeat_interleave(times, dim=0))

    def repeat(self, times: int) -> LaneIndex:
        if times == 1:
            return self
        rounded = self.coefficients.device.type == "cpu" and not torch.is_grad_enabled()
        if (times, rounded) not in self._repeated:
            repeated = self.coefficients.repeat_interleave(times, dim=0)
            if rounded:
                repeated = F.pad(repeated, (0, 0, 0, round_rows(len(repeated)) - len(repeated)))
            self._repeated[times, rounded] = LaneIndex(repeated)
        return self._repeated[times, rounded]


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while a model is loaded."""

    architecture: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_positions: int | None
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Group:
    """k replies to one prompt in one lane, as training feeds them."""

    lane: Lane
    replies: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What prefill leaves for one prompt and lane: keys and values [2, L, K, S, d]. Immutable."""

    kv: Tensor

    @property
    def nbytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()


class Store:
    """Keys and values of M rows. Letters: L layers, M rows in use, K key-value heads, T tokens."""

    def __init__(self, layers: int, kv_heads: int, head_size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (layers, kv_heads, head_size)
        self.dtype, self.device = dtype, device
        self.clear()

    def clear(self) -> None:
        self.lengths: list[int] = []
        self.layers = [self._zeros(4, 33) for _ in range(self._shape[0])]  # [2, rows, K, tokens, d]

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self.layers[0].shape[3]

    def add(self, kv: Tensor) -> int:
        self._grow(self.count + 1, round_size(kv.shape[3]))
        self.lengths.append(kv.shape[3])
        for i, layer in enumerate(self.layers):
            layer[:, self.count - 1, :, : kv.shape[3]] = kv[:, i]
        return self.count - 1

    def extend(self, place: int, other: Store, row: int) -> None:
        first, length = self.lengths[place], other.lengths[row]
        self._grow(0, round_size(length))
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine[:, place, :, first:length] = theirs[:, row, :, first:length]
        self.lengths[place] = length

    def reserve(self, tokens: int) -> None:
        self._grow(0, round_size(max(self.lengths, default=0) + tokens))

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        rows = torch.arange(self.count, device=self.device).unsqueeze(1)
        self.layers[layer][0][rows, :, positions] = keys.to(self.dtype)
        self.layers[layer][1][rows, :, positions] = values.to(self.dtype)

    def read(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        both = self.layers[layer][:, : self.count, :, :tokens]
        return both[0], both[1]

    def advance(self, tokens: int) -> None:
        self.lengths = [length + tokens for length in self.lengths]

    def _grow(self, rows: int, tokens: int) -> None:
        held_rows, held_tokens = self.layers[0].shape[1], self.capacity
        if rows <= held_rows and tokens <= held_tokens:
            return
        while held_rows < rows:
            held_rows *= 2
        while held_tokens < tokens:
            held_tokens = 2 * held_tokens - 1
        for i, old in enumerate(self.layers):
            self.layers[i] = self._zeros(held_rows, held_tokens)
            self.layers[i][:, : old.shape[1], :, : old.shape[3]] = old

    def _zeros(self, rows: int, tokens: int) -> Tensor:
        _, heads, size = self._shape
        with torch.inference_mode(False):
            return torch.zeros(2, rows, heads, tokens, size, dtype=self.dtype, device=self.device)


class KVCache:
    """The stores of a model: `own` keys and values, and those of an encoder's output where there is one."""

    def __init__(self, own: Store, cross: Store | None = None) -> None:
        self.own, self.cross = own, cross

    @property
    def lengths(self) -> Sequence[int]:
        return self.own.lengths

    @property
    def count(self) -> int:
        return self.own.count

    def insert(self, memory: Memory) -> int:
        return self.own.add(memory.kv)

    def reserve(self, tokens: int) -> None:
        self.own.reserve(tokens)

    def advance(self, tokens: int) -> None:
        self.own.advance(tokens)


def round_size(tokens: int) -> int:
    """The next multiple of SIZE_STEP."""
    return -(-tokens // SIZE_STEP) * SIZE_STEP
