"""The decoding step on CUDA as graphs: recorded once a shape, then replayed with one launch instead of thousands.

A graph reads and writes fixed addresses. So every shape, a bucket, has static input buffers that each call copies its
values into, and its graph belongs to the tensors that one cache has now: it is dropped when they are replaced.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from emorl_core.cache.kv import SIZE_STEP, KVCache, Memory
from emorl_core.errors import UnsupportedModel
from emorl_core.models.t5.step import StepFunction, StepRows

if TYPE_CHECKING:
    from emorl_core.models.t5.model import T5

# Records what a function does and returns what does it again, result included.
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

_WARM_UPS = 3  # before a capture, as torch asks for


def graph_rows(rows: int) -> int:
    """The next of 1, 2, 4, 8, multiples of 8 up to 64, multiples of 32."""
    if rows <= 8:
        return 1 << (rows - 1).bit_length()
    step = 8 if rows <= 64 else 32
    return -(-rows // step) * step


def graph_tokens(tokens: int, capacity: int) -> int:
    """The next power of two times SIZE_STEP, at most the capacity's (one token of a cache is never read)."""
    # A power of two reads twice the tokens at worst, and a text of any length meets one graph a doubling. Multiples of
    # SIZE_STEP would read less, but capture 32 graphs on the way to 512 tokens, for every number of rows and sources;
    # the whole capacity would need one graph, but one long text would then make every short one read as much.
    steps = -(-tokens // SIZE_STEP)
    return min(SIZE_STEP << (steps - 1).bit_length(), capacity - 1)


class GraphedStep:
    """`T5.step` for one new token a lane row. Single-threaded, not for training."""

    def __init__(self, model: T5, *, capture: Capture | None = None, most: int = 64) -> None:
        """capture: CUDA graphs if None; most: graphs kept, over all caches, least recently used out first.

        Raises:
            UnsupportedModel: graphs cannot be captured here.
        """
        self._model = model
        step = StepFunction(model)
        self._step, self._parameters = step.function, step.parameters
        embedding = model.embedding.weight
        assert embedding is not None  # never packed
        self._embedding = embedding
        self._capture = CudaCapture(model.device) if capture is None else capture
        self._most = most
        self._buckets: OrderedDict[tuple[weakref.ref[KVCache], int, int, int], _Bucket] = OrderedDict()
        self._warm_up()

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> Tensor:
        """tokens [M, 1], lanes [M] -> last hidden states [M, D]; writes the new token's keys and values.

        The result is memory of the graph: the next call overwrites it, so who keeps it clones it.
        """
        count = cache.count
        rows = graph_rows(count)
        cache.reserve(1)
        cache.reserve_rows(rows)
        own, cross = cache.tensors()
        total = graph_tokens(max(cache.lengths) + 1, own[0].shape[3])
        bucket = self._bucket(cache, rows, total, graph_tokens(max(cache.source_lengths), cross[0].shape[3]))
        bucket.fill(tokens, lanes, cache)
        if bucket.met and bucket.replay is None:
            layers = tuple(own), tuple(cross)  # the cache's own lists change when it grows
            bucket.replay = self._capture(lambda: self._run(bucket, *layers))
        # A shape that is met once, as by a cache for feeding one row again, is not worth a capture.
        hidden = self._run(bucket, own, cross) if bucket.replay is None else bucket.replay()
        bucket.met = True
        cache.advance(1)
        return hidden[:count]

    def _run(self, bucket: _Bucket, own: Sequence[Tensor], cross: Sequence[Tensor]) -> Tensor:
        """What is captured: static buffers -> [rows, D]. Any number of runs on the same values write the same."""
        x = F.embedding(bucket.tokens, self._embedding)
        distances = bucket.positions.unsqueeze(1) - bucket.span  # [rows, T], from 1
        bias = F.embedding(distances.clamp(min=0), bucket.bias).transpose(1, 2)  # [rows, H, T]
        return self._step(
            x, bucket.lanes, bucket.places, bucket.positions, bias, bucket.source_mask, own, cross, self._parameters
        )

    def _bucket(self, cache: KVCache, rows: int, total: int, sources: int) -> _Bucket:
        key = (weakref.ref(cache), rows, total, sources)
        bucket = self._buckets.get(key)
        if bucket is not None and bucket.belongs_to(cache):
            self._buckets.move_to_end(key)
            return bucket
        for other, held in list(self._buckets.items()):
            owner = other[0]()
            if owner is None or not held.belongs_to(owner):
                del self._buckets[other]
        bucket = self._buckets[key] = _Bucket(self._model, cache, rows, total, sources)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket

    def _warm_up(self) -> None:
        """Capture one graph, so that a device that cannot says so now."""
        model, config = self._model, self._model.config
        cache = model.new_cache()
        shape = (2, config.num_decoder_layers, config.num_heads, 1, config.d_kv)
        cache.insert(Memory(torch.zeros(shape, device=model.device)))
        start = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        try:
            for _ in range(2):
                self(start, start[0], cache)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModel(
                f"compile is on, but no CUDA graph can be captured here: {reason}", param="compile"
            ) from error
        self._buckets.clear()


class _Bucket:
    """The static inputs of one shape over one cache's tensors, and the graph once there is one."""

    def __init__(self, model: T5, cache: KVCache, rows: int, total: int, sources: int) -> None:
        device = model.device
        self.met = False
        self.replay: Callable[[], Tensor] | None = None
        # Weak, so that a cache that lets go of its tensors gives their memory back at once.
        self._tensors = [weakref.ref(tensor) for tensor in _flat(cache)]
        self.tokens, self.positions, self.lanes, self.places = torch.zeros(
            4, rows, dtype=torch.int64, device=device
        ).unbind()
        self.source_mask = torch.empty(rows, sources, device=device)
        # Bias by distance + 1, so that row 0 is for all tokens that come later. The model's table may be replaced by a
        # longer one, this copy stays where the graph reads it.
        later = torch.full((1, model.config.num_heads), float("-inf"), device=device)
        self.bias = torch.cat([later, model.bias_by_distance(total)[:total].float()])  # [1 + T, H]
        self.span = torch.arange(-1, total - 1, device=device)
        self._lanes: Tensor | None = None
        self._source_lengths: list[int] = []

    def belongs_to(self, cache: KVCache) -> bool:
        """Whether the cache's tensors are still those of the graph."""
        return all(known() is tensor for known, tensor in zip(self._tensors, _flat(cache), strict=True))

    def fill(self, tokens: Tensor, lanes: Tensor, cache: KVCache) -> None:
        """Copy a step's values in. Spare rows get the first row's, but keep whatever token they have: any will do."""
        count, rows = cache.count, self.tokens.shape[0]
        self.tokens[:count].copy_(tokens[:, 0], non_blocking=True)
        lengths = cache.lengths + cache.lengths[:1] * (rows - count)
        # Pinned memory of its own every time: torch does not give it away before the copy is done.
        positions = torch.tensor(lengths, pin_memory=self.positions.is_cuda)
        self.positions.copy_(positions, non_blocking=True)
        if self._lanes is lanes and self._source_lengths == cache.source_lengths:
            return
        made = StepRows(lanes, cache, rows)
        self.lanes.copy_(made.lanes)
        self.places.copy_(made.places)
        self.source_mask.fill_(float("-inf"))
        self.source_mask[:, : made.source_mask.shape[1]] = made.source_mask
        self._lanes, self._source_lengths = lanes, list(cache.source_lengths)


class CudaCapture:
    """Captures CUDA graphs into one memory pool: they run one after the other, so they can share all that is not a
    result, and a result need last only until the next graph runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # A pool that has lost its last graph cannot be captured into again: torch raises an internal error.
        pool = next(iter(self._graphs)).pool() if self._graphs else torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    function()
            current.wait_stream(self._stream)
            # What other threads do meanwhile, such as scorers on the same device, is none of this capture's concern.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function()
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _flat(cache: KVCache) -> list[Tensor]:
    own, cross = cache.tensors()
    return own + cross
