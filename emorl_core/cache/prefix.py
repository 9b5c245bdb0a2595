"""What was read already: the longest known beginning of a prompt is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from emorl_core.cache.kv import Memory

Labels = Sequence[Hashable]


class PrefillCache:
    """Memories by what was read, label by label, in a radix tree: what beginnings have in common is held once.

    Bounded by bytes. The least recently used end of a branch goes first, so a system prompt outlives what follows it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._root = _Node((), torch.empty(0), None)
        # By last use. Whoever uses a node uses those above it, which then count as used later: the first is a leaf.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()

    def find(self, labels: Labels) -> tuple[int, Memory | None]:
        """How many of the first labels are known, and what was read there; None for none of them."""
        way = self._walk(labels)
        parts = [node.part(0, count) for node, count in way]
        if not parts:
            return 0, None
        return sum(count for _, count in way), Memory(parts[0] if len(parts) == 1 else torch.cat(parts, dim=3))

    def known(self, labels: Labels) -> int:
        """How many of the first labels are known."""
        return sum(count for _, count in self._walk(labels))

    def put(self, labels: Labels, memory: Memory, start: int = 0) -> None:
        """Keep what was read at labels[start:], as much of its beginning as the bound allows.

        Nothing is kept when one before `start` is not known any more.
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
        alone = kv.untyped_storage().nbytes() == kv.numel() * kv.element_size()  # not a part of something larger
        self._add(_Node(tuple(labels[known:end]), kv if alone else kv.clone(), parent))
        self._use(parent)
        while self.nbytes > self.max_bytes:
            self._remove(next(iter(self._nodes)))

    def discard(self, labels: Labels) -> None:
        """Forget what may have been read wrongly: the end of this way, all that follows what is not finite, and what
        was read behind either."""
        way = [node for node, _ in self._walk(labels)]
        if way:
            self._remove(next((node for node in way if not torch.isfinite(node.kv).all()), way[-1]))

    def clear(self) -> None:
        """Forget everything; needed when the adapters' parameters change."""
        self._root.children.clear()
        self._nodes.clear()
        self.nbytes = 0

    def _walk(self, labels: Labels) -> list[tuple[_Node, int]]:
        """The nodes that the labels lead through, and how many labels of each they share."""
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
        """Cut a node behind its first labels; returns what then holds those."""
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
        """Take out a node with all below it."""
        assert node.parent is not None
        del node.parent.children[node.labels[0]]
        below = [node]
        while below:
            each = below.pop()
            below += each.children.values()
            del self._nodes[each]
            self.nbytes -= each.nbytes


class _Node:
    """Labels that follow each other in all ways known so far, and keys and values [2, L, K, labels * width, d]."""

    __slots__ = ("children", "kv", "labels", "parent")

    def __init__(self, labels: tuple[Hashable, ...], kv: Tensor, parent: _Node | None) -> None:
        self.labels, self.kv, self.parent = labels, kv, parent
        self.children: dict[Hashable, _Node] = {}  # by their first label

    @property
    def nbytes(self) -> int:
        return self.kv.numel() * self.kv.element_size()

    def part(self, first: int, last: int) -> Tensor:
        """Of labels[first:last]; a view."""
        width = self.kv.shape[3] // len(self.labels)
        return self.kv[:, :, :, first * width : last * width]


def common(one: Labels, other: Labels) -> int:
    """How many of their first labels are the same."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next((i for i in range(size) if one[i] != other[i]), size)
