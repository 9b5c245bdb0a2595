"""Plots of a search, as PNG and SVG. Matplotlib is an extra: `pip install "emorl[search]"`."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.search.score_table import ScoreTable
from training.search.strategies.grid import Found, SearchError
from training.search.strategies.spaces import Point, ray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_COLOURS = "viridis"  # perceptually uniform, also in grey and with colour blindness
_CORNERS = ((0.5, math.sqrt(3) / 2), (0.0, 0.0), (1.0, 0.0))


MISSING = 'plots need matplotlib: pip install "emorl[search]", or --no-plots'


def installed() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def check_installed() -> None:
    """Raises `SearchError` if matplotlib is not installed."""
    if not installed():
        raise SearchError(MISSING, param="plots")


def draw_all(folder: Path, found: Found, tables: Mapping[Point, ScoreTable], objectives: Sequence[str]) -> list[Path]:
    """Draw all plots that this search allows into `folder`; returns the files. Raises `SearchError`."""
    check_installed()
    figures = {"best-so-far": best_so_far(found)}
    if len(objectives) == 3:
        figures["weights"] = triangle(found, objectives)
    if len(next(iter(tables.values())).names) > 1:
        figures["trade-offs"] = trade_offs(found, tables)
    return save_all(folder, figures)


def save_all(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure as `<name>.png` and `<name>.svg`; returns the files."""
    import matplotlib

    written = []
    # Fixed ids and no date, so that files are reproducible; text in SVG stays text.
    with matplotlib.rc_context({"svg.hashsalt": "emorl", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            for suffix in FORMATS:
                path = folder / f"{name}.{suffix}"
                metadata = {"Date": None} if suffix == "svg" else {"Software": None}
                figure.savefig(path, dpi=150, metadata=metadata)
                written.append(path)
    return written


def triangle(found: Found, objectives: Sequence[str]) -> Figure:
    """Three objectives: all evaluated directions in the simplex's triangle, coloured by score."""
    scores = {_normal(point): score for point, score in found.scores.items() if any(point)}
    places = [_place(point) for point in scores]
    figure, (axes,) = figure_of(1, 6.4, 5.6)
    x, y = [place[0] for place in places], [place[1] for place in places]
    values = list(scores.values())
    if len(values) > 3 and max(values) > min(values):
        axes.tricontourf(x, y, values, levels=12, cmap=_COLOURS, alpha=0.35)
    dots = axes.scatter(
        x, y, c=values, cmap=_COLOURS, s=36, edgecolors="white", linewidths=0.6, zorder=2, clip_on=False
    )
    best = _place(_normal(found.best))
    axes.scatter(
        *best, marker="*", s=260, facecolors="none", edgecolors="crimson", linewidths=1.6, zorder=3, clip_on=False
    )
    axes.plot(*zip(*_CORNERS, _CORNERS[0], strict=True), color="0.4", linewidth=1, zorder=1)
    for name, corner, (dx, dy) in zip(objectives, _CORNERS, ((0, 0.04), (0, -0.08), (0, -0.08)), strict=True):
        axes.text(corner[0] + dx, corner[1] + dy, name, ha="center")
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(f"star: {_written(found.best, objectives)}", fontsize=9, pad=36)
    figure.colorbar(dots, ax=axes, shrink=0.8, label="score on the search prompts")
    return figure


def trade_offs(found: Found, tables: Mapping[Point, ScoreTable]) -> Figure:
    """Mean scores of each pair of scorers, with the pair's Pareto front."""
    names = next(iter(tables.values())).names
    pairs = list(itertools.combinations(names, 2))
    figure, panels = figure_of(len(pairs), 4.2, 3.8)
    points = list(tables)
    for axes, (first, second) in zip(panels, pairs, strict=True):
        means = [(tables[point].means[first], tables[point].means[second]) for point in points]
        x, y = zip(*means, strict=True)
        axes.scatter(x, y, c=[found.scores[point] for point in points], cmap=_COLOURS, s=24, edgecolors="none")
        front = pareto(means)
        axes.plot(*zip(*front, strict=True), color="0.3", linewidth=1, marker="o", markersize=3, label="Pareto front")
        at = means[points.index(found.best)]
        axes.scatter(*at, marker="*", s=180, facecolors="none", edgecolors="crimson", linewidths=1.4, label="found")
        axes.set_xlabel(first)
        axes.set_ylabel(second)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def best_so_far(found: Found) -> Figure:
    """The best score so far after each evaluation, in order; dotted lines mark the start of each level."""
    figure, (axes,) = figure_of(1, 6.4, 3.6)
    scores = list(found.scores.values())
    count = range(1, len(scores) + 1)
    axes.scatter(count, scores, s=10, color="0.7", label="evaluation")
    axes.step(count, list(itertools.accumulate(scores, max)), where="post", color="crimson", label="best so far")
    order = {point: number for number, point in enumerate(found.scores, start=1)}
    seen: set[Point] = set()
    for level in found.levels:
        new = [order[point] for point in level.points if point not in seen]
        seen.update(level.points)
        if new and level.number > 1:
            label = "a level begins" if level.number == 2 else None
            axes.axvline(min(new) - 0.5, color="0.8", linestyle=":", linewidth=1, label=label)
    axes.set_xlabel("distinct evaluations")
    axes.set_ylabel("score on the search prompts")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The non-dominated points, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front[::-1]


def figure_of(panels: int, width: float, height: float, *, abreast: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with this many panels, each `width` by `height` inches, at most `abreast` per row."""
    from matplotlib.figure import Figure

    columns = min(panels, abreast)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def _normal(point: Point) -> Point:
    numbers = ray(point)
    return tuple(number / sum(numbers) for number in numbers)


def _place(point: Point) -> tuple[float, float]:
    x, y = (sum(weight * corner[i] for weight, corner in zip(point, _CORNERS, strict=True)) for i in (0, 1))
    return x, y


def _written(point: Point, objectives: Sequence[str]) -> str:
    return ", ".join(f"{name} {weight:.3g}" for name, weight in zip(objectives, _normal(point), strict=True))
