"""One search from an ensemble and prompts to a report: search prompts choose, held-out prompts judge."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from emorl_core.ensemble import Ensemble
from emorl_core.files.writing import replacing
from training.data.clusters import clusters_of
from training.progress import Progress
from training.search.evaluations.about import about_evaluations
from training.search.evaluations.evaluator import EvaluatingOver, Evaluator
from training.search.evaluations.in_process import over_ensemble
from training.search.evaluations.log import EvaluationLog, check_log
from training.search.inputs import Inputs, prompts_hash
from training.search.predictor import STEPS
from training.search.report import Candidate, compared
from training.search.score_table import Goal, ScoreTable, parse_goal
from training.search.strategies.grid import Found, SearchError, budget, search
from training.search.strategies.spaces import Cube, Point, Simplex, Space, grid_points
from training.search.strategies.tpe import check_installed, search_tpe

SpaceName = Literal["simplex", "cube"]
Method = Literal["auto", "grid", "tpe", "per-prompt"]

MOST_BY_GRID = 5  # objectives; beyond, `auto` is TPE
EVALUATIONS_FILE, HELD_OUT_FILE, REPORT_FILE = "evaluations.jsonl", "held-out.jsonl", "report.json"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of a search. Raises `SearchError` naming the field."""

    space: SpaceName = "simplex"
    levels: int = 5
    method: Method = "auto"
    trials: int = 200  # evaluations of TPE
    goal: str = "mean"
    max_new_tokens: int = 64
    seed: int = 0  # of TPE, of the choice of prompts and of the bootstrap

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("space", self.space, get_args(SpaceName)),
            ("method", self.method, get_args(Method)),
        ):
            if value not in allowed:
                raise SearchError(f"{name} is {value!r}; allowed: {', '.join(allowed)}", param=name)
        for name, number, least in (("levels", self.levels, 1), ("trials", self.trials, 2), ("seed", self.seed, 0)):
            if number < least:
                raise SearchError(f"{name} is {number}; allowed: a whole number from {least}", param=name)
        if self.method == "per-prompt" and self.goal != "mean":
            raise SearchError(f"goal is {self.goal!r}; allowed with the method per-prompt: mean", param="goal")
        if self.levels > 30:
            raise SearchError(f"levels is {self.levels}; allowed: up to 30", param="levels")

    def by_grid(self, objectives: int) -> bool:
        return self.method == "grid" or (self.method == "auto" and objectives <= MOST_BY_GRID)

    def space_of(self, objectives: int) -> Space:
        return Cube(objectives) if self.space == "cube" else Simplex(objectives)

    def budget(self, objectives: int) -> int:
        """Evaluations that will be requested. Raises `SearchError` when TPE is to run and is not installed."""
        if self.method == "per-prompt":
            if objectives < 2:
                raise SearchError(
                    "objectives: there is one; the method per-prompt weighs two or more", param="objectives"
                )
            return len(grid_points(objectives, STEPS))
        if self.by_grid(objectives):
            return budget(self.space_of(objectives), self.levels)
        check_installed()
        return self.trials

    def explained(self, objectives: int) -> str:
        """The budget in words."""
        asked = self.budget(objectives)
        if self.method == "per-prompt":
            return f"{asked} points of a grid over {objectives} objectives, all of them on every prompt"
        if not self.by_grid(objectives):
            return f"{asked} evaluations by TPE over {objectives} objectives"
        per_level = self.space_of(objectives).points_per_level
        how = f"3^{objectives}" if self.space == "cube" else f"{per_level} directions"
        return f"{how} x {self.levels} levels = {asked} evaluations in the {self.space}, shared ones run once"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`weights` are the winner's, one number per searched objective; `tables` hold the search prompts' scores in the
    order that points were evaluated."""

    found: Found
    weights: dict[str, float]
    tables: dict[Point, ScoreTable]
    report: dict[str, Any]


class Meter:
    """Progress of a search: texts done out of the most that the budget allows. It jumps ahead at the end for points
    that were already known."""

    def __init__(self, evaluations: int, prompts: int, held_out: int, progress: Progress) -> None:
        self._searching = evaluations * prompts
        self._total = self._searching + 4 * held_out
        self._done = 0
        self._progress = progress

    def settled(self, texts: int) -> None:
        self._done = min(self._total, self._done + texts)
        self._progress("texts", self._done, self._total)

    def searched(self) -> None:
        self.settled(max(0, self._searching - self._done))

    def finished(self) -> None:
        self.settled(self._total - self._done)


def run_search(
    ensemble: Ensemble,
    inputs: Inputs,
    settings: SearchSettings,
    folder: Path,
    *,
    objectives: Sequence[str] | None = None,
    resume: bool = False,
    progress: Progress = lambda stage, done, total: None,
    evaluating: EvaluatingOver | None = None,
) -> Outcome:
    """Search, compare on held-out prompts, write `report.json` into `folder`, beside the log of every evaluation.

    Args:
        objectives: which of the ensemble's to mix; None: all.
        resume: reuse the evaluations in `folder`. They are valid under any goal, space and depth.
        evaluating: makes the evaluators; None: the ensemble and the scorers in this process.

    Raises:
        SearchError, ScorerError, InvalidRequest, EngineError: one line each.
    """
    names = tuple(objectives or ensemble.objectives)
    check_objectives(ensemble.lanes, names)
    goal = parse_goal(settings.goal, tuple(inputs.scorers))
    meter = Meter(settings.budget(len(names)), len(inputs.search), len(inputs.held_out), progress)
    about = about_evaluations(ensemble, names, inputs.specs, settings.max_new_tokens)
    # Both are opened first, so that a folder with another search is refused before anything is run.
    logs = [
        EvaluationLog(folder / file, {**about, "prompts": prompts_hash(records)}, resume=resume)
        for file, records in ((EVALUATIONS_FILE, inputs.search), (HELD_OUT_FILE, inputs.held_out))
    ]
    started = time.perf_counter()
    over = evaluating or over_ensemble(ensemble, names, inputs.scorers, max_new_tokens=settings.max_new_tokens)
    evaluator, held_out = (
        Evaluator(over(records, meter.settled), log=log)
        for records, log in zip((inputs.search, inputs.held_out), logs, strict=True)
    )
    resumed = len(logs[0].read)
    tables: dict[Point, ScoreTable] = {}

    def evaluate(points: Sequence[Point]) -> list[float]:
        made = evaluator.tables(points)
        tables.update(zip(points, made, strict=True))
        return [goal(table) for table in made]

    found = _search(settings, len(names), evaluate)
    meter.searched()
    candidates = _candidates(found, len(names), evaluator, goal)
    judged = held_out.tables([candidate.point for candidate in candidates])
    by_grid = settings.by_grid(len(names))
    report = write_report(
        folder, ensemble, names, inputs, settings, candidates, judged,
        method="grid" if by_grid else "tpe",
        space=settings.space if by_grid else "simplex",
        levels=settings.levels if by_grid else None,
        evaluations={
            "requested": found.requested,
            "distinct_points": len(found.scores),
            "resumed": resumed,
            **asdict(evaluator.counts),
        },
        path=[{"level": level.number, "best": list(level.best), "score": level.best_score} for level in found.levels],
        started=started,
    )  # fmt: skip
    meter.finished()
    return Outcome(found, report["weights"], tables, report)


def write_report(
    folder: Path,
    ensemble: Ensemble,
    names: Sequence[str],
    inputs: Inputs,
    settings: SearchSettings,
    candidates: Sequence[Candidate],
    judged: Sequence[ScoreTable],
    *,
    method: str,
    space: str,
    levels: int | None,
    evaluations: Mapping[str, int],
    started: float,
    **more: Any,
) -> dict[str, Any]:
    """Write `report.json` into `folder` and return it.

    candidates: the winner first; judged: their scores on the held-out prompts. started: `time.perf_counter` at the
    start; more: fields that only this kind of search reports.
    """
    goal = parse_goal(settings.goal, tuple(inputs.scorers))
    report = {
        "format": "emorl-search-report/1",
        "bundle": ensemble.name,
        "objectives": list(names),
        "scorers": dict(inputs.specs),
        "goal": settings.goal,
        "method": method,
        "space": space,
        "levels": levels,
        "seed": settings.seed,
        "max_new_tokens": settings.max_new_tokens,
        "weights": dict(zip(names, candidates[0].point, strict=True)),
        "evaluations": dict(evaluations),
        "prompts": {
            name: {"count": len(records), "sha256": prompts_hash(records)}
            for name, records in (("search", inputs.search), ("held_out", inputs.held_out))
        },
        "candidates": compared(
            candidates, judged, names, goal, clusters=clusters_of(inputs.held_out), seed=settings.seed
        ),
        **more,
        "seconds": round(time.perf_counter() - started, 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / REPORT_FILE) as temporary:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return report


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check, before a model is loaded, that a search may write there. Raises `SearchError`."""
    if resume or overwrite:
        return
    for file in (EVALUATIONS_FILE, HELD_OUT_FILE):
        check_log(folder / file)


