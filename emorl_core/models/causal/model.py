"""A decoder-only Hugging Face model whose rows run in lanes, over the cache.

Letters: M lane rows, q new tokens per row, D hidden, L layers, K key-value heads, S prompt tokens, d head size, N
adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store
from emorl_core.errors import AdapterError, PromptTooLong, UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.causal import replies
from emorl_core.models.causal.attention import CachedPass, Layers, Pass, WholePass
from emorl_core.models.causal.body import Body
from emorl_core.models.causal.head import Head
from emorl_core.models.causal.prompts import prefill
from emorl_core.models.causal.reading import Reading, read, read_beside
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import Facts, Group, Passage, Piece
from emorl_core.models.stacking import stack_adapters
from emorl_core.types import Quantize


class FastStep(Protocol):
    """`CausalModel.step` for one new token per row, compiled."""

    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1] -> last hidden states [M, D], valid until the next call."""

    def ragged(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor | None:
        """As `CausalModel.ragged_step`; None: not supported."""


Compile = Callable[["CausalModel", Path, bool], Compilation["CausalModel"]]


class CausalModel(nn.Module):
    """See `TrainableModel` for the methods that the engine and training use."""

    lanes_apart = True

    def __init__(
        self, body: Body, head: Head, facts: Facts, *, head_name: str, compilations: Mapping[str, Compile]
    ) -> None:
        """head_name: the head's name in checkpoints; compilations: device type -> the function that compiles `step` for
        it."""
        super().__init__()
        self.body, self.decoder = body, body.decoder
        self.facts = facts
        self.adapters: tuple[str, ...] = ()
        self._head, self._head_name = head, head_name
        self._embedding = body.share(head.matrix)
        self._compilations = compilations
        self._fast: FastStep | None = None
        self.cache_shape = (0, 0, 0)  # L, K, d; of this process if there are several
        self._invocations: tuple[tuple[int, ...] | None, ...] = ()
        self._kept: replies.KeptPrompts | None = None

    # -- adapters ------------------------------------------------------------------------------------------------

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        for names, layer in self.body.linears():
            if self.body.routed.isdisjoint(names):
                yield names, layer

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        for adapter in adapters:
            for module in adapter.modules:
                self._refuse_module(adapter.name, module)
        self._fast = None
        stack_adapters(self.linears(), adapters, training=training)
        self.adapters = tuple(adapter.name for adapter in adapters)
        self._invocations = tuple(adapter.invocation_tokens for adapter in adapters)

    def _refuse_module(self, adapter: str, module: str) -> None:
        reason = None
        if module == self._head_name:
            reason = "the head; mixing hidden states needs one head shared by all objectives"
        elif module in self.body.routed:
            reason = f"{module!r}, which sees a part of the tokens only (routed experts)"
        elif ".experts" in module:
            reason = f"{module!r}, one of the experts, which are not linear layers that lanes can share"
        if reason is not None:
            raise AdapterError(
                f"adapter {adapter!r}: it adapts {reason}; what works: the linear layers that every token passes",
                param=f"objectives.{adapter}.adapter",
            )

    def train(self, mode: bool = True) -> CausalModel:
        """Turns only the adapters' dropout on or off: the base has none, as in serving."""
        super().train(mode)
        for module in self.decoder.modules():
            if not isinstance(module, LaneLinear):
                module.training = False
        return self

    def quantize(self, how: Quantize) -> None:
        for matrix in self._tables:
            matrix.quantize(how, multiplied=matrix is self._head.matrix, looked_up=True)
        for _, layer in self.body.linears():
            layer.base.quantize(how)

    @property
    def _tables(self) -> list[FrozenMatrix]:
        """Embedding and head; empty if the library's code looks up the rows, since it supports only plain tensors."""
        return [] if self._embedding is None else list(dict.fromkeys((self._embedding, self._head.matrix)))

    def parameter_bytes(self) -> dict[str, int]:
        plain = list(self.body.tensors())
        plain += [] if self._head.bias is None else [self._head.bias]
        if self._embedding is None and self._head.matrix.weight is not None:
            plain.append(self._head.matrix.weight)  # it may be the library's embedding
        once = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in plain}
        layers = [layer for _, layer in self.body.linears()]
        base = sum(once.values()) + sum(matrix.nbytes for matrix in (*self._tables, *(layer.base for layer in layers)))
        return {"base": base, "adapters": sum(layer.adapter_bytes for layer in layers)}

    @property
    def compiled(self) -> bool:
        return self._fast is not None

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[CausalModel]:
        """For the adapters attached now. The result of the compiled `step` is valid until the next step. folder: where
        compiled functions are stored; ragged: compile `ragged_step` as well.

        Raises:
            UnsupportedModel: an architecture without a compiled step, or another device.
        """
        device = self.facts.device
        if device.type not in self._compilations:
            raise UnsupportedModel(
                f"compile is on, and {self.facts.architecture!r} has no compiled step on {device}; allowed: off",
                param="compile",
            )
        return self._compilations[device.type](self, folder, ragged)

    def with_step(self, fast: FastStep) -> CausalModel:
        """This model with the same parameters and another `step` for one new token per row."""
        other = copy.copy(self)
        other._fast = fast
        return other

    # -- prompts -------------------------------------------------------------------------------------------------

    def reading(self, lane: Lane) -> Reading:
        """How the attached adapters read a lane's prompt."""
        return read(lane, self._invocations)

    def reading_beside(self, lane: Lane) -> Reading:
        """The same for training, where the base's lane runs together with theirs."""
        return read_beside(lane, self._invocations)

    def acting(self, lane: Lane) -> Coefficients:
        return self.reading(lane).acting

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:
        """Every token but the last, each with the coefficients that act on it."""
        found = self.reading(lane)
        tokens = (*lane.prompt_ids, *reply)[:-1]
        points = [*found.by_token(), *[found.acting] * (len(tokens) - len(found.prefix))]
        return Passage(tuple(zip(tokens, points, strict=True)))

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:
        return (*lane.prompt_ids, *reply)[-1:]

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        return prompt_ids

    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        return prefill(self, pieces)

    def whole(self, readings: Sequence[Reading]) -> Layers:
        """Run whole prefixes, with gradients if enabled. Returns keys and values by layer, [M, K, S, d] padded on the
        right."""
        longest = max(len(reading.prefix) for reading in readings)
        self.refuse_beyond(longest)
        device, dtype = self.facts.device, self.facts.dtype
        if longest == 0:
            layers, heads, size = self.cache_shape
            return [(torch.zeros(len(readings), heads, 0, size, dtype=dtype, device=device),) * 2] * layers
        padded = [[*reading.prefix, *[0] * (longest - len(reading.prefix))] for reading in readings]
        positions = torch.arange(longest, device=device).expand(len(readings), -1)
        seen = WholePass(longest, dtype=dtype, device=device)
        bare = (0.0,) * len(self.adapters)
        points = [[*reading.by_token(), *[bare] * (longest - len(reading.prefix))] for reading in readings]
        lanes = self.by_token([point for row in points for point in row])
        self.run(torch.tensor(padded, device=device), positions, lanes, seen)
        return seen.kept

    def by_token(self, points: Sequence[Coefficients]) -> LaneIndex:
        """The lanes of tokens with these coefficients, with spare rows."""
        return LaneIndex.of(points, len(self.adapters), self.facts.device).with_spare()

    # -- decoding ------------------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        return KVCache(Store(*self.cache_shape, dtype=self.facts.dtype, device=self.facts.device))

    @torch.inference_mode()
    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        new = tokens.shape[1]
        self.refuse_beyond(max(cache.lengths) + new)
        if new == 1 and self._fast is not None:
            return self._fast(tokens, lanes, cache).unsqueeze(1)
        cache.reserve(new)
        lengths = torch.tensor(cache.lengths, device=tokens.device)
        positions = lengths.unsqueeze(1) + torch.arange(new, device=tokens.device)  # [M, q]
        sizes = [length + new for length in cache.lengths]
        seen = CachedPass(cache.own, positions, sizes, self.facts.dtype)
        hidden = self.run(tokens, positions, lanes.repeat(new), seen)
        cache.advance(new)
        return hidden

    @torch.inference_mode()
    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        places, at = cache.own.ahead(counts)
        sizes = [position + 1 for position in at]
        self.refuse_beyond(max(sizes))
        fast = None if self._fast is None else self._fast.ragged(tokens, counts, lanes, cache)
        if fast is not None:
            return fast
        cache.reserve_each(counts)
        # Every token is a separate row, with a copy of the keys and values that it attends to.
        rows, positions = torch.tensor([places, at], device=tokens.device).unsqueeze(2)  # [R, 1] each
        seen = CachedPass(cache.own, positions, sizes, self.facts.dtype, rows[:, 0])
        hidden = self.run(tokens.unsqueeze(1), positions, lanes, seen)
        cache.advance_each(counts)
        return hidden[:, 0]

    def refuse_beyond(self, tokens: int) -> None:
        """Raise PromptTooLong if the sequence has more tokens than the model has positions."""
        limit = self.facts.max_positions
        if limit is not None and tokens > limit:
            raise PromptTooLong(f"a sequence of {tokens} tokens; the base has {limit} positions")

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: Pass) -> Tensor:
        """tokens, positions [M, q] -> last hidden states [M, q, D].

        lanes: of the M * q tokens, row after row, possibly followed by spare rows; None: the base only.
        """
        return self.body.run(tokens, positions, lanes, seen)

    def head(self, hidden: Tensor) -> Tensor:
        return self._head.logits(hidden)

    @property
    def hidden_size(self) -> int:
        """D."""
        return self._head.matrix.shape[1]

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        return self._head.uncapped(hidden)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self._head.rows(token_ids)

    # -- training and loading ------------------------------------------------------------------------------------

    def reply_hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        return replies.reply_hidden(self, groups, {} if self._kept is None else self._kept)

    @contextmanager
    def keeping_prompts(self) -> Iterator[None]:
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def probe(self, tokens: Sequence[int]) -> None:
        """Run one short sequence to find what only a forward pass shows: the cache's shape, and which layers are
        routed.

        Raises:
            UnsupportedModel: keys and values in shapes that the cache does not support.
            ValueError: no layer called the attention function with this pass.
        """
        device = self.facts.device
        seen = WholePass(len(tokens), dtype=self.facts.dtype, device=device)
        with torch.no_grad():
            self.run(torch.tensor([tokens], device=device), torch.arange(len(tokens), device=device)[None], None, seen)
        if not seen.kept:
            raise ValueError("its attention is not the function that was set")
        shapes = {tuple(tensor.shape) for layer in seen.kept for tensor in layer}
        if len(shapes) != 1:
            kind = self.facts.architecture
            raise UnsupportedModel(
                f"base model_type {kind!r}: layers, or keys and values, differ in heads or head size"
            )
        ((_, heads, _, size),) = shapes
        self.cache_shape = (len(seen.kept), heads, size)
