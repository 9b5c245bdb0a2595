"""Slots of the key-value cache against a naive twin: plain lists of tensors that never move."""

from __future__ import annotations

import random
import sys

import psutil
import pytest
import torch
from torch import Tensor

from emorl_core.cache.kv import KVCache, Memory
from emorl_core.cache.store import Store

LAYERS, HEADS, D_KV = 2, 3, 4


def new_cache(*, encoder: bool = True) -> KVCache:
    own, cross = (Store(LAYERS, HEADS, D_KV, dtype=torch.float32, device=torch.device("cpu")) for _ in range(2))
    return KVCache(own, cross if encoder else None)


def crossed(cache: KVCache) -> Store:
    assert cache.cross is not None
    return cache.cross


class Twin:
    """Per row: what it read of its prompt [2, L, H, S, d] and self-attention [2, L, H, T, d], concatenated as tokens
    come. A decoder-only row has its prompt in its self-attention."""

    def __init__(self, *, encoder: bool = True) -> None:
        self.encoder = encoder
        self.cross: list[Tensor] = []
        self.own: list[Tensor] = []

    def insert(self, kv: Tensor) -> None:
        self.cross.append(kv)
        self.own.append(kv[:, :, :, :0] if self.encoder else kv)

    def remove(self, place: int) -> int | None:
        last = len(self.own) - 1
        for rows in (self.cross, self.own):
            rows[place] = rows[last]
            rows.pop()
        return None if place == last else last

    def append(self, place: int, new: Tensor) -> None:
        self.own[place] = torch.cat([self.own[place], new], dim=3)


def memory(sources: int, generator: torch.Generator) -> Memory:
    return Memory(torch.randn(2, LAYERS, HEADS, sources, D_KV, generator=generator))


def feed(cache: KVCache, twins: list[Twin], generator: torch.Generator, new: int) -> None:
    """Write `new` tokens to every row, layer by layer as a model does, then advance. Inference mode, as in a model."""
    with torch.inference_mode():
        rows = cache.count
        cache.reserve(new)
        positions = torch.tensor(cache.lengths).unsqueeze(1) + torch.arange(new)
        keys = torch.randn(LAYERS, rows, new, HEADS, D_KV, generator=generator)
        values = torch.randn(LAYERS, rows, new, HEADS, D_KV, generator=generator)
        for layer in range(LAYERS):
            cache.own.write(layer, keys[layer], values[layer], positions)
        cache.advance(new)
        for row in range(rows):
            twins[0].append(row, torch.stack([keys[:, row], values[:, row]]).permute(0, 1, 3, 2, 4).clone())


def check(cache: KVCache, twin: Twin) -> None:
    check_store(cache.own, twin.own)
    if cache.cross is not None:
        check_store(cache.cross, twin.cross)
    assert cache.count == len(twin.own)
    assert cache.lengths == cache.own.lengths


