"""Evaluating points: nothing is generated or scored twice, and what is implied is what would have been generated."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.models.fake import FakeTokenizer
from emorl_core.scorers import Checked, ScorerError, checked
from tests.builders import tiny_t5_bundle
from training.data.records import Record
from training.search.evaluations.evaluator import Evaluator
from training.search.evaluations.generator import EnsembleGenerator
from training.search.evaluations.in_process import InProcess, Known
from training.search.evaluations.log import EvaluationLog
from training.search.strategies.spaces import Cube, Point, Simplex, ray

RECORDS = [
    Record(f"i feel {word}", references=(f"you feel {word}",), extras={"topic": word})
    for word in ("tired", "angry", "sad")
]


class Scorer:
    """Scores a text by its length and remembers every pair that it was asked for."""

    def __init__(self, name: str = "length", scale: float = 200.0) -> None:
        self.__name__ = name
        self.scale = scale
        self.asked: list[tuple[str, str]] = []
        self.columns: dict[str, Any] = {}

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.asked += zip(prompts, completions, strict=True)
        self.columns = columns
        return [min(1.0, len(text) / self.scale) for text in completions]


def evaluator_of(
    ensemble: Ensemble, scorers: Sequence[Scorer], *, infer: bool = True, log: EvaluationLog | None = None
) -> Evaluator:
    named: dict[str, Checked] = {scorer.__name__: checked(scorer) for scorer in scorers}
    prompts = [record.prompt for record in RECORDS]
    generator = EnsembleGenerator(ensemble, ensemble.objectives, prompts, max_new_tokens=8)
    return Evaluator(InProcess(generator, RECORDS, named, infer=infer), log=log)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5_bundle(tmp_path_factory.mktemp("bundle"))


def test_tables_hold_what_separate_calls_score() -> None:
    ensemble, scorers = fake_ensemble(), [Scorer(), Scorer("half", 400.0)]
    points: list[Point] = [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.25, 0.25, 0.5)]
    tables = evaluator_of(ensemble, scorers).tables(points)
    for point, table in zip(points, tables, strict=True):
        weights = dict(zip(ensemble.objectives, point, strict=True))
        texts = [ensemble.generate(record.prompt, weights, max_new_tokens=8).text for record in RECORDS]
        expected = [[len(text) / 200.0, len(text) / 400.0] for text in texts]
        np.testing.assert_allclose(table.scores, expected, atol=1e-6)
        assert table.names == ("length", "half")


def test_a_level_is_one_run_and_a_ray_is_generated_once() -> None:
    """27 points of the published grid are 20 rays, the zero vector among them; asking again costs nothing."""
    ensemble, scorer = fake_ensemble(), Scorer()
    evaluator = evaluator_of(ensemble, [scorer], infer=False)
    points = Cube(3).grid(Cube(3).whole)
    tables = evaluator.tables(points)
    rays = {ray(point) for point in points}
    assert len(rays) == evaluator.counts.rays == 20
    assert evaluator.counts.texts_generated == 19 * len(RECORDS)
    by_ray: dict[tuple[int, ...], set[float]] = {}
    for point, table in zip(points, tables, strict=True):
        by_ray.setdefault(ray(point), set()).add(float(table.scores.sum()))
    assert all(len(scores) == 1 for scores in by_ray.values())
    steps, asked = ensemble.engine.stats.lane_row_steps, len(scorer.asked)
    evaluator.tables([*points, (0.125, 0.125, 0.125)])
    assert (ensemble.engine.stats.lane_row_steps, len(scorer.asked)) == (steps, asked)


def test_a_text_is_scored_once_per_prompt(bundle: Path) -> None:
    """Also when several vectors, in several calls, give it; also the empty one."""
    scorer = Scorer()
    evaluator = evaluator_of(Ensemble.load(bundle, device="cpu", dtype="float32"), [scorer])
    for start in (0.0, 0.5):
        evaluator.tables([(1.0, start + i / 64, 0.0) for i in range(32)])
    assert Counter(scorer.asked).most_common(1)[0][1] == 1
    assert evaluator.counts.texts_scored == len(scorer.asked) < 64 * len(RECORDS)


def test_the_zero_vector_is_empty_text() -> None:
    ensemble, scorer = fake_ensemble(), Scorer()
    (table,) = evaluator_of(ensemble, [scorer]).tables([(0.0, 0.0, 0.0)])
    assert table.scores.tolist() == [[0.0]] * 3
    assert scorer.asked == [(record.prompt, "") for record in RECORDS]
    assert ensemble.engine.stats.lane_row_steps == 0


def test_scorers_get_the_data_s_columns() -> None:
    scorer = Scorer()
    evaluator_of(fake_ensemble(), [scorer]).tables([(1.0, 0.0, 0.0)])
    assert scorer.columns == {
        "references": [["you feel tired"], ["you feel angry"], ["you feel sad"]],
        "extras": [{"topic": "tired"}, {"topic": "angry"}, {"topic": "sad"}],
    }


@pytest.mark.parametrize("kind", ["fake", "t5"])
def test_implied_texts_are_those_that_would_be_generated(kind: str, bundle: Path) -> None:
    """Deep in the search nearly everything follows from the corners; a search that infers sees the same scores."""
    ensemble = fake_ensemble() if kind == "fake" else Ensemble.load(bundle, device="cpu", dtype="float32")
    lazy, diligent = evaluator_of(ensemble, [Scorer()]), evaluator_of(ensemble, [Scorer()], infer=False)
    draw = random.Random(0)
    for space in (Simplex(3), Cube(3)):
        cell = space.whole
        for _ in range(5):
            points = space.grid(cell)
            for ours, theirs in zip(lazy.tables(points), diligent.tables(points), strict=True):
                assert (ours.scores == theirs.scores).all()
            cell = draw.choice(space.parts(cell))[0]
    assert lazy.counts.texts_implied > 50
    assert lazy.counts.texts_generated + lazy.counts.texts_implied == diligent.counts.texts_generated
    assert diligent.counts.texts_implied == 0


def test_only_what_lies_between_equal_neighbours_is_implied() -> None:
    known = Known(2)
    known.add((1.0, 0.0, 0.0), ["a", "b"])
    known.add((0.0, 4.0, 0.0), ["a", "c"])
    assert known.implied((0.25, 0.25, 0.0)) == ["a", None]
    assert known.implied((0.9, 0.1, 0.0)) == ["a", None]
    assert known.implied((0.9, 0.1, 1e-3)) == [None, None], "beside the line"
    assert known.implied((1.0, 0.0, 0.0)) == [None, None], "an end is no neighbour of itself"
    known.add((0.0, 1.0, 1.0), ["d", "b"])
    assert known.implied((0.5, 0.5, 0.5)) == [None, "b"]
    assert Known(1).implied((1.0, 1.0)) == [None]


def test_equal_texts_from_different_tokens_imply_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cone belongs to the tokens. A tokenizer may write one text in two ways; what lies between may be a third."""
    monkeypatch.setattr(FakeTokenizer, "decode", lambda self, ids: "")
    ensemble = fake_ensemble()
    scorer = Scorer()
    evaluator = evaluator_of(ensemble, [scorer])
    evaluator.tables([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)])
    evaluator.tables([(0.5, 0.5, 0.0)])
    assert evaluator.counts.texts_implied == 0
    assert len(scorer.asked) == 3, "and yet the one text is scored once per prompt"


