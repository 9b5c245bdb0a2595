"""T5 (Raffel et al. 2020): v1.0 with ReLU and a tied, scaled head; v1.1, FLAN-T5, mT5 with gated GELU and an own one.

Letters: E encoder sequences (one per prompt and lane), M lane rows being decoded, S source tokens, T target tokens so
far, q new tokens, D hidden, H heads, L decoder layers. Everything is float32 or bfloat16 as loaded; attention scores
are not scaled (T5 folds the scale into its weights).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.adapters import Adapter
from emorl_core.errors import UnsupportedModel
from emorl_core.kv_cache import KVCache, Memory
from emorl_core.lanes import FrozenMatrix, LaneIndex, LaneLinear
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.stacking import stack_adapters

# Tokens of one padded encoder batch: enough to fill a product, small enough to bound its activations.
_PREFILL_TOKENS = 4096
# Attention reads the cache in steps of this many tokens, so that its shapes change seldom.
_TOKEN_STEP = 16


@dataclass(frozen=True, slots=True)
class T5Config:
    """What the code below needs of a Hugging Face T5 config."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    buckets: int
    max_distance: int
    epsilon: float
    gated: bool
    scaled_head: bool

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> T5Config:
        """Raises UnsupportedModel naming the key when a value is missing or is one this file does not implement."""
        projection = config.get("feed_forward_proj", "relu")
        if projection not in ("relu", "gated-gelu"):
            raise UnsupportedModel(f"config.json: feed_forward_proj is {projection!r}; allowed: relu, gated-gelu")
        heads = config.get("architectures") or ["T5ForConditionalGeneration"]
        if not any(name.endswith("ForConditionalGeneration") for name in heads):
            raise UnsupportedModel(f"config.json: architectures is {heads}; allowed: one with a language-model head")
        try:
            # transformers 5 writes scale_decoder_outputs and always ties; before it, an untied head was unscaled.
            scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True) is not False)
            return cls(
                vocab_size=config["vocab_size"],
                d_model=config["d_model"],
                d_kv=config["d_kv"],
                d_ff=config["d_ff"],
                num_layers=config["num_layers"],
                num_decoder_layers=config.get("num_decoder_layers") or config["num_layers"],
                num_heads=config["num_heads"],
                buckets=config.get("relative_attention_num_buckets", 32),
                max_distance=config.get("relative_attention_max_distance", 128),
                epsilon=config.get("layer_norm_epsilon", 1e-6),
                gated=projection == "gated-gelu",
                scaled_head=bool(scaled),
            )
        except KeyError as error:
            raise UnsupportedModel(f"config.json: key {error} is missing") from None

    @property
    def inner(self) -> int:
        return self.num_heads * self.d_kv


