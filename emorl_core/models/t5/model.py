"""T5 (Raffel et al. 2020): v1.0 with ReLU and a tied, scaled head; v1.1, FLAN-T5 and mT5 with gated GELU and a separate
head.

Letters: E sources (one per prompt and lane), M lane rows being decoded, S source tokens, T target tokens so
far, q new tokens, D hidden, H heads, L decoder layers. Everything is float32 or bfloat16, as loaded; attention scores
are not scaled (T5's weights include the scale).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from emorl_core.adapters.adapter import Adapter
from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store, round_size
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.index import LaneIndex
from emorl_core.lanes.lane import Coefficients, Lane
from emorl_core.lanes.linear import LaneLinear
from emorl_core.models.checkpoint import Checkpoint
from emorl_core.models.compiling import Compilation
from emorl_core.models.family import Facts, Group, Passage, Piece
from emorl_core.models.graphs import graph_rows
from emorl_core.models.packing import batches
from emorl_core.models.stacking import stack_adapters
from emorl_core.models.t5.blocks import T5Block, attention, embedding_and_head, fused
from emorl_core.models.t5.config import T5Config
from emorl_core.models.t5.fast import FastStep
from emorl_core.models.t5.parts import encodes, only, reads
from emorl_core.models.t5.positions import DecoderPositions, EncoderPositions, padding_mask
from emorl_core.models.t5.prompts import read, read_padded
from emorl_core.types import Quantize

# Tokens in one pass of the encoder: large enough for efficient products, small enough to bound activations.
_PREFILL_TOKENS = 4096


class T5(nn.Module):
    """See `emorl_core.models.family.TrainableModel`."""

    lanes_apart = False  # in the base's lane, a prompt is encoded once for the replies of all lanes in a pass

    def __init__(
        self,
        config: T5Config,
        checkpoint: Checkpoint,
        facts: Facts,
        *,
        start_token_id: int,
        compilations: Mapping[str, Callable[[T5, Path, bool], Compilation[T5]]],
    ) -> None:
        """start_token_id: the decoder's; compilations: device type -> the function that compiles or captures `step` for
        it."""
        super().__init__()
        self.config, self.facts = config, facts
        self.start_token_id = start_token_id
        self.adapters: tuple[str, ...] = ()
        self.encoding: tuple[bool, ...] = ()  # which of them change the encoder's output
        self._reading: tuple[bool, ...] = ()  # which change that, or its cross-attention keys and values
        self._compilations = compilations
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
        self._encoder_bias, self._decoder_bias = (
            checkpoint.tensor(f"{stack}.{bias}", (config.buckets, config.num_heads)) for stack in ("encoder", "decoder")
        )
        self.encoder_positions = EncoderPositions(config, self._encoder_bias)
        self.decoder_positions = DecoderPositions(config, self._decoder_bias)
        self._fast: FastStep | None = None

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
        self._fast = None
        stack_adapters(self.linears(), adapters, training=training)
        self.adapters = tuple(adapter.name for adapter in adapters)
        self.encoding = tuple(any(map(encodes, adapter.modules)) for adapter in adapters)
        self._reading = tuple(any(map(reads, adapter.modules)) for adapter in adapters)

    def quantize(self, how: Quantize) -> None:
        for matrix in dict.fromkeys((self.embedding, self.lm_head)):
            matrix.quantize(how, multiplied=matrix is self.lm_head, looked_up=True)
        for _, layer in self.linears():
            layer.base.quantize(how)

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
        return self._fast is not None

    def compilation(self, folder: Path, *, ragged: bool = False) -> Compilation[T5]:
        """For the adapters attached now: `step` and `head` compiled on a CPU, `step` captured as graphs on CUDA.
        ragged: on a CPU, compile `ragged_step` as well.

        The result of the fast `step` is valid until the next step. folder: where compiled functions are stored.

        Raises:
            UnsupportedModel: another device.
        """
        device = self.facts.device
        if device.type not in self._compilations:
            raise UnsupportedModel(
                f"compile is on and the device is {device}; allowed: {', '.join(self._compilations)}", param="compile"
            )
        return self._compilations[device.type](self, folder, ragged)

    def with_step(self, fast: FastStep) -> T5:
        """This model with the same parameters and another `step` for one new token per row."""
        other = copy.copy(self)
        other._fast = fast
        return other

    # -- the engine's methods ------------------------------------------------------------------------------------

    def new_cache(self) -> KVCache:
        device = self.facts.device
        # On a CPU, batched products of few rows are up to three times as fast in float32 (docs/log.md), and more
        # precise. A compiled step has no such products, and reads half as much in bfloat16.
        dtype = torch.float32 if device.type == "cpu" and not self.compiled else self.facts.dtype
        layers, heads, d_kv = self.config.num_decoder_layers, self.config.num_heads, self.config.d_kv
        own, cross = (Store(layers, heads, d_kv, dtype=dtype, device=device) for _ in range(2))
        return KVCache(own, cross, rows_for=graph_rows if self.compiled and device.type == "cuda" else int)

    def passage(self, lane: Lane, reply: Sequence[int]) -> Passage:  # noqa: ARG002 - the decoder's
        """Lanes whose adapters act only on the decoder's own layers share one reading of the prompt."""
        return Passage((Lane(only(lane.coefficients, self._reading), lane.prompt_ids),), len(lane.prompt_ids))

    def unread(self, lane: Lane, reply: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002
        return (self.start_token_id, *reply)

    def acting(self, lane: Lane) -> Coefficients:
        return lane.coefficients

    def already_said(self, prompt_ids: Sequence[int]) -> Sequence[int]:  # noqa: ARG002 - the encoder's
        return (self.start_token_id,)

    @torch.inference_mode()
    def prefill(self, pieces: Sequence[Piece]) -> list[Memory]:
        lanes = [lane for piece in pieces for lane in piece.passage.labels if isinstance(lane, Lane)]  # one label each
        memories: dict[int, Memory] = {}
        for batch in batches([(len(lane.prompt_ids),) for lane in lanes], (_PREFILL_TOKENS,)):
            kvs = read(self, [lanes[i] for i in batch])
            memories.update((i, Memory(kv.contiguous())) for i, kv in zip(batch, kvs, strict=True))
        return [memories[i] for i in range(len(lanes))]

    @torch.inference_mode()
    def step(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        new = tokens.shape[1]
        if new == 1 and self._fast is not None:
            return self._fast(tokens, lanes, cache).unsqueeze(1)
        cache.reserve(new)
        lengths = torch.tensor(cache.lengths, device=tokens.device)
        positions = lengths.unsqueeze(1) + torch.arange(new, device=tokens.device)  # [M, q]
        hidden = self._decoded(tokens, positions, max(cache.lengths) + new, lanes.repeat(new), cache)
        cache.advance(new)
        return hidden

    @torch.inference_mode()
    def ragged_step(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> Tensor:
        fast = None if self._fast is None else self._fast.ragged(tokens, counts, lanes, cache)
        if fast is not None:
            return fast
        cache.reserve_each(counts)
        # Every token is a separate row, with a copy of the keys and values that it attends to.
        places, at = cache.own.ahead(counts)
        rows, positions = torch.tensor([places, at], device=tokens.device)
        hidden = self._decoded(tokens.unsqueeze(1), positions.unsqueeze(1), max(at) + 1, lanes, cache, rows)
        cache.advance_each(counts)
        return hidden[:, 0]

    def _decoded(
        self,
        tokens: Tensor,
        positions: Tensor,
        longest: int,
        lanes: LaneIndex,
        cache: KVCache,
        places: Tensor | None = None,
    ) -> Tensor:
        """tokens and positions [M, q] -> hidden states [M, q, D]; longest: most tokens of a row, new ones included;
        lanes: of all tokens; places: [M] in the cache, as in `Store.read`."""
        own, cross = cache.own, cache.cross
        assert cross is not None  # set by `new_cache`
        rows, total = tokens.shape[0], round_size(longest)
        mask, padding = self.decoder_positions.causal(positions, total), cross.padding()
        if places is not None and padding is not None:
            padding = padding[places]
        x = self.embedding.rows(tokens).view(tokens.numel(), -1)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, T5Block)
            q, k, v = block.project(x, lanes, rows)
            own.write(i, k.transpose(1, 2), v.transpose(1, 2), positions, places)
            x = block.attended(x, attention(q, *own.read(i, total, places), mask), lanes)
            x = block.cross_attend(x, *cross.read(i, places=places), padding, lanes, rows)
            x = block.feed_forward(x, lanes)
        return self.norm(x, self.decoder_norm).view(*tokens.shape, -1)

    def head(self, hidden: Tensor) -> Tensor:
        scaled = (hidden * self.head_scale).to(self.lm_head.dtype)
        weight = self.lm_head.weight
        if weight is None:  # quantised
            return self.lm_head(scaled).float()
        if self._fast is not None and hidden.shape[0] == 1 and (row := self._fast.head_row(weight, scaled)) is not None:
            return row
        if scaled.dtype == torch.float32 and scaled.device.type == "cpu" and hidden.shape[0] <= 16:
            # The wide matrix on the left: with few rows this is 2 to 3 times as fast in the CPU library.
            return torch.mm(weight, scaled.t()).t().float().contiguous()
        return F.linear(scaled, weight).float()

    def uncapped_head(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def head_rows(self, token_ids: Tensor) -> Tensor:
        return self.lm_head.rows(token_ids).float() * self.head_scale

    # -- whole sequences (prefill and training) ------------------------------------------------------------------

    def reply_hidden(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        lanes = [group.lane for group in groups]
        replies = [reply for group in groups for reply in group.replies]
        ids, mask = self.padded(replies)
        start = torch.full_like(ids[:, :1], self.start_token_id)
        # A group's replies read one copy of their prompt's keys and values.
        lengths = [len(lane.prompt_ids) for lane in lanes]
        rows = self.index(lanes).each(len(groups[0].replies))
        return self.decode(torch.cat([start, ids[:, :-1]], dim=1), read_padded(self, lanes), lengths, rows), mask

    def keeping_prompts(self) -> AbstractContextManager[None]:
        return nullcontext()  # adapters act on the encoder

    def index(self, lanes: Sequence[Lane]) -> LaneIndex:
        return LaneIndex.of([lane.coefficients for lane in lanes], len(self.adapters), self.facts.device)

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids [rows, T] padded with 0 on the right, and the mask [rows, T] of real tokens."""
        longest = max(1, max(len(row) for row in rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.facts.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.facts.device)
        return ids, torch.arange(longest, device=self.facts.device) < lengths.unsqueeze(1)

    def decode(self, ids: Tensor, cross: Tensor, source_lengths: Sequence[int], lanes: LaneIndex) -> Tensor:
        """Teacher forcing without a cache.

        Args:
            ids: decoder inputs [M, T], the start token first.
            cross: keys and values of padded sources [2, L, E, H, S, d_kv]; M is E or a multiple of it, and row m reads
                source m // (M // E), so that k replies to one prompt need one copy.
            source_lengths: tokens of each source; the rest is padding.
            lanes: of M rows.

        Returns:
            Last hidden states [M, T, D].
        """
        rows, size = ids.shape
        positions = torch.arange(size, device=self.facts.device).expand(rows, size)
        mask = self.decoder_positions.causal(positions[:1], size)
        source_mask = padding_mask(source_lengths, cross.shape[4], self.facts.dtype, self.facts.device)
        index = lanes.repeat(size)
        x = self.embedding.rows(ids).view(rows * size, -1)
        for i, block in enumerate(self.decoder):
            assert isinstance(block, T5Block)
            q, k, v = block.project(x, index, rows)
            x = block.attended(x, attention(q, k, v, mask), index)
            # Cross-attention ignores the order of target tokens: all replies to a source are one sequence of queries.
            x = block.cross_attend(x, cross[0, i], cross[1, i], source_mask, index, cross.shape[2])
            x = block.feed_forward(x, index)
        return self.norm(x, self.decoder_norm).view(rows, size, -1)

    # -- parts ---------------------------------------------------------------------------------------------------

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.config.d_model,), weight, self.config.epsilon)
