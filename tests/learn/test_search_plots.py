"""Plots of a search: drawn for any number of objectives, in both formats, the same bytes twice."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from training.search.plots import FORMATS, draw_all, pareto
from training.search.score_table import ScoreTable
from training.search.strategies.grid import Found, SearchError, search
from training.search.strategies.spaces import Cube, Point, Simplex, Space


def searched(space: Space, scorers: int, levels: int = 3) -> tuple[Found, dict[Point, ScoreTable]]:
    draw = random.Random(0)
    names = tuple(f"s{i}" for i in range(scorers))
    tables: dict[Point, ScoreTable] = {}

    def evaluate(points: list[Point]) -> list[float]:
        for point in points:
            tables[point] = ScoreTable(names, np.array([[draw.random() for _ in names] for _ in range(4)]))
        return [float(tables[point].scores.mean()) for point in points]

    return search(space, levels, evaluate, eligible=any), tables  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "scorers", "drawn"),
    [
        (Simplex(3), 3, {"weights", "trade-offs", "best-so-far"}),
        (Cube(3), 2, {"weights", "trade-offs", "best-so-far"}),
        (Simplex(2), 3, {"trade-offs", "best-so-far"}),
        (Cube(4), 5, {"trade-offs", "best-so-far"}),
        (Simplex(1), 1, {"best-so-far"}),
    ],
    ids=["simplex 3", "cube 3", "simplex 2", "cube 4", "one objective"],
)
def test_what_can_be_drawn_is_drawn_in_both_formats(
    space: Space, scorers: int, drawn: set[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    found, tables = searched(space, scorers, levels=2)
    objectives = [f"o{i}" for i in range(len(found.best))]
    files = draw_all(tmp_path, found, tables, objectives)
    assert {path.name for path in files} == {f"{name}.{suffix}" for name in drawn for suffix in FORMATS}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files if path.suffix == ".png")
    for path in files:
        if path.suffix == ".svg":
            text = path.read_text()
            assert text.rstrip().endswith("</svg>")
            if path.stem == "weights":
                assert all(f">{name}<" in text for name in objectives), "names stay text, to be found and read out"


def test_equal_scores_everywhere_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tables: dict[Point, ScoreTable] = {}

    def evaluate(points: list[Point]) -> list[float]:
        tables.update((point, ScoreTable(("a", "b"), np.full((2, 2), 0.5))) for point in points)
        return [0.5] * len(points)

    found = search(Simplex(3), 1, evaluate)  # type: ignore[arg-type]
    assert len(draw_all(tmp_path, found, tables, ["a", "b", "c"])) == 6


def test_the_same_search_draws_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, tables = searched(Simplex(3), 2, levels=1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw_all(tmp_path / name, found, tables, ["a", "b", "c"])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_pareto_front() -> None:
    points = [(0.0, 1.0), (0.5, 0.5), (0.4, 0.4), (1.0, 0.0), (0.5, 0.2), (0.5, 0.5), (1.0, -1.0)]
    assert pareto(points) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    assert pareto([(0.3, 0.3)]) == [(0.3, 0.3)]


def test_without_matplotlib_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found, tables = searched(Simplex(2), 2, levels=1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SearchError, match=r'plots need matplotlib: pip install "emorl\[search\]"'):
        draw_all(tmp_path, found, tables, ["a", "b"])
