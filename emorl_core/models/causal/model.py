"""A decoder-only Hugging Face model in lanes: the library's own modelling code over lane-aware linears and the cache.

Letters: M lane rows, q new tokens a row, D hidden, L layers, K key-value heads, S prompt tokens, d size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from emorl_core.adapters import Adapter
from emorl_core.errors import AdapterError, PromptTooLong, UnsupportedModel
from emorl_core.lanes import BASE_LANE, LaneIndex, LaneLinear
from emorl_core.models.causal import attention
from emorl_core.models.causal._store import CausalCache, CausalMemory
from emorl_core.models.causal.activation import activation_start
from emorl_core.models.causal.head import Head
from emorl_core.models.causal.linears import LaneLayer, Rows
from emorl_core.models.stacking import stack_adapters

# Tokens of one padded batch of prompts: enough to fill a product, small enough to bound its activations.
_PREFILL_TOKENS = 4096


class CausalModel(nn.Module):
    """See `emorl_core.models.LaneModel` for the methods the engine uses; `replies.py` runs whole replies for training."""

    def __init__(
        self,
        decoder: nn.Module,
        head: Head,
        layers: Sequence[LaneLayer],
        rows: Rows,
        *,
        architecture: str,
        head_name: str,
        max_positions: int | None,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.decoder = decoder.eval().requires_grad_(False)
        self.layers, self.rows = tuple(layers), rows
        self.routed: frozenset[str] = frozenset()  # layers that see a part of the tokens only, so take no adapter
        self._head, self._head_name = head, head_name
        self.architecture, self.max_positions, self.eos_token_ids = architecture, max_positions, eos_token_ids
        self.vocab_size = head.vocab_size
        self.device, self.dtype = device, dtype
        self.shapes: tuple[tuple[int, int], ...] = ()  # key-value heads and their size, by layer
        self.adapters: tuple[str, ...] = ()
        self._invocations: tuple[tuple[int, ...] | None, ...] = ()
        self._lane_index: LaneIndex | None = None

    # -- adapters ------------------------------------------------------------------------------------------------

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: its name in the checkpoint, and the layer."""
        for layer in self.layers:
            if layer.name not in self.routed:
                yield [layer.name], layer.linear

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        for adapter in adapters:
            for module in adapter.modules:
                self._refuse_module(adapter.name, module)
        stack_adapters(self.linears(), adapters, training=training)
        self.adapters = tuple(adapter.name for adapter in adapters)
        self._invocations = tuple(adapter.invocation_tokens for adapter in adapters)
        self._lane_index = None

    def _refuse_module(self, adapter: str, module: str) -> None:
        reason = None
        if module == self._head_name:
            reason = "the head; mixing hidden states needs one head shared by all objectives"
        elif module in self.routed:
            reason = f"{module!r}, which sees a part of the tokens only (routed experts)"
        elif ".experts" in module:
            reason = f"{module!r}, one of the experts, which are not linear layers that lanes can share"
        if reason is not None:
            raise AdapterError(
                f"adapter {adapter!r}: it adapts {reason}; what works: the linear layers that every token passes",
                param=f"objectives.{adapter}.adapter",
            )

    def train(self, mode: bool = True) -> CausalModel:
        """The adapters' own dropout alone: the base runs as it serves, without any."""
        super().train(mode)
        for module in self.decoder.modules():
            if not isinstance(module, LaneLinear):
                module.training = False
        return self

    def parameter_bytes(self) -> dict[str, int]:
        tensors = [*self.decoder.parameters(), self._head.weight]
        tensors += [layer.bias for layer in self.layers if layer.bias is not None]
        tensors += [] if self._head.bias is None else [self._head.bias]
        trained = {id(p) for layer in self.layers for p in layer.linear.parameters()}
        apart = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if id(t) not in trained}  # tied ones once
        base = sum(apart.values()) + sum(layer.linear.base.nbytes for layer in self.layers)
        return {"base": base, "adapters": sum(layer.linear.adapter_bytes for layer in self.layers)}

    @property
    def compiled(self) -> bool:
        return False

    def compile_step(self) -> None:
        raise UnsupportedModel("compile is on, and decoder-only models have no compiled step; leave it off", param="compile")

    # -- prompts -------------------------------------------------------------------------------------------------

    def running_lane(self, prompt: Sequence[int], lane: int) -> int:
        """The lane that really runs: the base for an activated adapter whose invocation tokens the prompt lacks."""
        invocation = self._invocation(lane)
        return BASE_LANE if invocation is not None and activation_start(prompt, invocation) is None else lane

    def first_tokens(self, prompt: Sequence[int], lane: int) -> tuple[int, ...]:
        """What is fed after prefill, in the lane: the prompt's last token, or all from where the adapter begins to act."""
        invocation = self._invocation(lane)
        start = None if invocation is None else activation_start(prompt, invocation)
        return tuple(prompt[len(prompt) - 1 if start is None else start :])

    def already_said(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Tokens that count for the repetition penalty before the reply says any."""
        return tuple(prompt)

    def prefill_key(self, prompt: Sequence[int], lane: int) -> tuple[tuple[int, ...], int]:
        """Lanes of equal key have the same prefill: the tokens it runs, and the lane it runs them in."""
        prefix = tuple(prompt[: len(prompt) - len(self.first_tokens(prompt, lane))])
        return prefix, BASE_LANE if self._invocation(lane) is not None else lane

    def _invocation(self, lane: int) -> tuple[int, ...] | None:
        return None if lane == BASE_LANE else self._invocations[lane - 1]

    def new_cache(self) -> CausalCache:
        return CausalCache(self.shapes, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[CausalMemory]:
        """Keys and values of every prompt without its `first_tokens`."""
        keys = [self.prefill_key(prompt, lane) for prompt, lane in zip(prompts, lanes, strict=True)]
        memories: list[CausalMemory] = []
        start = 0
        while start < len(keys):
            end, longest = start, 0
            while end < len(keys):
                longest = max(longest, len(keys[end][0]))
                if end > start and longest * (end + 1 - start) > _PREFILL_TOKENS:
                    break
                end += 1
            memories += self._prefill([p for p, _ in keys[start:end]], [lane for _, lane in keys[start:end]])
            start = end
        return memories

    def _prefill(self, prefixes: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[CausalMemory]:
        lengths = [len(prefix) for prefix in prefixes]
        kept = self.whole(prefixes, lanes)
        return [
            CausalMemory(tuple(torch.stack([k[i, :, :n], v[i, :, :n]]) for k, v in kept)) for i, n in enumerate(lengths)
        ]

    def whole(self, sequences: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Run sequences from their beginning; keys and values by layer, [M, K, S, d] padded on the right. With gradients
        when they are on."""
        longest = max(len(sequence) for sequence in sequences)
        self.refuse_beyond(longest)
        if longest == 0:
            empty = [torch.zeros(len(sequences), k, 0, d, dtype=self.dtype, device=self.device) for k, d in self.shapes]
            return [(layer, layer) for layer in empty]
        ids = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=self.device)
        positions = torch.arange(longest, device=self.device).expand(len(sequences), -1)
        index = LaneIndex(torch.tensor(list(lanes), device=self.device), len(self.adapters))
        seen = attention.WholePass(longest, keep=True, dtype=self.dtype, device=self.device)
        self.run(ids, positions, index, seen)
        assert seen.kept is not None
        return seen.kept

    # -- decoding ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self, tokens: Tensor, lanes: Tensor, cache: CausalCache) -> Tensor:
        new = tokens.shape[1]
        if self._lane_index is None or self._lane_index.lanes is not lanes:
            self._lane_index = LaneIndex(lanes, len(self.adapters))
        self.refuse_beyond(max(cache.lengths) + new)
        cache.reserve(new)
        lengths = torch.tensor(cache.lengths, device=self.device)
        positions = lengths.unsqueeze(1) + torch.arange(new, device=self.device)  # [M, q]
        hidden = self.run(tokens, positions, self._lane_index, attention.CachedPass(cache, positions, self.dtype))
        cache.advance(new)
        return hidden

    def refuse_beyond(self, tokens: int) -> None:
        """Raise PromptTooLong for a sequence of more tokens than the model has positions."""
        if self.max_positions is not None and tokens > self.max_positions:
            raise PromptTooLong(f"a sequence of {tokens} tokens; the base has {self.max_positions} positions")

    def run(self, tokens: Tensor, positions: Tensor, lanes: LaneIndex | None, seen: attention.Pass) -> Tensor:
        """tokens, positions [M, q] -> last hidden states [M, q, D], through the library's decoder."""
        self.rows.set(lanes, *tokens.shape)
        out = self.decoder(input_ids=tokens, position_ids=positions, use_cache=False, **{attention.KEYWORD: seen})
        hidden: Tensor = out[0]
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        return self._head.logits(hidden)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self._head.rows(token_ids)

    def probe(self, tokens: list[int]) -> None:
        """Run one short sequence to learn what only a pass shows: every layer's heads, and layers that are routed.

        Raises:
            UnsupportedModel: keys and values of different shapes, which the cache does not hold.
        """
        self.rows.routed.clear()
        with torch.no_grad():
            ids = torch.tensor([tokens], device=self.device)
            positions = torch.arange(len(tokens), device=self.device).unsqueeze(0)
            seen = attention.WholePass(len(tokens), keep=True, dtype=self.dtype, device=self.device)
            self.run(ids, positions, None, seen)
        assert seen.kept is not None
        if any(k.shape != v.shape for k, v in seen.kept):
            raise UnsupportedModel(f"base model_type {self.architecture!r}: its keys and values differ in size")
        self.shapes = tuple((k.shape[1], k.shape[3]) for k, _ in seen.kept)
        self.routed = frozenset(self.rows.routed)
