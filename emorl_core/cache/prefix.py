"""The prefill cache: the longest known prefix of a prompt is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from emorl_core.cache.kv import Memory

Labels = Sequence[Hashable]


class PrefillCache:
    """Memories of passages by their labels, in a radix tree: a common prefix is stored once.

    Bounded in bytes. The least recently used leaf is evicted first, so a system prompt outlives what follows it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._root = _Node((), torch.empty(0), None)
        # By last use. Using a node uses those above it, which count as used later, so the first is always a leaf.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()

    def find(self, labels: Labels) -> tuple[int, Memory | None]:
        """The number of leading labels that are known, and their memory; None if there are none."""
        way = self._walk(labels)
        parts = [node.part(0, count) for node, count in way]
        if not parts:
            return 0, None
        return sum(count for _, count in way), Memory(parts[0] if len(parts) == 1 else torch.cat(parts, dim=3))

    def known(self, labels: Labels) -> int:
        """The number of leading labels that are known."""
        return sum(count for _, count in self._walk(labels))

    def put(self, labels: Labels, memory: Memory, start: int = 0) -> None:
        """Store the memory of labels[start:], or as much of its beginning as the bound allows.

        Nothing is stored when a label before `start` has been evicted.
        """
        way = self._walk(labels)
        known = sum(count for _, count in way)
        if not start <= known < len(labels):
            return
        width = memory.length // (len(labels) - start)
        size = memory.nbytes // (len(labels) - start)
        above = sum(node.nbytes for node, _ in way)
        end = known + min(len(labels) - known, (self.max_bytes - above) // size)
        if end <= known:
            return
        parent = self._root
        if way:
            parent, count = way[-1]
            if count < len(parent.labels):
                parent = self._split(parent, count)
        kv = memory.kv[:, :, :, (known - start) * width : (end - start) * width]
        # a copy, not a view that would keep a larger tensor alive
        alone = kv.untyped_storage().nbytes() == kv.numel() * kv.element_size()
        self._add(_Node(tuple(labels[known:end]), kv if alone else kv.clone(), parent))
        self._use(parent)
        while self.nbytes > self.max_bytes:
            self._remove(next(iter(self._nodes)))

    def discard(self, labels: Labels) -> None:
        """Drop what may be wrong: the last node of this path, everything from the first values that are not finite, and
        all nodes below either."""
        way = [node for node, _ in self._walk(labels)]
        if way:
            self._remove(next((node for node in way if not torch.isfinite(node.kv).all()), way[-1]))

    def clear(self) -> None:
        """Drop everything; needed when the adapters' parameters change."""
        self._root.children.clear()
        self._nodes.clear()
        self.nbytes = 0

    def _walk(self, labels: Labels) -> list[tuple[_Node, int]]:
        """The nodes on the labels' path, and how many labels of each match."""
        way: list[tuple[_Node, int]] = []
        node, place = self._root, 0
        while place < len(labels) and (child := node.children.get(labels[place])) is not None:
            count = common(child.labels, labels[place : place + len(child.labels)])
            way.append((child, count))
            place += count
            if count < len(child.labels):
                break
            node = child
        if way:
            self._use(way[-1][0])
        return way

    def _use(self, node: _Node) -> None:
        while node.parent is not None:
            self._nodes.move_to_end(node)
            node = node.parent

    def _add(self, node: _Node) -> None:
        assert node.parent is not None
        node.parent.children[node.labels[0]] = node
        self._nodes[node] = None
        self.nbytes += node.nbytes

    def _split(self, node: _Node, count: int) -> _Node:
        """Split a node after its first labels; returns the node that then holds those."""
        assert node.parent is not None
        upper = _Node(node.labels[:count], node.part(0, count).clone(), node.parent)
        lower = _Node(node.labels[count:], node.part(count, len(node.labels)).clone(), upper)
        lower.children = node.children
        for child in lower.children.values():
            child.parent = lower
        del self._nodes[node]
        self.nbytes -= node.nbytes
        self._add(upper)
        self._add(lower)
        self._use(lower)
        return upper

    def _remove(self, node: _Node) -> None:
        """Remove a node with all nodes below it."""
        assert node.parent is not None
        del node.parent.children[node.labels[0]]
        below = [node]
        while below:
            each = below.pop()
            below += each.children.values()
            del self._nodes[each]
            self.nbytes -= each.nbytes


class _Node:
    """A run of labels without a fork, and its keys and values [2, L, K, labels * width, d]."""

    __slots__ = ("children", "kv", "labels", "parent")

    def __init__(self, labels: tuple[Hashable, ...], kv: Tensor, parent: _Node | None) -> None:
        self.labels, self.kv, self.parent = labels, kv, parent
        self.children: dict[Hashable, _Node] = {}  # by their first label

    @property
    def nbytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()

    def part(self, first: int, last: int) -> Tensor:
        """The memory of labels[first:last]; a view."""
        width = self.kv.shape[3] // len(self.labels)
        return self.kv[:, :, :, first * width : last * width]


def common(one: Labels, other: Labels) -> int:
    """The length of their common prefix."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next((i for i in range(size) if one[i] != other[i]), size)
