"""A deterministic model without weights, part of the product: the engine, the server and the command line are tested
with it in seconds.

Its hidden states are a hash of the key-value cache's contents, so a cache that loses, swaps or leaks an entry changes
the text. Some pieces of its vocabulary are single bytes, so characters are split over tokens.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import Facts, Passage, Piece
from emorl_core.sampling import hash32
from emorl_core.text.chat import Message
from emorl_core.text.spelling import Spelling
from emorl_core.types import Quantize

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

    def encode_prompt(self, prompt: str, before: str = "", after: str = "") -> list[int]:
        return self.encode(before + prompt + after)

    def encode_reply(self, text: str) -> list[int]:
        return self.encode(text)[:-1]

    def count(self, text: str) -> int:
        return len(self.encode_reply(text))

    def chat(self, system: str | None) -> FakeChat:
        return FakeChat(self, system)

    def decode(self, ids: Sequence[int]) -> str:
        data = b"".join(
            bytes([i - _FIRST_BYTE]) if _FIRST_BYTE <= i < _FIRST_WORD else _WORDS[i - _FIRST_WORD].encode()
            for i in ids
            if i >= _FIRST_BYTE
        )
        return data.decode(errors="replace")

    def spell(self, token_id: int, *, first: bool) -> Spelling:
        del first  # its texts keep their first space
        if token_id < _FIRST_BYTE:
            return Spelling.of_name("</s>" if token_id == _EOS else "<pad>")
        if token_id < _FIRST_WORD:
            return Spelling.of_bytes(bytes([token_id - _FIRST_BYTE]))
        return Spelling.of_bytes(_WORDS[token_id - _FIRST_WORD].encode())


class FakeChat:
    """A `Chat` that writes every role's name before what it says."""

    def __init__(self, tokenizer: FakeTokenizer, system: str | None) -> None:
        self._tokenizer, self._system = tokenizer, system

    def encode(self, messages: Sequence[Message], *, field: str = "messages") -> list[int]:
        del field  # it takes all messages
        if messages[0].role != "system" and self._system is not None:
            messages = [Message("system", self._system), *messages]
        return self._tokenizer.encode(" ".join(f"{message.role}: {message.text}" for message in messages))

    def header(self) -> list[int]:
        return []


