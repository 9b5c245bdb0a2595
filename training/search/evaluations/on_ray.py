"""Evaluations of a search as tasks of a Ray cluster that this program is connected to. Needs the extra `ray`.

A task gets some of the prompts and all new points, so that everything points share (the prompt and common prefixes)
stays in one task. Prompts and their scores are independent, so the combined parts equal the result of one machine. A
task gets the known evaluations of its prompts and keeps no state, so a worker that dies loses nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Checked, Context
from training.data.records import Record
from training.search.evaluations.about import bundle_hash
from training.search.evaluations.evaluation import Counts, Evaluation
from training.search.evaluations.evaluator import EvaluatingOver
from training.search.evaluations.in_process import over_ensemble
from training.search.evaluations.tasks import LOST, Tasks
from training.search.inputs import Inputs, build_scorers
from training.search.strategies.grid import SearchError
from training.search.strategies.spaces import Point, ray

_PARTS = 2  # tasks per concurrent task, so that a worker that finishes early takes another


@dataclass(frozen=True, slots=True)
class Setting:
    """The workers' configuration. Paths are absolute, and valid on every machine."""

    bundle: str
    bundle_hash: str
    objectives: tuple[str, ...]
    max_new_tokens: int
    loading: Mapping[str, Any]  # keywords of `Ensemble.load`
    threads: int
    specs: Mapping[str, Any]  # of the scorers, with the next two as in `build_scorers`
    context: Context
    where: str

    @classmethod
    def of(
        cls, ensemble: Ensemble, bundle: str, objectives: Sequence[str], inputs: Inputs, max_new_tokens: int,
        threads: int, **loading: Any,
    ) -> Setting:  # fmt: skip
        """Workers use this ensemble's number format and the same files. loading: keywords of `Ensemble.load`."""
        folder, names = Path(bundle), tuple(objectives)
        return cls(
            bundle=str(folder.resolve()) if folder.is_dir() else bundle,
            bundle_hash=bundle_hash(ensemble, names),
            objectives=names,
            max_new_tokens=max_new_tokens,
            loading={**loading, "dtype": ensemble.dtype},
            threads=threads,
            specs=dict(inputs.specs),
            context=replace(inputs.context, base=Path.cwd() / (inputs.context.base or "")),
            where=inputs.where,
        )


def over_cluster(setting: Setting, device: str) -> EvaluatingOver:
    """device: of each task. Raises `TasksError`: the cluster cannot run the tasks."""
    tasks = Tasks(setting.threads, device)
    shared = tasks.share(setting)

    def over(records: Sequence[Record], settled: Callable[[int], None]) -> OnCluster:
        return OnCluster(tasks, shared, tuple(setting.specs), records, settled)

    return over


class OnCluster:
    """Evaluates points over one set of prompts, split over tasks."""

    def __init__(
        self,
        tasks: Tasks,
        setting: Any,
        names: tuple[str, ...],
        records: Sequence[Record],
        settled: Callable[[int], None],
    ) -> None:
        """setting: shared among the tasks; names: of the scorers."""
        self.names = names
        self.counts = Counts()
        self._tasks, self._setting, self._settled = tasks, setting, settled
        self._parts = [(part, tuple(records[part])) for part in _even(len(records), _PARTS * tasks.at_once)]
        self._known: list[Evaluation] = []

    def key(self, point: Point) -> Hashable:
        return ray(point)

    def evaluate(self, points: Sequence[Point]) -> list[Evaluation]:
        """Raises `EngineError`, `ScorerError`, and `SearchError` if a worker has other files or parts were lost."""
        started = [
            self._tasks.start(_evaluated, self._setting, records, [each.of(part) for each in self._known], list(points))
            for part, records in self._parts
        ]
        found: dict[Any, list[Evaluation]] = {}
        for task, value in self._tasks.ended(started):
            if value is LOST:
                raise SearchError("evaluations were lost with their workers; --resume goes on", param="ray")
            found[task], counts = value
            self.counts.add(counts)
            self._settled(sum(len(each.texts) for each in found[task]))
        return [Evaluation.joined(parts) for parts in zip(*(found[task] for task in started), strict=True)]

    def remember(self, evaluation: Evaluation) -> None:
        self._known.append(evaluation)


def _even(count: int, most: int) -> list[slice]:
    """Split this many indices into up to `most` runs of similar length."""
    runs = min(count, most)
    bounds = [count * run // runs for run in range(runs + 1)]
    return [slice(first, end) for first, end in pairwise(bounds)]


_loaded: dict[str, tuple[Ensemble, dict[str, Checked]]] = {}  # in a worker, by bundle


def _evaluated(
    setting: Setting, records: Sequence[Record], known: Sequence[Evaluation], points: Sequence[Point]
) -> tuple[list[Evaluation], Counts]:
    ensemble, scorers = _prepared(setting)
    over = over_ensemble(ensemble, setting.objectives, scorers, max_new_tokens=setting.max_new_tokens)
    evaluating = over(records, lambda texts: None)
    for each in known:
        evaluating.remember(each)
    return evaluating.evaluate(points), evaluating.counts


def _prepared(setting: Setting) -> tuple[Ensemble, dict[str, Checked]]:
    if setting.bundle not in _loaded:
        import torch

        torch.set_num_threads(setting.threads)
        ensemble = Ensemble.load(setting.bundle, threads=setting.threads, **setting.loading)
        if bundle_hash(ensemble, setting.objectives) != setting.bundle_hash:
            raise SearchError(f"bundle: {setting.bundle} holds other files on {socket.gethostname()}", param="bundle")
        _loaded[setting.bundle] = ensemble, build_scorers(setting.specs, setting.context, setting.where)
    return _loaded[setting.bundle]
