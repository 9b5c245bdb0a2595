"""Convex polygons of the triangle, and the upper envelope of planes over them, by rules and by brute force."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from emorl_core.engine.planes import envelope
from emorl_core.engine.polygons import WHOLE, Polygon, centre, cut, depth, height, share, width

NARROW = 1e-7


def places(count: int, seed: int = 0) -> list[tuple[float, float, float]]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        low, high = sorted((draw.random(), draw.random()))
        found.append((low, high - low, 1 - high))
    return found


def planes(*rows: list[float]) -> torch.Tensor:
    """One row a token: its logits at the three corners."""
    return torch.tensor(rows, dtype=torch.float64).t().contiguous()


def test_a_line_cuts_the_triangle_in_two_with_common_corners() -> None:
    for seed in range(50):
        plane = [random.Random(seed * 3 + k).uniform(-1, 1) for k in range(3)]
        one, other = cut(WHOLE, plane), cut(WHOLE, [-each for each in plane])
        assert share(one) + share(other) == pytest.approx(1.0)
        made = {place for place in one if place not in WHOLE}
        assert made == {place for place in other if place not in WHOLE}
        assert all(abs(height(place, plane)) < 1e-15 for place in made)


def test_cuts_that_only_touch_leave_all_or_nothing_wide() -> None:
    assert cut(WHOLE, [1, 0, 0]) == WHOLE
    assert width(cut(WHOLE, [-1, 0, 0])) == 0.0, "an edge"
    assert width(cut(WHOLE, [-1, -1, 0])) == 0.0, "a corner"
    assert cut(WHOLE, [-1, -1, -1]) == ()
    assert cut((), [1, 1, 1]) == ()


def test_measures() -> None:
    half = cut(WHOLE, [1, -1, 0])
    assert (share(WHOLE), width(WHOLE), share(half)) == (1.0, 1.0, 0.5)
    assert depth(WHOLE, centre(WHOLE)) == pytest.approx(6**-0.5)
    assert depth(half, (0.25, 0.75, 0.0)) == pytest.approx(-(0.5**0.5) / 2)
    assert depth(half, (0.25, 0.25, 0.5)) == pytest.approx(0.0)
    assert depth(tuple(reversed(half)), centre(half)) == pytest.approx(depth(half, centre(half)))


@pytest.mark.parametrize("tokens", [2, 7, 300, 5000])
def test_the_envelope_is_what_the_largest_of_all_is_everywhere(tokens: int) -> None:
    for seed in range(5):
        logits = torch.randn(3, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        polygon: Polygon = cut(WHOLE, [0.5, -0.3, 0.4]) if seed % 2 else WHOLE
        parts = dict(envelope(logits, polygon, NARROW))
        assert sum(map(share, parts.values())) == pytest.approx(share(polygon))
        inside = torch.tensor([place for place in places(2000, seed) if depth(polygon, place) > 1e-9])
        best = (inside.double() @ logits).argmax(dim=1).tolist()
        for place, token in zip(inside.tolist(), best, strict=True):
            assert depth(parts[token], place) > -1e-7  # float32 places
        assert set(best) <= set(parts)


def test_tokens_that_tie_on_an_edge_or_everywhere_have_one_winner_inside() -> None:
    ((token, part),) = envelope(planes([1, 1, 0], [1, 1, 2]), WHOLE, NARROW)
    assert (token, set(part)) == (1, set(WHOLE)), "equal along the edge from the first corner to the second"
    ((token, part),) = envelope(planes([1, 1, 2], [1, 1, 0]), WHOLE, NARROW)
    assert (token, set(part)) == (0, set(WHOLE))
    ((token, part),) = envelope(planes([1, 2, 3], [1, 2, 3], [0, 0, 0]), WHOLE, NARROW)
    assert (token, part) == (0, WHOLE), "twins: the first, as greedy decoding takes it"
    found = dict(envelope(planes([1, 0, 0], [0, 1, 0], [0, 0, 1], [1 / 3, 1 / 3, 1 / 3]), WHOLE, NARROW))
    assert sorted(found) == [0, 1, 2], "the fourth equals the others in one point only"
    assert [share(part) for part in found.values()] == pytest.approx([1 / 3] * 3)


def test_a_token_that_is_largest_only_far_from_the_corners_is_found() -> None:
    spike = [0.9, 0.9, 0.9]
    found = dict(envelope(planes([2, 0, 0], [0, 2, 0], [0, 0, 2], spike), WHOLE, NARROW))
    assert sorted(found) == [0, 1, 2, 3]
    assert depth(found[3], centre(WHOLE)) > 0


def test_narrow_polygons_are_not_divided() -> None:
    logits = planes([1, 0, 0.5], [0, 1, 0.5])
    sliver = cut(cut(WHOLE, [-1, 1, 2e-8]), [1, -1, 2e-8])
    assert 0 < width(sliver) < NARROW
    ((token, part),) = envelope(logits, sliver, NARROW)
    assert part == sliver
    assert token in (0, 1)
    assert len(envelope(logits, sliver, 1e-9)) == 2


def test_logits_far_apart_do_not_upset_it() -> None:
    """A token that may not be chosen has -1e30."""
    rows: list[Any] = [[5, 0, 0], [0, 5, 0], [-1e30, -1e30, -1e30]]
    assert sorted(dict(envelope(planes(*rows), WHOLE, NARROW))) == [0, 1]