class T5(nn.Module):
    """See `emorl_core.models.LaneModel` for the methods the engine uses; `encode` and `decode` serve training too."""

    architecture = "t5"
    max_positions: int | None = None  # relative positions

    def __init__(self, config: T5Config, checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.device, self.dtype = config, device, dtype
        self.vocab_size = config.vocab_size
        self.eos_token_ids: tuple[int, ...] = (1,)
        self.decoder_start_token_id = 0
        self.adapters: tuple[str, ...] = ()
        shared = "shared.weight" if "shared.weight" in checkpoint else "encoder.embed_tokens.weight"
        self.embedding = FrozenMatrix(checkpoint.tensor(shared, (config.vocab_size, config.d_model)))
        self.lm_head = self.embedding
        if "lm_head.weight" in checkpoint:
            own = checkpoint.tensor("lm_head.weight", (config.vocab_size, config.d_model))
            if not torch.equal(own, _plain(self.embedding)):
                self.lm_head = FrozenMatrix(own)
        self.head_scale = config.d_model**-0.5 if config.scaled_head else 1.0
        self.encoder = nn.ModuleList(_Block(config, checkpoint, "encoder", i) for i in range(config.num_layers))
        self.decoder = nn.ModuleList(_Block(config, checkpoint, "decoder", i) for i in range(config.num_decoder_layers))
        names = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(config.num_decoder_layers)]
        self.cross_kv = _fused(checkpoint, [f"{n}.{p}" for n in names for p in "kv"], config.inner, config.d_model)
        self.encoder_norm = checkpoint.tensor("encoder.final_layer_norm.weight", (config.d_model,))
        self.decoder_norm = checkpoint.tensor("decoder.final_layer_norm.weight", (config.d_model,))
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        self._encoder_bias = checkpoint.tensor(f"encoder.{bias}", (config.buckets, config.num_heads))
        self._decoder_bias = checkpoint.tensor(f"decoder.{bias}", (config.buckets, config.num_heads))
        self._bias_by_distance = torch.empty(0, config.num_heads, device=device, dtype=dtype)
        self._lane_index: LaneIndex | None = None

    # -- adapters ------------------------------------------------------------------------------------------------

    def linears(self) -> Iterator[tuple[list[str], LaneLinear]]:
        """Every adaptable layer: the checkpoint names of its fused projections, in order, and the layer."""
        for stack, blocks in (("encoder", self.encoder), ("decoder", self.decoder)):
            for i, block in enumerate(blocks):
                assert isinstance(block, _Block)
                yield from block.linears(f"{stack}.block.{i}")
        names = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(self.config.num_decoder_layers)]
        yield [f"{n}.{p}" for n in names for p in "kv"], self.cross_kv

    def attach(self, adapters: Sequence[Adapter], *, training: bool = False) -> None:
        stack_adapters(self.linears(), adapters, training=training)
        self.adapters = tuple(adapter.name for adapter in adapters)
        self._lane_index = None

    def parameter_bytes(self) -> dict[str, int]:
        base = self.embedding.nbytes + (self.lm_head.nbytes if self.lm_head is not self.embedding else 0)
        low_rank = 0
        for _, layer in self.linears():
            base += layer.base.nbytes
            low_rank += sum(p.numel() * p.element_size() for p in (layer.lora_a, layer.lora_b) if p is not None)
        norms = [self.encoder_norm, self.decoder_norm, self._encoder_bias, self._decoder_bias]
        norms += [norm for block in (*self.encoder, *self.decoder) for norm in block.norms]
        return {"base": base + sum(t.numel() * t.element_size() for t in norms), "adapters": low_rank}

    # -- the engine's methods ------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        config = self.config
        return KVCache(config.num_decoder_layers, config.num_heads, config.d_kv, dtype=self.dtype, device=self.device)

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
        if self._lane_index is None or self._lane_index.lanes is not lanes:
            self._lane_index = LaneIndex(lanes, len(self.adapters))
        cache.reserve(new)
        lengths = torch.tensor(cache.lengths, device=self.device)
        positions = lengths.unsqueeze(1) + torch.arange(new, device=self.device)  # [M, q]
        total = -(-(max(cache.lengths) + new) // _TOKEN_STEP) * _TOKEN_STEP
        mask = self._causal_bias(positions, total)
        x = F.embedding(tokens, _plain(self.embedding)).view(rows * new, -1)
        index = self._lane_index.repeat(new)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, _Block)
            q, k, v = block.project(x, index, rows)
            cache.write(i, k.transpose(1, 2), v.transpose(1, 2), positions)
            keys, values = cache.read(i, total)
            x = block.attended(x, _attention(q, keys, values, mask), index)
            cross_keys, cross_values = cache.read_cross(i)
            x = block.cross_attend(x, cross_keys, cross_values, cache.source_mask(), index, rows)
            x = block.feed_forward(x, index)
        cache.advance(new)
        return self._norm(x, self.decoder_norm).view(rows, new, -1)

    def head(self, hidden: Tensor) -> Tensor:
        weight = _plain(self.lm_head)
        scaled = (hidden * self.head_scale).to(self.dtype)
        if self.device.type == "cpu" and hidden.shape[0] <= 16 and not hidden.requires_grad:
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
            assert isinstance(block, _Block)
            q, k, v = block.project(x, index, rows)
            x = block.attended(x, _attention(q, k, v, mask), index)
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
            cross: [2, L, M, H, S, d_kv] from `cross`, one per row.
            source_lengths: S of each row, the rest is padding.
            lanes: of M rows.

        Returns:
            Last hidden states [M, T, D].
        """
        rows, size = ids.shape
        positions = torch.arange(size, device=self.device).expand(rows, size)
        mask = self._causal_bias(positions[:1], size)
        source_mask = _padding_mask(source_lengths, cross.shape[4], self.dtype, self.device)
        index = lanes.repeat(size)
        x = F.embedding(ids, _plain(self.embedding)).view(rows * size, -1)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, _Block)
            q, k, v = block.project(x, index, rows)
            x = block.attended(x, _attention(q, k, v, mask), index)
            x = block.cross_attend(x, cross[0, i], cross[1, i], source_mask, index, rows)
            x = block.feed_forward(x, index)
        return self._norm(x, self.decoder_norm).view(rows, size, -1)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.d_model,), weight, self.config.epsilon)

    def _encoder_mask(self, size: int, lengths: Sequence[int]) -> Tensor:
        """[1 or E, H, S, S] additive: relative position bias, and -inf on padding keys."""
        span = torch.arange(size, device=self.device)
        buckets = _bucket(span[None, :] - span[:, None], True, self.config.buckets, self.config.max_distance)
        bias = F.embedding(buckets, self._encoder_bias).permute(2, 0, 1).unsqueeze(0)
        padding = _padding_mask(lengths, size, self.dtype, self.device)
        return bias.contiguous() if padding is None else bias + padding

    def _causal_bias(self, positions: Tensor, total: int) -> Tensor:
        """positions [M, q] of the queries -> [M, H, q, total] additive: bias by distance, -inf on what comes later."""
        if total > self._bias_by_distance.shape[0]:
            distances = torch.arange(2 * total, device=self.device)
            buckets = _bucket(-distances, False, self.config.buckets, self.config.max_distance)
            with torch.inference_mode(False):  # kept, and used under autograd later
                self._bias_by_distance = F.embedding(buckets.clone(), self._decoder_bias)
        distance = positions.unsqueeze(-1) - torch.arange(total, device=self.device)  # [M, q, total]
        bias = F.embedding(distance.clamp(min=0), self._bias_by_distance)
        return bias.masked_fill((distance < 0).unsqueeze(-1), float("-inf")).permute(0, 3, 1, 2).contiguous()


class _Block(nn.Module):
    """One encoder or decoder block; x is flat, [rows * tokens, D]."""

    def __init__(self, config: T5Config, checkpoint: Checkpoint, stack: str, number: int) -> None:
        super().__init__()
        self.config = config
        self.is_decoder = stack == "decoder"
        path, inner, d_model = f"{stack}.block.{number}.layer", config.inner, config.d_model
        last = 2 if self.is_decoder else 1
        self.norms = [checkpoint.tensor(f"{path}.{i}.layer_norm.weight", (d_model,)) for i in range(last + 1)]
        self.qkv = _fused(checkpoint, [f"{path}.0.SelfAttention.{p}" for p in "qkv"], inner, d_model)
        self.o = _fused(checkpoint, [f"{path}.0.SelfAttention.o"], d_model, inner)
        if self.is_decoder:
            self.cross_q = _fused(checkpoint, [f"{path}.1.EncDecAttention.q"], inner, d_model)
            self.cross_o = _fused(checkpoint, [f"{path}.1.EncDecAttention.o"], d_model, inner)
        wi = ["wi_0", "wi_1"] if config.gated else ["wi"]
        dense = f"{path}.{last}.DenseReluDense"
        self.wi = _fused(checkpoint, [f"{dense}.{name}" for name in wi], config.d_ff, d_model)
        self.wo = _fused(checkpoint, [f"{dense}.wo"], d_model, config.d_ff)

    def linears(self, path: str) -> Iterator[tuple[list[str], LaneLinear]]:
        last = 2 if self.is_decoder else 1
        yield [f"{path}.layer.0.SelfAttention.{p}" for p in "qkv"], self.qkv
        yield [f"{path}.layer.0.SelfAttention.o"], self.o
        if self.is_decoder:
            yield [f"{path}.layer.1.EncDecAttention.q"], self.cross_q
            yield [f"{path}.layer.1.EncDecAttention.o"], self.cross_o
        dense = f"{path}.layer.{last}.DenseReluDense"
        yield [f"{dense}.{name}" for name in (["wi_0", "wi_1"] if self.config.gated else ["wi"])], self.wi
        yield [f"{dense}.wo"], self.wo

    def project(self, x: Tensor, lanes: LaneIndex, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Self-attention's q, k, v: [M, H, q, d_kv] each."""
        qkv = self.qkv(self._norm(x, 0), lanes)  # [3, M * q, inner]
        q, k, v = (_split(part, rows, self.config) for part in qkv)
        return q, k, v

    def attended(self, x: Tensor, attention: Tensor, lanes: LaneIndex) -> Tensor:
        return x + self.o(_join(attention), lanes)

    def cross_attend(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, lanes: LaneIndex, rows: int
    ) -> Tensor:
        q = _split(self.cross_q(self._norm(x, 1), lanes), rows, self.config)
        return x + self.cross_o(_join(_attention(q, keys, values, mask)), lanes)

    def feed_forward(self, x: Tensor, lanes: LaneIndex) -> Tensor:
        up = self.wi(self._norm(x, len(self.norms) - 1), lanes)
        # NewGELU, the tanh approximation, as the released T5 1.1 checkpoints were trained.
        hidden = F.gelu(up[0], approximate="tanh") * up[1] if self.config.gated else F.relu(up)
        return x + self.wo(hidden, lanes)

    def _norm(self, x: Tensor, which: int) -> Tensor:
        return F.rms_norm(x, (self.config.d_model,), self.norms[which], self.config.epsilon)