def test_every_evaluation_is_logged_and_taken_back(tmp_path: Path) -> None:
    path, points = tmp_path / "log.jsonl", Simplex(3).grid(Simplex(3).whole)
    first = evaluator_of(fake_ensemble(), [Scorer()], log=EvaluationLog(path, {}, resume=False))
    expected = [table.scores.tolist() for table in first.tables(points)]
    ensemble, scorer = fake_ensemble(), Scorer()
    second = evaluator_of(ensemble, [scorer], log=EvaluationLog(path, {}, resume=True))
    assert [table.scores.tolist() for table in second.tables(points)] == expected
    assert ensemble.engine.stats.lane_row_steps == 0
    assert scorer.asked == []


def test_after_a_resume_known_texts_imply_and_are_not_scored_again(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "log.jsonl"
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    whole, seen = evaluator_of(ensemble, [Scorer()]), Scorer()
    near: list[Point] = [(1.0, 0.0, 0.0), (0.9375, 0.0625, 0.0)]
    between: list[Point] = [(0.96875, 0.03125, 0.0)]
    expected = whole.tables([*near, *between])
    evaluator_of(ensemble, [seen], log=EvaluationLog(path, {}, resume=False)).tables(near)
    later = Scorer()
    resumed = evaluator_of(ensemble, [later], log=EvaluationLog(path, {}, resume=True))
    (found,) = resumed.tables(between)
    assert (found.scores == expected[2].scores).all()
    assert not set(later.asked) & set(seen.asked)
    assert resumed.counts.texts_implied > 0


def test_a_log_names_no_text(tmp_path: Path) -> None:
    """Prompts and replies are clinical; what is kept of them is their hashes."""
    path = tmp_path / "log.jsonl"
    scorer = Scorer()
    evaluator_of(fake_ensemble(), [scorer], log=EvaluationLog(path, {"x": 1}, resume=False)).tables([(1.0, 0.0, 0.0)])
    written = path.read_text()
    for prompt, text in scorer.asked:
        assert prompt not in written
        assert text not in written


def test_a_broken_scorer_is_named_and_nothing_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    evaluator = evaluator_of(fake_ensemble(), [Scorer(scale=-1.0)], log=EvaluationLog(path, {}, resume=False))
    with pytest.raises(ScorerError, match="'length' returned"):
        evaluator.tables([(1.0, 0.0, 0.0)])
    assert len(path.read_text().splitlines()) == 1
