"""CUDA graphs of the decoding step: recorded once per shape, then replayed with one launch instead of thousands.

A graph reads and writes fixed addresses. So every shape (bucket) has static input buffers that each call copies its
values into, and its graph belongs to the current tensors of one cache: it is dropped when they are replaced.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.errors import UnsupportedModel
from emorl_core.lanes.index import LaneIndex
from emorl_core.models.compiling import Compilation
from emorl_core.models.graphs import Capture, CudaCapture, graph_rows, graph_tokens
from emorl_core.models.t5.model import T5
from emorl_core.models.t5.step import StepFunction, StepRows


class GraphedStep:
    """`T5.step` for one new token per lane row. Single-threaded, not for training."""

    def __init__(self, model: T5, *, capture: Capture | None = None, most: int = 64) -> None:
        """capture: CUDA graphs if None; most: graphs kept over all caches, evicting the least recently used.

        Raises:
            UnsupportedModel: graphs cannot be captured on this device.
        """
        self._model = model
        step = StepFunction(model)
        self._step, self._parameters = step.function, step.tensors.parameters
        embedding = model.embedding.weight
        assert embedding is not None  # never packed
        self._embedding = embedding
        self._capture = CudaCapture(model.facts.device) if capture is None else capture
        self._most = most
        self._buckets: OrderedDict[tuple[weakref.ref[KVCache], int, int, int, int], _Bucket] = OrderedDict()
        self._warm_up()

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes of M rows -> last hidden states [M, D]; writes the new token's keys and values.

        The result is memory of the graph, which the next call overwrites: clone it to keep it.
        """
        count = cache.count
        rows = graph_rows(count)
        cache.reserve(1)
        cache.reserve_rows(rows)
        assert cache.cross is not None
        own, cross = cache.own.layers, cache.cross.layers
        total = graph_tokens(max(cache.lengths) + 1, cache.own.capacity)
        sources = graph_tokens(max(cache.cross.lengths), cache.cross.capacity)
        bucket = self._bucket(cache, rows, total, sources, lanes.used()[0].shape[1])
        bucket.fill(tokens, lanes, cache)
        if bucket.met and bucket.replay is None:
            layers = tuple(own), tuple(cross)  # the cache's own lists change when it grows
            bucket.replay = self._capture(lambda: self._run(bucket, *layers))
        # A shape that occurs only once, as when one row is fed again, is not worth a capture.
        hidden = self._run(bucket, own, cross) if bucket.replay is None else bucket.replay()
        bucket.met = True
        cache.advance(1)
        return hidden[:count]

    def ragged(self, tokens: Tensor, counts: Sequence[int], lanes: LaneIndex, cache: KVCache) -> None:
        """Not supported: it would need a graph for every number of tokens."""

    def head_row(self, weight: Tensor, hidden: Tensor) -> None:
        """Not supported: a GPU's own product is as fast."""

    def _run(self, bucket: _Bucket, own: Sequence[Tensor], cross: Sequence[Tensor]) -> Tensor:
        """The captured function: static buffers -> [rows, D]. Idempotent: runs on the same values write the same."""
        x = F.embedding(bucket.tokens, self._embedding)
        distances = bucket.positions.unsqueeze(1) - bucket.span  # [rows, T], from 1
        bias = F.embedding(distances.clamp(min=0), bucket.bias).transpose(1, 2)  # [rows, H, T]
        return self._step(
            x,
            bucket.used,
            bucket.coefficients,
            bucket.places,
            bucket.positions,
            bias,
            bucket.source_mask,
            own,
            cross,
            self._parameters,
        )

    def _bucket(self, cache: KVCache, rows: int, total: int, sources: int, used: int) -> _Bucket:
        key = (weakref.ref(cache), rows, total, sources, used)
        bucket = self._buckets.get(key)
        if bucket is not None and bucket.belongs_to(cache):
            self._buckets.move_to_end(key)
            return bucket
        for other, held in list(self._buckets.items()):
            owner = other[0]()
            if owner is None or not held.belongs_to(owner):
                del self._buckets[other]
        bucket = self._buckets[key] = _Bucket(self._model, cache, rows, total, sources, used)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket

    def _warm_up(self) -> None:
        """Capture one graph, so that a device that does not support it fails now."""
        model, config = self._model, self._model.config
        cache = model.new_cache()
        shape = (2, config.num_decoder_layers, config.num_heads, 1, config.d_kv)
        device = model.facts.device
        cache.insert(Memory(torch.zeros(shape, device=device)))
        start = torch.zeros(1, 1, dtype=torch.int64, device=device)
        lanes = LaneIndex(torch.zeros(1, len(model.adapters), device=device))
        try:
            for _ in range(2):
                self(start, lanes, cache)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModel(
                f"compile is on, but no CUDA graph can be captured here: {reason}", param="compile"
            ) from error
        self._buckets.clear()


