"""CUDA graphs: recorded once per shape, then replayed with one launch instead of thousands."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from emorl_core.cache.store import SIZE_STEP

# Records a function and returns a callable that replays it, result included.
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
    # A power of two reads twice the tokens at worst, and a growing text needs one graph per doubling. Multiples of
    # SIZE_STEP would read less, but capture 32 graphs on the way to 512 tokens, for every number of rows and sources;
    # the whole capacity would need one graph, but one long text would then make every short one read as much.
    steps = -(-tokens // SIZE_STEP)
    return min(SIZE_STEP << (steps - 1).bit_length(), capacity - 1)


class CudaCapture:
    """Captures CUDA graphs into one memory pool: they run one after the other, so they share all memory but that of
    results, and a result is good until the next graph runs."""

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
            # Other threads, such as scorers, may use the device meanwhile without invalidating the capture.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function()
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
