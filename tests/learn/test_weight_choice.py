"""The comparison's choice of weights: the search's evaluator on other points, and a log that says how long it took."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emorl_core.engine.sweep import SweepItem, SweepResult
from emorl_core.scorers import checked
from emorl_core.types import FinishReason
from training.data.prompts import Prompt
from training.data.records import Record
from training.evaluation.methods.generators import _Distinct
from training.evaluation.methods.weight_choice import choose, evaluations
from training.search.inputs import prompts_hash
from training.search.strategies.spaces import Point, Simplex

PROMPTS = (Prompt(0, "i feel tired", (1,), (1,)), Prompt(1, "i feel angry", (2,), (2,)))


class Generator(_Distinct):
    """The longest replies lie at (0.25, 0.75)."""

    def __init__(self) -> None:
        self.asked: list[Point] = []

    def generate(
        self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
    ) -> SweepResult:
        self.asked += points
        length = [40 - round(40 * abs(point[0] - 0.25)) for point in points]
        items = [
            SweepItem(p, i, {}, "x" * length[i], (p, length[i]), FinishReason.STOP)
            for p, own in enumerate(only)
            for i in own
        ]
        return SweepResult(tuple(items), 0, 0, 0)


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [len(text) / 40 for text in completions]


EXPERIMENT: Any = SimpleNamespace(
    scorers={"length": checked(length), "again": checked(length)}, search=PROMPTS, levels=2
)


def test_the_best_point_is_found_and_what_it_cost(tmp_path: Path) -> None:
    generator = Generator()
    choice = choose(EXPERIMENT, generator, tmp_path / "log.jsonl")
    assert (choice.point, choice.score) == ((0.25, 0.75), 1.0)
    assert choice.evaluations == len(generator.asked) == len(set(generator.asked))
    assert choice.prompts == 2 * choice.evaluations
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    assert sum(line["seconds"] for line in lines) == pytest.approx(choice.seconds)


def test_a_search_that_was_killed_pays_for_no_point_twice(tmp_path: Path) -> None:
    whole = choose(EXPERIMENT, Generator(), tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    later = Generator()
    found = choose(EXPERIMENT, later, tmp_path / "log.jsonl")
    assert (found.point, found.score, found.evaluations) == (whole.point, whole.score, whole.evaluations)
    assert len(later.asked) == whole.evaluations - 3


def test_a_log_of_scores_alone_is_gone_on_with(tmp_path: Path) -> None:
    """Written when the comparison still had an evaluator of its own."""
    points = Simplex(2).grid(Simplex(2).whole)
    about = {"prompts": prompts_hash([Record(prompt.text) for prompt in PROMPTS]), "scorers": ["length", "again"]}
    lines = [{"format": "emorl-search/1", **about}]
    lines += [{"point": list(point), "score": 1.0 - abs(point[0] - 0.25), "seconds": 2.0} for point in points]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    generator = Generator()
    choice = choose(EXPERIMENT, generator, tmp_path / "log.jsonl")
    assert choice.point == (0.25, 0.75)
    assert not set(generator.asked) & set(points)
    assert choice.evaluations == len(points) + len(generator.asked)
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[1:]]
    assert [line["seconds"] for line in logged[: len(points)]] == [2.0] * len(points)
    assert choice.seconds == pytest.approx(sum(line["seconds"] for line in logged))


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_every_method_gets_as_many_evaluations(tmp_path: Path, objectives: int, levels: int) -> None:
    """The anchored method and raw soups search a cube, which has more points a level."""

    class Rough(_Distinct):
        def generate(
            self, points: Sequence[Point], only: Sequence[Collection[int]], done: Callable[[], None]
        ) -> SweepResult:
            length = [round(40 * abs(math.sin(sum(x * 7**i for i, x in enumerate(point))))) for point in points]
            items = [
                SweepItem(p, i, {}, "x" * length[i], (p, length[i]), FinishReason.STOP)
                for p, own in enumerate(only)
                for i in own
            ]
            return SweepResult(tuple(items), 0, 0, 0)

    scorers = {f"s{i}": checked(length) for i in range(objectives)}
    experiment: Any = SimpleNamespace(scorers=scorers, search=PROMPTS, levels=levels)
    most = evaluations(objectives, levels)
    simplex = choose(experiment, Rough(), tmp_path / "simplex.jsonl")
    cube = choose(experiment, Rough(), tmp_path / "cube.jsonl", cube=True)
    assert cube.evaluations == most
    assert most - levels < simplex.evaluations <= most, "a cell's middle may be known from the level before"
