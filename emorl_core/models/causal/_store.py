"""Keys and values of running lane rows, one length a row, as the causal family needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE_STEP = 16  # whoever reads may round up to this; there is always room for it


@dataclass(frozen=True, slots=True)
class CausalMemory:
    """What prefill leaves for one prompt and lane: by layer, keys and values [2, K, S, d]. Immutable."""

    layers: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    @property
    def length(self) -> int:
        return self.layers[0].shape[2]


class CausalCache:
    """Slots for lane rows. Letters: L layers, M rows in use, K key-value heads, T tokens."""

    def __init__(self, shapes: Sequence[tuple[int, int]], *, dtype: torch.dtype, device: torch.device) -> None:
        """shapes: key-value heads and their size, by layer."""
        self._shapes, self._dtype, self._device = tuple(shapes), dtype, device
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.lengths: list[int] = []
        self._layers = [self._zeros(shape, 4, 2 * SIZE_STEP) for shape in self._shapes]  # [2, rows, K, tokens, d]

    @property
    def nbytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self._layers)

    def insert(self, memory: CausalMemory) -> int:
        place = self._new_row()
        self._grow(0, round_size(memory.length))
        for mine, theirs in zip(self._layers, memory.layers, strict=True):
            mine[:, place, :, : memory.length] = theirs
        self.lengths[place] = memory.length
        return place

    def fork(self, source: int) -> int:
        place = self._new_row()
        self._copy(source, place)
        return place

    def remove(self, place: int, *, wipe: bool = False) -> int | None:
        last = self.count - 1
        moved = None
        if place != last:
            self._copy(last, place)
            moved = last
        self.lengths.pop()
        self.count -= 1
        if wipe:
            for layer in self._layers:
                layer[:, self.count :].zero_()
        return moved

    def reserve(self, tokens: int) -> None:
        self._grow(0, round_size(max(self.lengths, default=0) + tokens))

    def write(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """keys, values [M, q, K, d] at positions [M, q]. Lengths do not change."""
        rows = torch.arange(self.count, device=self._device).unsqueeze(1)
        self._layers[layer][0][rows, :, positions] = keys.to(self._dtype)
        self._layers[layer][1][rows, :, positions] = values.to(self._dtype)

    def read(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        both = self._layers[layer][:, : self.count, :, :tokens]
        return both[0], both[1]

    def advance(self, tokens: int) -> None:
        self.lengths = [length + tokens for length in self.lengths]

    def _new_row(self) -> int:
        self._grow(self.count + 1, 0)
        self.count += 1
        self.lengths.append(0)
        return self.count - 1

    def _copy(self, source: int, place: int) -> None:
        tokens = self.lengths[source]
        for layer in self._layers:
            layer[:, place, :, :tokens] = layer[:, source, :, :tokens]
        self.lengths[place] = tokens

    def _grow(self, rows: int, tokens: int) -> None:
        held_rows, held_tokens = self._layers[0].shape[1], self._layers[0].shape[3]
        if rows <= held_rows and tokens <= held_tokens:
            return
        while held_rows < rows:
            held_rows *= 2
        while held_tokens < tokens:
            held_tokens *= 2
        for i, (old, shape) in enumerate(zip(self._layers, self._shapes, strict=True)):
            self._layers[i] = self._zeros(shape, held_rows, held_tokens)
            self._layers[i][:, : old.shape[1], :, : old.shape[3]] = old

    def _zeros(self, shape: tuple[int, int], rows: int, tokens: int) -> Tensor:
        heads, size = shape
        with torch.inference_mode(False):
            return torch.zeros(2, rows, heads, tokens, size, dtype=self._dtype, device=self._device)


def round_size(tokens: int) -> int:
    """The next multiple of SIZE_STEP."""
    return -(-tokens // SIZE_STEP) * SIZE_STEP
