"""Plots of a comparison, as PNG and SVG. Matplotlib is an extra: `pip install "emorl[search]"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluation.reporting.results import JUDGES, MEAN, OBJECTIVES, columns_of
from training.search.plots import check_installed, figure_of, save_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito 2008: distinguishable with colour blindness; marker shapes distinguish the rest.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_SHAPES = "osD^vP*Xh<>"


def draw_all(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Draw all plots that these results allow; returns the files. Raises `SearchError` without matplotlib."""
    check_installed()
    shown = {name: own for name, own in found["methods"].items() if own["seeds"]}
    figures: dict[str, Figure] = {}
    if shown:
        figures["reward-consumption"] = reward_against_consumption(shown)
        figures["reward-rows"] = reward_against_rows(shown)
        figures["objectives"] = bars(shown, OBJECTIVES, columns_of(found, OBJECTIVES), "score (training rewards)")
        if columns_of(found, JUDGES):
            figures["judges"] = bars(shown, JUDGES, columns_of(found, JUDGES), "score (judges)")
    curves = {name: own["curves"] for name, own in shown.items() if any(own["curves"].values())}
    if curves:
        figures["training-curves"] = training_curves(curves)
    return save_all(folder, figures)


def reward_against_consumption(methods: Mapping[str, Any]) -> Figure:
    """Mean reward against the number of training prompts. Vertical bars are intervals over prompts, horizontal bars and
    small dots the spread over seeds."""
    figure, (axes,) = figure_of(1, 7.2, 4.6)
    alike = [own["consumption"]["prompts"]["mean"] for own in methods.values()]
    for number, (name, own) in enumerate(methods.items()):
        mean, used = own[OBJECTIVES][MEAN], own["consumption"]["prompts"]
        # Methods with equally many prompts are placed side by side.
        place = alike[:number].count(used["mean"]) - (alike.count(used["mean"]) - 1) / 2
        aside = 0.015 * max(alike) * place
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(
            used["mean"] + aside,
            mean["mean"],
            yerr=[[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]],
            xerr=used["spread"],
            fmt=_SHAPES[number % len(_SHAPES)],
            color=colour,
            capsize=3,
            label=name,
        )
        seeds = mean["seeds"]
        if len(seeds) > 1:
            x = [used["seeds"][seed] + aside for seed in seeds]
            axes.scatter(x, list(seeds.values()), s=9, color=colour, alpha=0.5, linewidths=0)
    axes.set_xlabel("prompts consumed in training")
    axes.set_ylabel("mean reward on held-out prompts")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def reward_against_rows(methods: Mapping[str, Any]) -> Figure:
    """Mean reward against model rows per reply token, one point per method; the line connects the Pareto front."""
    figure, (axes,) = figure_of(1, 7.2, 4.6)
    places = []
    for number, (name, own) in enumerate(methods.items()):
        mean, ran = own[OBJECTIVES][MEAN], own["inference"]
        rows = ran["lane_row_steps"]["mean"] / max(1, ran["tokens"]["mean"])
        places.append((rows, mean["mean"]))
        axes.errorbar(
            rows,
            mean["mean"],
            yerr=[[mean["mean"] - mean["low"]], [mean["high"] - mean["mean"]]],
            fmt=_SHAPES[number % len(_SHAPES)],
            color=_COLOURS[number % len(_COLOURS)],
            capsize=3,
            label=name,
        )
    best = [place for place in sorted(places) if not any(x <= place[0] and y > place[1] for x, y in places)]
    axes.step(*zip(*best, strict=True), where="post", color="#888888", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("forward rows per token of the reply that is given")
    axes.set_ylabel("mean reward on held-out prompts")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bars(methods: Mapping[str, Any], group: str, columns: Sequence[str], label: str) -> Figure:
    """One group of bars per column, one bar per method, with intervals over prompts."""
    figure, (axes,) = figure_of(1, max(6.4, 1.9 * len(columns)), 4.2)
    width = 0.84 / len(methods)
    for number, (name, own) in enumerate(methods.items()):
        estimates = [own[group][column] for column in columns]
        means = np.array([estimate["mean"] for estimate in estimates])
        low = means - np.array([estimate["low"] for estimate in estimates])
        high = np.array([estimate["high"] for estimate in estimates]) - means
        places = np.arange(len(columns)) - 0.42 + (number + 0.5) * width
        axes.bar(
            places,
            means,
            width,
            yerr=np.maximum(0, [low, high]),
            color=_COLOURS[number % len(_COLOURS)],
            hatch="//" if number >= len(_COLOURS) else None,
            error_kw={"linewidth": 0.8},
            label=name,
        )
    axes.set_xticks(np.arange(len(columns)), columns)
    axes.set_ylabel(label)
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def training_curves(curves: Mapping[str, Any]) -> Figure:
    """Validation score against prompts consumed, one panel per curve name, one line per method and seed. Methods that
    share a training are shown once."""
    panels: dict[str, dict[str, list[Any]]] = {}
    drawn: set[str] = set()
    for method, seeds in curves.items():
        for seed, own in seeds.items():
            for name, points in own.items():
                same = f"{seed} {name} {points}"
                if points and same not in drawn:
                    drawn.add(same)
                    panels.setdefault(name, {}).setdefault(method, []).append(points)
    figure, places = figure_of(len(panels), 3.6, 2.9, abreast=2)
    colour_of = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(curves)}
    for axes, (name, methods) in zip(places, panels.items(), strict=True):
        for method, lines in methods.items():
            for number, points in enumerate(lines):
                x, y = [point["prompts"] for point in points], [point["score"] for point in points]
                axes.plot(x, y, color=colour_of[method], linewidth=1.2, label=None if number else method)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("prompts consumed")
        axes.set_ylabel("validation score")
        axes.legend(fontsize=8, frameon=False)
    return figure
