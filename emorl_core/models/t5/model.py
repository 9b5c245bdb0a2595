"""T5 (Raffel et al. 2020): v1.0 with ReLU and a tied, scaled head; v1.1, FLAN-T5, mT5 with gated GELU and an own one.

Letters: E encoder sequences (one per prompt and lane), M lane rows being decoded, S source tokens, T target tokens so
far, q new tokens, D hidden, H heads, L decoder layers. Everything is float32 or bfloat16 as loaded; attention scores
are not scaled (T5 folds the scale into its weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.adapters import Adapter
from emorl_core.cache.kv import KVCache, Memory, round_size
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.frozen import FrozenMatrix
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.special_tokens import SpecialTokens
from emorl_core.models.stacking import stack_adapters
from emorl_core.models.t5.blocks import (
    T5Block,
    T5Config,
    attention,
    embedding_and_head,
    fused,
    padding_mask,
    position_bucket,
)
from emorl_core.models.t5.compiled import CompiledStep
from emorl_core.models.t5.graphs import GraphedStep

# Tokens of one padded encoder batch: enough to fill a product, small enough to bound its activations.
_PREFILL_TOKENS = 4096
# The first converters wrote it; cross-attention has no positions, and transformers passes it over too.
_HARMLESS = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


class T5(nn.Module):
    """See `emorl_core.models.LaneModel` for the methods the engine uses; `encode` and `decode` serve training too."""

    architecture = "t5"
    max_positions: int | None = None  # relative positions

    def __init__(
        self,
        config: T5Config,
        special: SpecialTokens,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, device, dtype
        self.vocab_size = config.vocab_size
        self.eos_token_ids, self.decoder_start_token_id = special.eos, special.decoder_start
        self.adapters: tuple[str, ...] = ()
        self.embedding, self.lm_head = embedding_and_head(config, checkpoint)
        self.head_scale = config.d_model**-0.5 if config.scaled_head else 1.0
        self.encoder = nn.ModuleList(T5Block(config, checkpoint, "encoder", i) for i in range(config.num_layers))
        self.decoder = nn.ModuleList(
            T5Block(config, checkpoint, "decoder", i) for i in range(config.num_decoder_layers)
        )
        names = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(config.num_decoder_layers)]
        self.cross_kv = fused(checkpoint, [f"{n}.{p}" for n in names for p in "kv"], config.inner, config.d_model)
        self.encoder_norm = checkpoint.tensor("encoder.final_layer_norm.weight", (config.d_model,))
        self.decoder_norm = checkpoint.tensor("decoder.final_layer_norm.weight", (config.d_model,))
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        self._encoder_bias = checkpoint.tensor(f"encoder.{bias}", (config.buckets, config.num_heads))
        self._decoder_bias = checkpoint.tensor(f"decoder.{bias}", (config.buckets, config.num_heads))
        self._bias_by_distance = torch.empty(0, config.num_heads, device=device, dtype=dtype)
        self._lane_index: LaneIndex | None = None
        self._compiles = False
        self._compiled: CompiledStep | GraphedStep | None = None

    # -- adapters ------------------------------------------------------------------------------------------------

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: the checkpoint names of its fused projections, in order, and the layer."""
        for stack, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, block in enumerate(blocks):
                assert isinstance(block, T5Block)
                yield from block.linears(f"{stack}.block.{i}")
        names = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(self.config.num_decoder_layers)]
        yield [f"{n}.{p}" for n in names for p in "kv"], self.cross_kv

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        self._compiled, self._compiles = None, False
        stack_adapters(self.linears(), adapters, training=training)
        self.adapters = tuple(adapter.name for adapter in adapters)
        self._lane_index = None

    def parameter_bytes(self) -> dict[str, int]:
        base = self.embedding.nbytes + (self.lm_head.nbytes if self.lm_head is not self.embedding else 0)
        low_rank = 0
        for _, layer in self.linears():
            base += layer.base.nbytes
            low_rank += layer.adapter_bytes
        norms = [self.encoder_norm, self.decoder_norm, self._encoder_bias, self._decoder_bias]
        norms += [norm for block in (*self.encoder, *self.decoder) for norm in block.norms]
        return {"base": base + sum(t.numel() * t.element_size() for t in norms), "adapters": low_rank}

    @property
    def compiled(self) -> bool:
        return self._compiled is not None

    def compile_step(self) -> None:
        """Have `step` and `head` compiled on a CPU, `step` captured as graphs on CUDA, for the adapters attached now.

        `step`'s result is then good until the next step only.

        Raises:
            UnsupportedModel: the model is elsewhere, or torch cannot do it on this machine.
        """
        if self.device.type not in ("cpu", "cuda"):
            raise UnsupportedModel(
                f"compile is on and the device is {self.device}; allowed: cpu, cuda", param="compile"
            )
        self._compiles = True  # before the step makes a cache to try itself on
        try:
            self._compiled = CompiledStep(self) if self.device.type == "cpu" else GraphedStep(self)
        except UnsupportedModel:
            self._compiles = False
            raise

    # -- the engine's methods ------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        config = self.config
        # A CPU's batched products of few rows are up to three times as fast in float32 (docs/log.md), and more exact. A
        # compiled step has no such products, and reads half as much in bfloat16.
        dtype = torch.float32 if self.device.type == "cpu" and not self._compiles else self.dtype
        return KVCache(config.num_decoder_layers, config.num_heads, config.d_kv, dtype=dtype, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[Memory]:
        memories: list[Memory] = []
        start = 0
        while start < len(prompts):
            end, longest = start, 0
            while end < len(prompts):
                longest = max(longest, len(prompts[end]))
                if end > start and longest * (end + 1 - start) > _PREFILL_TOKENS:
                    break
                end += 1
            memories += self._prefill(prompts[start:end], lanes[start:end])
            start = end
        return memories

    def _prefill(self, prompts: Sequence[Sequence[int]], lanes: Sequence[int]) -> list[Memory]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=self.device)
        lengths = [len(prompt) for prompt in prompts]
        index = LaneIndex(torch.tensor(list(lanes), device=self.device), len(self.adapters))
        kv = self.cross(self.encode(ids, lengths, index), index)  # [2, L, E, H, S, d_kv]
        return [Memory(kv[:, :, i, :, :length].clone()) for i, length in enumerate(lengths)]

    @torch.inference_mode()
    def step(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> Tensor:
        rows, new = tokens.shape
        if new == 1 and self._compiled is not None:
            return self._compiled(tokens, lanes, cache).unsqueeze(1)
        if self._lane_index is None or self._lane_index.lanes is not lanes:
            self._lane_index = LaneIndex(lanes, len(self.adapters))
        cache.reserve(new)
        lengths = torch.tensor(cache.lengths, device=self.device)
        positions = lengths.unsqueeze(1) + torch.arange(new, device=self.device)  # [M, q]
        total = round_size(max(cache.lengths) + new)
        mask = self.causal_bias(positions, total)
        x = F.embedding(tokens, _plain(self.embedding)).view(rows * new, -1)
        index = self._lane_index.repeat(new)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, T5Block)
            q, k, v = block.project(x, index, rows)
            cache.write(i, k.transpose(1, 2), v.transpose(1, 2), positions)
            keys, values = cache.read(i, total)
            x = block.attended(x, attention(q, keys, values, mask), index)
            cross_keys, cross_values = cache.read_cross(i)
            x = block.cross_attend(x, cross_keys, cross_values, cache.source_mask(), index, rows)
            x = block.feed_forward(x, index)
        cache.advance(new)
        return self._norm(x, self.decoder_norm).view(rows, new, -1)

    def head(self, hidden: Tensor) -> Tensor:
        weight = _plain(self.lm_head)
        scaled = (hidden * self.head_scale).to(self.dtype)
        if isinstance(self._compiled, CompiledStep) and self.dtype == torch.bfloat16 and hidden.shape[0] == 1:
            return self._compiled.head_row(weight, scaled)
        if scaled.dtype == torch.float32 and self.device.type == "cpu" and hidden.shape[0] <= 16:
            # The wide matrix on the left: with few rows the CPU library streams it 2 to 3 times as fast this way.
            return torch.mm(weight, scaled.t()).t().float().contiguous()
        return F.linear(scaled, weight).float()

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, _plain(self.lm_head)).float() * self.head_scale

    # -- whole sequences (prefill and training) ------------------------------------------------------------------

    def encode(self, ids: Tensor, lengths: Sequence[int], lanes: LaneIndex) -> Tensor:
        """ids [E, S] padded on the right, lengths per row, lanes of E rows -> [E, S, D]."""
        rows, size = ids.shape
        mask = self._encoder_mask(size, lengths)
        index = lanes.repeat(size)
        x = F.embedding(ids, _plain(self.embedding)).view(rows * size, -1)
        for block in self.encoder:
            assert isinstance(block, T5Block)
            q, k, v = block.project(x, index, rows)
            x = block.attended(x, attention(q, k, v, mask), index)
            x = block.feed_forward(x, index)
        return self._norm(x, self.encoder_norm).view(rows, size, -1)

    def cross(self, encoded: Tensor, lanes: LaneIndex) -> Tensor:
        """[E, S, D] -> cross-attention keys and values of all layers [2, L, E, H, S, d_kv]."""
        rows, size, _ = encoded.shape
        kv = self.cross_kv(encoded.reshape(rows * size, -1), lanes.repeat(size))  # [2L, E * S, inner]
        kv = kv.reshape(-1, 2, rows, size, self.config.num_heads, self.config.d_kv)
        return kv.permute(1, 0, 2, 4, 3, 5)

    def decode(self, ids: Tensor, cross: Tensor, source_lengths: Sequence[int], lanes: LaneIndex) -> Tensor:
        """Teacher forcing without a cache.

        Args:
            ids: decoder inputs [M, T], the start token first.
            cross: [2, L, E, H, S, d_kv] from `cross`; M is E or a multiple of it, and row m reads source m // (M // E),
                so that k replies to one prompt need one copy of its keys and values.
            source_lengths: S of each source, the rest is padding.
            lanes: of M rows.

        Returns:
            Last hidden states [M, T, D].
        """
        rows, size = ids.shape
        positions = torch.arange(size, device=self.device).expand(rows, size)
        mask = self.causal_bias(positions[:1], size)
        source_mask = padding_mask(source_lengths, cross.shape[4], self.dtype, self.device)
        index = lanes.repeat(size)
        x = F.embedding(ids, _plain(self.embedding)).view(rows * size, -1)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, T5Block)
            q, k, v = block.project(x, index, rows)
            x = block.attended(x, attention(q, k, v, mask), index)
            # No order among target tokens here: the replies to one source are one long run of queries.
            x = block.cross_attend(x, cross[0, i], cross[1, i], source_mask, index, cross.shape[2])
            x = block.feed_forward(x, index)
        return self._norm(x, self.decoder_norm).view(rows, size, -1)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.d_model,), weight, self.config.epsilon)

    def _encoder_mask(self, size: int, lengths: Sequence[int]) -> Tensor:
        """[1 or E, H, S, S] additive: relative position bias, and -inf on padding keys."""
        span = torch.arange(size, device=self.device)
        buckets = position_bucket(span[None, :] - span[:, None], True, self.config.buckets, self.config.max_distance)
        bias = F.embedding(buckets, self._encoder_bias).permute(2, 0, 1).unsqueeze(0)
        padding = padding_mask(lengths, size, self.dtype, self.device)
        return bias.contiguous() if padding is None else bias + padding

    def causal_bias(self, positions: Tensor, total: int) -> Tensor:
        """positions [M, q] of the queries -> [M, H, q, total] additive: bias by distance, -inf on what comes later."""
        distance = positions.unsqueeze(-1) - torch.arange(total, device=self.device)  # [M, q, total]
        bias = F.embedding(distance.clamp(min=0), self.bias_by_distance(total))
        return bias.masked_fill((distance < 0).unsqueeze(-1), float("-inf")).permute(0, 3, 1, 2).contiguous()

    def bias_by_distance(self, total: int) -> Tensor:
        """Bias of a key 0, 1, ... tokens before its query, for `total` distances or more: [>= total, H]."""
        if total > self._bias_by_distance.shape[0]:
            distances = torch.arange(2 * total, device=self.device)
            buckets = position_bucket(-distances, False, self.config.buckets, self.config.max_distance)
            with torch.inference_mode(False):  # kept, and used under autograd later
                self._bias_by_distance = F.embedding(buckets.clone(), self._decoder_bias)
        return self._bias_by_distance


def load(folder: Path, config: dict[str, Any], *, device: torch.device, dtype: torch.dtype, training: bool) -> T5:
    """Load a T5-family checkpoint folder; see `emorl_core.models.load_model`."""
    sizes, special = T5Config.from_hf(config), SpecialTokens.read(folder, config)
    checkpoint = Checkpoint(folder, config, device=device, dtype=dtype)
    with torch.no_grad():
        model = T5(sizes, special, checkpoint, device=device, dtype=dtype)
        checkpoint.refuse_unread(_HARMLESS)
        for _, layer in model.linears():
            layer.base.pack(keep_plain=training)
    return model


def _plain(matrix: FrozenMatrix) -> Tensor:
    assert matrix.weight is not None  # embeddings and heads are never packed
    return matrix.weight