class FakeModel:
    """A `LaneModel`, with an encoder or without. Hooks for fault injection: `on_prefill` and `on_step`, called with the
    prompts in the batch (as token tuples), may sleep or raise; prompts in `poisoned` get NaN hidden states."""

    def __init__(self, *, encoder: bool = True, mean_length: int = 12, step_delay_s: float = 0.0) -> None:
        self.facts = Facts(
            architecture="fake",
            vocab_size=FakeTokenizer.vocab_size,
            eos_token_ids=(_EOS,),
            max_positions=None,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        self.encoder = encoder
        self.compiled = False
        self.adapters: tuple[str, ...] = ()
        self.mean_length = mean_length
        self.step_delay_s = step_delay_s
        self.on_prefill: Callable[[list[tuple[int, ...]]], None] | None = None
        self.on_step: Callable[[list[tuple[int, ...]]], None] | None = None
        self.poisoned: set[tuple[int, ...]] = set()
        vocabulary = self.facts.vocab_size
        self._head = _uniform(torch.arange(vocabulary * _HIDDEN).view(vocabulary, _HIDDEN)).float() * 3.0
        self._head[:, 0] = 0.0  # the first hidden dimension is for the end of sequence alone
        self._head[_EOS] = 0.0
        self._head[_EOS, 0] = 1.0
        self._head[_PAD, 1] = -8.0
        self._head[_FIRST_BYTE:_FIRST_WORD, 1] = -0.6  # bytes now and then, words mostly

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        return iter(())

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        del training
        self.adapters = tuple(adapter.name for adapter in adapters)

    def quantize(self, how: Quantize) -> None:
        """It has no matrices."""

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[FakeModel]:
        """There is nothing to compile; the result is only called so."""
        del ragged
        other = copy.copy(self)
        other.compiled = True
        return Compilation([], folder, lambda _: other)

    # An entry of a store: keys hold the token id, values the lane's code; exact in float64.

    def new_cache(self) -> KVCache:
        own, cross = (Store(1, 1, 2, dtype=torch.float64, device=self.facts.device) for _ in range(2))
        return KVCache(own, cross if self.encoder else None)

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:
        if self.encoder:
            return Passage((lane,), len(lane.prompt_ids))
        return Passage(tuple((token, lane.coefficients) for token in (*lane.prompt_ids, *reply)[:-1]))

    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        read = [_read(piece.passage) for piece in pieces]
        if self.on_prefill is not None:
            # The last token of a prompt is its end of sequence, which a decoder reads when the prompt is through.
            self.on_prefill([tuple(_prompt([token for token, _ in tokens])) for tokens in read])
        width = [piece.passage.width for piece in pieces]
        return [
            _memory(tokens[piece.start * each : piece.stop * each])
            for tokens, piece, each in zip(read, pieces, width, strict=True)
        ]

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:
        return (_PAD, *reply) if self.encoder else (*lane.prompt_ids, *reply)[-1:]

    def acting(self, lane: Lane) -> Coefficients:
        return lane.coefficients

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        return (_PAD,) if self.encoder else prompt_ids

    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        new = tokens.shape[1]
        return self.ragged_step(tokens.flatten(), [new] * cache.count, lanes.each(new), cache).view(*tokens.shape, -1)

    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        cache.reserve_each(counts)
        places, at = (torch.tensor(each) for each in cache.own.ahead(counts))
        codes = torch.tensor([_code(tuple(row)) for row in lanes.coefficients.tolist()], dtype=torch.float64)
        keys, values = (each.view(-1, 1, 1, 1).expand(-1, 1, 1, 2) for each in (tokens.double(), codes))
        cache.own.write(0, keys, values, at.unsqueeze(1), places)
        prompts, read = self._prompts(cache, counts)
        if self.on_step is not None:
            self.on_step([tuple(ids.tolist()) for ids, _ in prompts])
        if self.step_delay_s:
            time.sleep(self.step_delay_s)
        own_keys, own_values = (part[:, 0, :, 0].long() for part in cache.own.read(0, int(at.max()) + 1))
        span = torch.arange(own_keys.shape[1])
        codes_read = torch.stack([codes[0] for _, codes in prompts]).unsqueeze(1)
        # A row's hidden state depends on every entry of its prompt and reply in the cache, and on the lane of each.
        history = hash32(own_keys * 0x01000193 + span * 0x9E3779 + (own_values - codes_read) * 0x51ED27)
        seeds = torch.stack([_digest(ids, codes - codes[0]) ^ (codes[0] * 0x51ED27) for ids, codes in prompts])
        known = (span >= read[places].unsqueeze(1)) & (span <= at.unsqueeze(1))
        state = hash32(((history[places] * known).sum(1) & _MASK32) ^ seeds[places])
        hidden = _uniform(hash32(state.unsqueeze(1) + torch.arange(_HIDDEN) * 0x3779B1)).float()
        hidden[:, 0] = 2.0 + (at - read[places] - self.mean_length) * 0.5 + hidden[:, 0]
        hidden[:, 1] = 1.0
        for row, (prompt, _) in enumerate(prompts):
            if tuple(prompt.tolist()) in self.poisoned:
                hidden[places == row] = float("nan")
        cache.advance_each(counts)
        return hidden

    def _prompts(self, cache: KVCache, counts: Sequence[int]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Each row's prompt and the lanes it was read in, as the cache has them, and the entries of `own` before the
        one that the first token of the reply is chosen from."""
        if cache.cross is not None:
            ids, codes = (part[:, 0, :, 0].long() for part in cache.cross.read(0))
            found = [(row[:n], code[:n]) for row, code, n in zip(ids, codes, cache.cross.lengths, strict=True)]
            return found, torch.zeros(cache.count, dtype=torch.int64)
        held = [n + new for n, new in zip(cache.lengths, counts, strict=True)]
        ids, codes = (part[:, 0, :, 0].long() for part in cache.own.read(0, max(held)))
        prompts = [_prompt(row[:n].tolist()) for row, n in zip(ids, held, strict=True)]
        found = [(row[: len(own)], code[: len(own)]) for row, code, own in zip(ids, codes, prompts, strict=True)]
        return found, torch.tensor([len(own) - 1 for own in prompts])

    def head(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self._head.t()

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self._head[token_ids]

    def parameter_bytes(self) -> dict[str, int]:
        return {"base": self._head.numel() * 4, "adapters": 0}


def _code(coefficients: Coefficients) -> int:
    """The lane's number; a mix of adapters has a number of its own."""
    used = [i for i, value in enumerate(coefficients) if value]
    if not used:
        return 0
    return used[0] + 1 if len(used) == 1 and coefficients[used[0]] == 1.0 else hash(coefficients) & _MASK32


def _read(passage: Passage) -> list[tuple[int, Coefficients]]:
    """What a passage has prefill read: each token and where."""
    labels: list[Any] = list(passage.labels)
    if labels and isinstance(labels[0], Lane):
        return [(token, labels[0].coefficients) for token in labels[0].prompt_ids]
    return labels


def _memory(tokens: Sequence[tuple[int, Coefficients]]) -> Memory:
    keys, values = ([token for token, _ in tokens], [_code(point) for _, point in tokens])
    both = torch.tensor([keys, values], dtype=torch.float64)[:, None, None, :, None]
    return Memory(both.expand(-1, -1, -1, -1, 2).clone())


def _prompt(tokens: Sequence[int]) -> Sequence[int]:
    """What a row has read up to the last end of sequence: no reply has one before its own end."""
    return tokens[: len(tokens) - tokens[::-1].index(_EOS)] if _EOS in tokens else [*tokens, _EOS]


def _digest(ids: Tensor, codes: Tensor) -> Tensor:
    span = torch.arange(len(ids))
    return hash32((hash32(ids + span * 0x85EBCA + codes * 0x51ED27)).sum() & _MASK32)


def _uniform(x: Tensor) -> Tensor:
    """int64 -> numbers in [-1, 1)."""
    return hash32(x).to(torch.float64) / 2**31 - 1.0
