"""Search over many objectives with Optuna's TPE (Bergstra et al. 2011), with the same evaluation as the grids.

A grid over d dimensions grows as 5^d; beyond five objectives, TPE makes better use of the same number of evaluations.
Optuna is an extra: `pip install "emorl[search]"`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

from training.search.strategies.grid import Evaluate, Found, Level, SearchError, checked_scores
from training.search.strategies.spaces import Point, Simplex

BATCH = 8  # points drawn before their scores are known, so that they share one sweep
_STEPS = 128  # weights are multiples of 1 / 128, so that equal ones compare equal and small ones become 0
_LEAST = 1e-4  # minimum of the sampled numbers; its logarithm limits the ratio of two weights


def check_installed() -> None:
    """Raises `SearchError` if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise SearchError(
            'method tpe (the default for more than 5 objectives) needs Optuna: pip install "emorl[search]"',
            param="method",
        )


def search_tpe(objectives: int, trials: int, evaluate: Evaluate, *, seed: int = 0) -> Found:
    """`trials` evaluations on the simplex, including the single objectives and equal weights.

    The same seed and scores give the same points, so a resumed search repeats its requests. The result has a single
    level with all points.

    Raises `SearchError`: Optuna is not installed, trials below objectives + 1, or scores that are not finite numbers.
    """
    check_installed()
    import optuna

    if trials <= objectives:
        raise SearchError(f"trials is {trials}; allowed: a whole number from {objectives + 1}", param="trials")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        f"u{i}": optuna.distributions.FloatDistribution(_LEAST, 1.0) for i in range(objectives)
    }
    first = [tuple(float(i == only) for i in range(objectives)) for only in range(objectives)]
    first.append((1.0 / objectives,) * objectives)
    known: dict[Point, float] = {}
    points: list[Point] = []
    for point, score in zip(first, checked_scores(evaluate(first), len(first)), strict=True):
        known[point] = score
        points.append(point)
        params = {f"u{i}": max(_LEAST, math.exp(-weight)) for i, weight in enumerate(point)}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
    while len(points) < trials:
        asked = [study.ask(space) for _ in range(min(BATCH, trials - len(points)))]
        batch = [_weights([trial.params[f"u{i}"] for i in range(objectives)]) for trial in asked]
        new = list(dict.fromkeys(point for point in batch if point not in known))
        if new:
            known.update(zip(new, checked_scores(evaluate(new), len(new)), strict=True))
        for trial, point in zip(asked, batch, strict=True):
            study.tell(trial, known[point])
        points += batch
    even = Simplex(objectives).evenness
    best = max(known, key=lambda point: (known[point], even(point)))
    level = Level(1, tuple(first[:-1]), tuple(points), tuple(known[point] for point in points), best, known[best])
    return Found(best, known[best], (level,), known, len(points))


def _weights(uniform: Sequence[float]) -> Point:
    """Numbers in (0, 1] -> weights: -log of uniform numbers, scaled to sum 1, is uniform on the simplex."""
    raw = [-math.log(value) for value in uniform]
    total = math.fsum(raw)
    if total == 0.0:
        return (1.0 / len(raw),) * len(raw)
    steps = [round(_STEPS * value / total) for value in raw]
    return tuple(step / sum(steps) for step in steps)