def load(folder: Path, config: dict[str, Any], *, device: torch.device, dtype: torch.dtype, training: bool) -> T5:
    """Load a T5-family checkpoint folder; see `emorl_core.models.load_model`."""
    checkpoint = Checkpoint(folder, device=device, dtype=dtype)
    with torch.no_grad():
        model = T5(T5Config.from_hf(config), checkpoint, device=device, dtype=dtype)
        for _, layer in model.linears():
            layer.base.pack(keep_plain=training)
    generation = folder / "generation_config.json"
    special = {**config, **(json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {})}
    eos = special.get("eos_token_id", 1)
    model.eos_token_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    start = special.get("decoder_start_token_id")
    model.decoder_start_token_id = start if start is not None else special.get("pad_token_id") or 0
    return model


def _fused(checkpoint: Checkpoint, names: list[str], out_features: int, in_features: int) -> LaneLinear:
    parts = [checkpoint.tensor(f"{name}.weight", (out_features, in_features)) for name in names]
    return LaneLinear(torch.cat(parts) if len(parts) > 1 else parts[0], projections=len(parts))


def _plain(matrix: FrozenMatrix) -> Tensor:
    assert matrix.weight is not None  # embeddings and heads are never packed
    return matrix.weight


def _split(x: Tensor, rows: int, config: T5Config) -> Tensor:
    """[M * q, inner] -> [M, H, q, d_kv]."""
    return x.reshape(rows, -1, config.num_heads, config.d_kv).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """[M, H, q, d_kv] -> [M * q, inner]."""
    return x.transpose(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def _padding_mask(lengths: Sequence[int], size: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """[E, 1, 1, S] additive, -inf on padding; None when no row is padded."""
    if min(lengths) == size:
        return None
    padding = torch.arange(size, device=device) >= torch.tensor(lengths, device=device).unsqueeze(1)
    return torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill(padding, float("-inf"))[:, None, None, :]


def _bucket(relative: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Relative position (key - query) -> bucket, as T5 defines it (Raffel et al. 2020, section 2.1): half of the
    buckets are exact, the other half grow logarithmically up to `max_distance`."""
    offset = torch.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = buckets // 2
    # float32 like the reference: a border computed in another precision would move a bucket.
    growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (buckets - exact)
    large = (exact + growth.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, large)