def graphs(model: T5, folder: Path, ragged: bool = False) -> Compilation[T5]:  # noqa: ARG001 - none are of that
    return Compilation([], folder, lambda _: model.with_step(GraphedStep(model)))


class _Bucket:
    """The static inputs for one shape and one cache's tensors, and the graph once it is captured."""

    def __init__(self, model: T5, cache: KVCache, rows: int, total: int, sources: int, used: int) -> None:
        device = model.facts.device
        self.met = False
        self.replay: Callable[[], Tensor] | None = None
        # Weak references, so that memory is freed as soon as a cache drops its tensors.
        self._tensors = [weakref.ref(tensor) for tensor in _flat(cache)]
        self.tokens, self.positions, self.places = torch.zeros(3, rows, dtype=torch.int64, device=device).unbind()
        self.used = torch.zeros(rows, used, dtype=torch.int64, device=device)
        self.coefficients = torch.zeros(rows, used, device=device)
        self.source_mask = torch.empty(rows, sources, device=device)
        # Bias by distance + 1, so that row 0 is for all later tokens. The model's table may be replaced by a longer
        # one; this copy stays at the address that the graph reads.
        later = torch.full((1, model.config.num_heads), float("-inf"), device=device)
        self.bias = torch.cat([later, model.decoder_positions.by_distance(total)[:total].float()])  # [1 + T, H]
        self.span = torch.arange(-1, total - 1, device=device)
        self._lanes: LaneIndex | None = None
        self._source_lengths: list[int] = []

    def belongs_to(self, cache: KVCache) -> bool:
        """Whether the cache still has the tensors that the graph uses."""
        return all(known() is tensor for known, tensor in zip(self._tensors, _flat(cache), strict=True))

    def fill(self, tokens: Tensor, lanes: LaneIndex, cache: KVCache) -> None:
        """Copy a step's values into the buffers. Spare rows repeat the first row, except for the token, which is
        arbitrary."""
        count, rows = cache.count, self.tokens.shape[0]
        self.tokens[:count].copy_(tokens[:, 0], non_blocking=True)
        lengths = cache.lengths + cache.lengths[:1] * (rows - count)
        # A new pinned buffer every time: torch does not reuse one before its copy is done.
        positions = torch.tensor(lengths, pin_memory=self.positions.is_cuda)
        self.positions.copy_(positions, non_blocking=True)
        assert cache.cross is not None
        if self._lanes is lanes and self._source_lengths == cache.cross.lengths:
            return
        made = StepRows(lanes, cache, rows)
        self.used.copy_(made.used)
        self.coefficients.copy_(made.coefficients)
        self.places.copy_(made.places)
        self.source_mask.fill_(float("-inf"))
        self.source_mask[:, : made.source_mask.shape[1]] = made.source_mask
        self._lanes, self._source_lengths = lanes, list(cache.cross.lengths)


def _flat(cache: KVCache) -> list[Tensor]:
    return [layer for store in cache.stores for layer in store.layers]