def check_objectives(lanes: Sequence[str], names: Sequence[str]) -> None:
    """Raises `SearchError` for objectives that are unknown or named twice."""
    for name in names:
        if name not in lanes:
            known = ", ".join(lanes)
            raise SearchError(f"objectives: {name[:40]!r} is not in the bundle; it has {known}", param="objectives")
    if len(set(names)) != len(names):
        raise SearchError("objectives: one is named twice", param="objectives")


def _search(settings: SearchSettings, objectives: int, evaluate: Callable[[Sequence[Point]], list[float]]) -> Found:
    if settings.by_grid(objectives):
        return search(settings.space_of(objectives), settings.levels, evaluate, eligible=any)
    return search_tpe(objectives, settings.trials, evaluate, seed=settings.seed)


def _candidates(found: Found, objectives: int, evaluator: Evaluator, goal: Goal) -> list[Candidate]:
    """The winner and its competitors, chosen on the search prompts only."""

    def score(point: Point) -> float:
        return goal(evaluator.tables([point])[0])

    singles = [tuple(float(i == only) for i in range(objectives)) for only in range(objectives)]
    even = (1.0 / objectives,) * objectives
    named = {
        "found": found.best,
        "best single objective": max(singles, key=score),
        "uniform": even,
    }
    if len(found.levels) > 1:
        named["best of level 1"] = found.levels[0].best
    return [Candidate(name, point, score(point), evaluator.tables([point])[0].means) for name, point in named.items()]