def check_store(store: Store, twin: list[Tensor]) -> None:
    assert store.count == len(twin) == len(store.lengths)
    if not store.count:
        return
    assert store.lengths == [row.shape[3] for row in twin]
    assert store.indices().tolist() == list(range(store.count))
    longest = max(store.lengths)
    mask = store.padding()
    if mask is None:
        assert min(store.lengths) == longest
    else:
        expected = [[0.0] * n + [float("-inf")] * (longest - n) for n in store.lengths]
        assert mask[:, 0, 0].tolist() == expected
    for layer in range(LAYERS):
        for half, both in enumerate(store.read(layer)):
            assert torch.isfinite(both).all(), "entries nobody wrote must be finite: the mask multiplies them by 0"
            assert both.shape == (store.count, HEADS, longest, D_KV)
            for row in range(store.count):
                assert torch.equal(both[row, :, : store.lengths[row]], twin[row][half, layer])


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_random_operations_against_the_naive_twin(seed: int, encoder: bool) -> None:
    """insert, fork, remove, feed, take and give_back in random order, through several growths."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cache, twin = new_cache(encoder=encoder), Twin(encoder=encoder)
    for _ in range(120):
        action = draw.choice(["insert", "insert", "feed", "feed", "fork", "remove", "take"])
        if action == "insert" and cache.count < 14:
            kv = memory(draw.randint(0 if not encoder else 1, 70), generator)
            assert cache.insert(kv) == len(twin.own)
            twin.insert(kv.kv)
        elif action == "feed" and cache.count:
            feed(cache, [twin], generator, draw.randint(1, 3))
        elif action == "fork" and 0 < cache.count < 14:
            source = draw.randrange(cache.count)
            assert cache.fork(source) == len(twin.own)
            twin.cross.append(twin.cross[source])
            twin.own.append(twin.own[source])
        elif action == "remove" and cache.count:
            place = draw.randrange(cache.count)
            assert cache.remove(place, wipe=draw.random() < 0.3) == twin.remove(place)
        elif action == "take" and cache.count:
            places = draw.sample(range(cache.count), draw.randint(1, cache.count))
            apart, other = cache.take(places), Twin(encoder=encoder)
            other.cross = [twin.cross[place] for place in places]
            other.own = [twin.own[place] for place in places]
            check(apart, other)
            feed(apart, [other], generator, draw.randint(1, 40))
            cache.give_back(places, apart)
            for row, place in enumerate(places):
                twin.own[place] = other.own[row]
        check(cache, twin)
    assert cache.nbytes == sum(t.numel() * t.element_size() for store in cache.stores for t in store.layers)


def test_heads_may_be_grouped() -> None:
    """A store has as many heads as there are keys and values, whatever the number of query heads."""
    store = Store(1, 2, D_KV, dtype=torch.bfloat16, device=torch.device("cpu"))
    store.add(torch.ones(2, 1, 2, 3, D_KV))
    store.add()
    store.reserve(1)
    written = torch.full((2, 1, 2, D_KV), 2.0)
    store.write(0, written, written, torch.tensor([[3], [0]]))
    store.advance(1)
    assert store.lengths == [4, 1]
    keys, _ = store.read(0)
    assert keys.shape == (2, 2, 4, D_KV)
    assert keys[:, 0, :, 0].tolist() == [[1.0, 1.0, 1.0, 2.0], [2.0, 0.0, 0.0, 0.0]]


def test_rows_of_different_lengths_are_written_at_their_own_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    cache, twin = new_cache(), Twin()
    for sources in (3, 5):
        kv = memory(sources, generator)
        cache.insert(kv)
        twin.insert(kv.kv)
        feed(cache, [twin], generator, 4)
    assert cache.lengths == [8, 4]
    check(cache, twin)


def test_a_write_that_is_not_followed_by_advance_leaves_no_trace() -> None:
    """A step that fails half-way is run again at the same positions."""
    generator = torch.Generator().manual_seed(0)
    cache, twin = new_cache(), Twin()
    kv = memory(3, generator)
    cache.insert(kv)
    twin.insert(kv.kv)
    junk = torch.full((1, 1, HEADS, D_KV), 7.0)
    cache.own.write(0, junk, junk, torch.zeros(1, 1, dtype=torch.int64))
    check(cache, twin)
    feed(cache, [twin], generator, 1)
    check(cache, twin)


def test_wiping_leaves_nothing_that_is_not_finite_anywhere() -> None:
    """Also where a row had been before it moved into another's place."""
    cache = new_cache()
    nan = Memory(torch.full((2, LAYERS, HEADS, 6, D_KV), float("nan")))
    for _ in range(3):
        cache.insert(nan)
    cache.remove(0, wipe=True)  # the last one moves here
    cache.remove(0, wipe=True)
    cache.remove(0, wipe=True)
    assert cache.count == 0
    assert all(torch.isfinite(layer).all() for layer in crossed(cache).layers)
    assert all(torch.isfinite(layer).all() for layer in cache.own.layers)


def test_clearing_gives_the_memory_back() -> None:
    cache = new_cache()
    small = cache.nbytes
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        cache.insert(memory(50, generator))
    assert cache.nbytes > small
    cache.clear()
    assert (cache.count, cache.nbytes, cache.lengths) == (0, small, [])


def test_capacity_grows_by_doubling_only() -> None:
    cache = new_cache()
    generator = torch.Generator().manual_seed(0)
    sizes = {cache.nbytes}
    for _ in range(33):
        cache.insert(memory(2, generator))
        sizes.add(cache.nbytes)
    smallest = min(sizes)
    assert sorted(sizes) == [smallest * 2**n for n in range(len(sizes))]
    assert len(sizes) == 5  # 4, 8, 16, 32, 64 rows


@pytest.mark.skipif(sys.platform != "linux", reason="other systems report their pages otherwise")
def test_a_long_row_takes_no_memory_in_the_others() -> None:
    store = Store(8, 3, 64, dtype=torch.float32, device=torch.device("cpu"))
    for _ in range(24):
        store.add(torch.ones(2, 8, 3, 20, 64))
    long = torch.ones(2, 8, 3, 2000, 64)
    row_bytes = long.numel() * 4
    before = psutil.Process().memory_info().rss
    store.add(long)
    assert psutil.Process().memory_info().rss - before < 3 * row_bytes
    assert store.nbytes > 20 * row_bytes


def test_a_memory_knows_its_size() -> None:
    kv = memory(7, torch.Generator().manual_seed(0))
    assert (kv.length, kv.nbytes) == (7, 2 * LAYERS * HEADS * 7 * D_KV * 4)


def test_a_large_empty_cache_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache()
    small = cache.nbytes
    monkeypatch.setattr("emorl_core.cache.kv._KEPT_BYTES", 4 * small)

    def rows(number: int, sources: int) -> None:
        for _ in range(number):
            cache.insert(Memory(torch.ones(2, 2, 3, sources, 4)))

    rows(5, 20)
    held = cache.nbytes
    assert small < held < 4 * small
    for _ in range(5):
        cache.remove(0)
    assert cache.nbytes == held, "what is not much is kept for the next rows"
    rows(5, 200)
    held = cache.nbytes
    for _ in range(4):
        cache.remove(0)
    assert cache.nbytes == held, "a row is still in it"
    cache.remove(0)
    assert cache.nbytes == small
    rows(1, 7)
    assert crossed(cache).read(0)[0].eq(1).all()
