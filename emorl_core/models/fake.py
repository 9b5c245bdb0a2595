"""A deterministic model without weights, shipped with the product: the engine, the server and the command line are
tested with it in seconds.

Its hidden states are a hash of what it finds in the key-value cache, so a cache that loses, swaps or leaks an entry
changes the text. Some pieces of its vocabulary are single bytes, so text crosses half characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emorl_core.adapters import Adapter
from emorl_core.kv_cache import KVCache, Memory
from emorl_core.sampling import hash32

_PAD, _EOS, _FIRST_BYTE = 0, 1, 2
_FIRST_WORD = _FIRST_BYTE + 256
_SENTENCES = (
    "you feel it is hard to keep up with work and that hurts tired of being alone worried about your family sounds "
    "like there so much on mind want change but not sure how start hope part wonders whether things will get better 🙂"
)
_WORDS = [
    *(f" {word}" for word in _SENTENCES.split()),
    ".",
    ",",
    "?",
]
_HIDDEN = 12
_MASK32 = 2**32 - 1


class FakeTokenizer:
    """Words of a small list, and single bytes for everything else."""

    vocab_size = _FIRST_WORD + len(_WORDS)
    longest_token = max(map(len, _WORDS))

    def __init__(self) -> None:
        self._ids = {word: _FIRST_WORD + i for i, word in enumerate(_WORDS)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, word in enumerate(text.split(" ")):
            piece = f" {word}" if i else word
            known = self._ids.get(piece)
            ids += [known] if known is not None else [_FIRST_BYTE + byte for byte in piece.encode()]
        return [*ids, _EOS]

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(
            bytes([i - _FIRST_BYTE]) if _FIRST_BYTE <= i < _FIRST_WORD else _WORDS[i - _FIRST_WORD].encode()
            for i in ids
            if i >= _FIRST_BYTE
        )
        return data.decode(errors="replace")


class FakeModel:
    """A `LaneModel`. Hooks for fault injection: `on_prefill` and `on_step`, called with the prompts in the batch (as
    token tuples), may sleep or raise; prompts in `poisoned` get NaN hidden states."""

    architecture = "fake"
    vocab_size = FakeTokenizer.vocab_size
    eos_token_ids: tuple[int, ...] = (_EOS,)
    decoder_start_token_id = _PAD
    max_positions: int | None = None

    def __init__(self, *, mean_length: int = 12, step_delay_s: float = 0.0) -> None:
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.adapters: tuple[str, ...] = ()
        self.mean_length = mean_length
        self.step_delay_s = step_delay_s
        self.on_prefill: Callable[[list[tuple[int, ...]]], None] | None = None
        self.on_step: Callable[[list[tuple[int, ...]]], None] | None = None
        self.poisoned: set[tuple[int, ...]] = set()
        self._head = _uniform(torch.arange(self.vocab_size * _HIDDEN).view(self.vocab_size, _HIDDEN)).float() * 3.0
        self._head[:, 0] = 0.0  # the first hidden number speaks for the end of sequence alone
        self._head[_EOS] = 0.0
        self._head[_EOS, 0] = 1.0
        self._head[_PAD, 1] = -8.0
        self._head[_FIRST_BYTE:_FIRST_WORD, 1] = -0.6  # bytes now and then, words mostly

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        del training
        self.adapters = tuple(adapter.name for adapter in adapters)

    @property
    def compiled(self) -> bool:
        return False

    def compile_step(self) -> None:
        """Nothing here takes long enough."""

    def new_cache(self) -> KVCache:
        return KVCache(1, 1, 1, dtype=torch.float64, device=self.device)

    def prefill(self, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[Memory]:
        if self.on_prefill is not None:
            self.on_prefill([tuple(prompt) for prompt in prompts])
        # Prompt ids as keys, the lane as values: exact in float64.
        return [
            Memory(torch.tensor([prompt, [lane] * len(prompt)], dtype=torch.float64)[:, None, None, :, None])
            for prompt, lane in zip(prompts, lanes, strict=True)
        ]

    def step(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> Tensor:
        del lanes  # known from the cache, where prefill wrote them: a mixed-up row would show
        sources, source_lanes = (part[:, 0, :, 0].long() for part in cache.read_cross(0))
        prompts = [row[:length] for row, length in zip(sources, cache.source_lengths, strict=True)]
        if self.on_step is not None:
            self.on_step([tuple(row.tolist()) for row in prompts])
        if self.step_delay_s:
            time.sleep(self.step_delay_s)
        rows, new = tokens.shape
        cache.reserve(new)
        positions = torch.tensor(cache.lengths).unsqueeze(1) + torch.arange(new)
        written = tokens.to(torch.float64).view(rows, 1, new, 1).transpose(1, 2)
        cache.write(0, written, written, positions)
        total = max(cache.lengths) + new
        history = cache.read(0, total)[0][:, 0, :, 0].long()  # [M, T]
        seeds = torch.stack([_digest(row) for row in prompts]) ^ (source_lanes[:, 0] * 0x51ED27)
        hidden = torch.empty(rows, new, _HIDDEN)
        for q in range(new):
            known = torch.arange(total) <= positions[:, q : q + 1]
            digest = (hash32(history * 0x01000193 + torch.arange(total) * 0x9E3779) * known).sum(1) & _MASK32
            state = hash32(digest ^ seeds)
            hidden[:, q] = _uniform(hash32(state.unsqueeze(1) + torch.arange(_HIDDEN) * 0x3779B1))
            hidden[:, q, 0] = 2.0 + (positions[:, q] - self.mean_length) * 0.5 + hidden[:, q, 0]
            hidden[:, q, 1] = 1.0
        for row, source in enumerate(prompts):
            if tuple(source.tolist()) in self.poisoned:
                hidden[row] = float("nan")
        cache.advance(new)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self._head.t()

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self._head[token_ids]

    def parameter_bytes(self) -> dict[str, int]:
        return {"base": self._head.numel() * 4, "adapters": 0}


def _digest(ids: Tensor) -> Tensor:
    return hash32((hash32(ids + torch.arange(len(ids)) * 0x85EBCA)).sum() & _MASK32)


def _uniform(x: Tensor) -> Tensor:
    """int64 -> numbers in [-1, 1)."""
    return hash32(x).to(torch.float64) / 2**31 - 1.0
