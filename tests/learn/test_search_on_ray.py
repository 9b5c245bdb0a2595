"""The parts of a search that tasks do, put together: as if one process had done all. Without Ray; `test_ray.py` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from emorl_core.ensemble import Ensemble
from tests.builders import tiny_t5_bundle
from training.data.records import Record
from training.search.evaluations import on_ray
from training.search.evaluations.evaluator import EvaluatingOver, Evaluator
from training.search.evaluations.in_process import over_ensemble
from training.search.evaluations.log import EvaluationLog
from training.search.evaluations.on_ray import OnCluster, Setting
from training.search.evaluations.tasks import LOST, TasksError, _resources
from training.search.inputs import Inputs, build_scorers
from training.search.strategies.grid import SearchError
from training.search.strategies.spaces import Cube, Point, Simplex

RECORDS = tuple(Record(f"i feel {word}") for word in ("tired", "angry", "sad", "alone", "hurt"))
SPECS = {"letters": {"kind": "length", "min_words": 1, "max_words": 9}, "empathy": "lexical_empathy"}


@dataclass(eq=False)
class Task:
    value: object


class Tasks:
    """Runs each task at once, in this process; the one of that number is lost."""

    def __init__(self, at_once: int, lost: int | None = None) -> None:
        self.at_once, self.started, self._lost = at_once, 0, lost

    def start(self, function: Callable[..., object], *args: object) -> Task:
        self.started += 1
        return Task(LOST if self.started == self._lost else function(*args))

    def ended(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        return ((task, task.value) for task in reversed(tasks))  # the last begun ends first


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    bundle = tiny_t5_bundle(tmp_path_factory.mktemp("bundle"))
    ensemble = Ensemble.load(bundle, device="cpu", dtype="float32")
    inputs = Inputs(RECORDS, (), {}, SPECS)
    return Setting.of(ensemble, str(bundle), ensemble.objectives, inputs, 6, 1, device="cpu", slots=8)


@pytest.fixture(scope="module")
def alone(setting: Setting) -> EvaluatingOver:
    scorers = build_scorers(SPECS, setting.context, "scorer {}")
    ensemble = Ensemble.load(setting.bundle, device="cpu", dtype="float32", slots=64)
    return over_ensemble(ensemble, setting.objectives, scorers, max_new_tokens=6)


def levels() -> list[list[Point]]:
    """Two levels of a search each: in the simplex, and in the cube, which has the zero vector."""
    return [
        space.grid(cell) for space in (Simplex(3), Cube(3)) for cell in (space.whole, space.parts(space.whole)[0][0])
    ]


def cluster(setting: Setting, tasks: Any, settled: Callable[[int], None] = lambda texts: None) -> OnCluster:
    return OnCluster(tasks, setting, tuple(SPECS), RECORDS, settled)


@pytest.mark.parametrize(("at_once", "parts"), [(1, 2), (2, 4), (8, 5)])
def test_parts_put_together_are_the_whole(
    at_once: int, parts: int, setting: Setting, alone: EvaluatingOver, tmp_path: Path
) -> None:
    told: list[int] = []
    tasks = Tasks(at_once)
    logs = [tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"]
    evaluators = [
        Evaluator(evaluating, log=EvaluationLog(path, {}, resume=False))
        for evaluating, path in zip(
            (alone(RECORDS, lambda texts: None), cluster(setting, tasks, told.append)), logs, strict=True
        )
    ]
    for points in levels():
        ours, theirs = ([table.scores.tolist() for table in each.tables(points)] for each in evaluators)
        assert ours == theirs
    assert logs[0].read_bytes() == logs[1].read_bytes()
    counts, others = (each.counts for each in evaluators)
    for name in ("rays", "texts_generated", "texts_implied", "texts_scored"):
        assert getattr(counts, name) == getattr(others, name)
    assert tasks.started % parts == 0
    assert sum(told) == counts.rays * len(RECORDS)


def test_a_part_that_is_lost_ends_the_search_and_nothing_is_logged(setting: Setting, tmp_path: Path) -> None:
    log = EvaluationLog(tmp_path / "log.jsonl", {}, resume=False)
    evaluator = Evaluator(cluster(setting, Tasks(1, lost=4)), log=log)
    evaluator.tables([(1.0, 0.0, 0.0)])
    with pytest.raises(SearchError, match="lost with their workers; --resume goes on"):
        evaluator.tables([(0.0, 1.0, 0.0)])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_worker_with_another_bundle_is_found_out(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_t5_bundle(tmp_path / "other", seed=1)
    monkeypatch.setattr(on_ray, "_loaded", {})
    elsewhere = Setting(**{name: getattr(setting, name) for name in Setting.__slots__} | {"bundle": str(other)})
    with pytest.raises(SearchError, match="holds other files on"):
        cluster(elsewhere, Tasks(1)).evaluate([(1.0, 0.0, 0.0)])


@pytest.mark.parametrize(
    ("threads", "device", "nodes", "needs"),
    [
        (1, "auto", [{"CPU": 2.0}], {"num_cpus": 1, "num_gpus": 0}),
        (2, "cpu", [{"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}], {"num_cpus": 2, "num_gpus": 0}),
        (1, "auto", [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}], {"num_cpus": 1, "num_gpus": 1}),
        (1, "cuda:0", [{"CPU": 2.0, "GPU": 1.0}], {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_a_task_takes_its_threads_and_a_gpu_where_there_is_one(
    threads: int, device: str, nodes: list[dict[str, float]], needs: dict[str, float]
) -> None:
    assert _resources(threads, device, nodes) == needs


@pytest.mark.parametrize(
    ("threads", "device", "nodes", "line"),
    [
        (3, "auto", [{"CPU": 2.0}, {"CPU": 2.0}], "threads is 3; allowed: up to 2, as many cores as a machine"),
        (1, "auto", [{}], "threads is 1; allowed: up to 0"),
        (1, "cuda", [{"CPU": 2.0}], "the device is 'cuda', and the Ray cluster has no GPU"),
    ],
)
def test_what_no_machine_has_is_refused_and_not_waited_for(
    threads: int, device: str, nodes: list[dict[str, float]], line: str
) -> None:
    with pytest.raises(TasksError, match=line):
        _resources(threads, device, nodes)
