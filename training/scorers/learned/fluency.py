"""Fits the weights of the fluency scorer's likelihoods on pairs of human and corrupted replies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.files.writing import appearing
from emorl_core.scorers.base import checked
from emorl_core.scorers.calibration import fit_platt
from emorl_core.scorers.cross_encoder import local_or_hub, shown
from emorl_core.scorers.fluency import FEATURES, WEIGHTS_FILE, FluencyWeights, Likelihood, LikelihoodReader
from training.data.phrases import stock_phrases
from training.data.records import RecordSet
from training.progress import FitProgress
from training.scorers.exam.examine import ExamSettings, examine
from training.scorers.exam.material import Material, parts_of
from training.scorers.exam.pairs import Pair, constant_pairs, own_pairs
from training.scorers.exam.report import markdown_lines
from training.scorers.learned.settings import DTYPE, ScorerTraining
from training.scorers.learned.train import EXAM, Trained, check_target

if TYPE_CHECKING:
    import torch

REPLIES = 48  # human replies, over all sets, that weights are fitted on
CONSTANTS = 2  # stock phrases that each of them is compared with
_AT_ONCE = 64  # pairs of prompt and reply between two progress reports
_DECAY = 1e-2  # L2 penalty on the weights, for features of unit variance


def train_fluency(
    config: ScorerTraining,
    sets: Sequence[RecordSet],
    out: Path,
    *,
    overwrite: bool = False,
    progress: FitProgress | None = None,
    base: Path | None = None,
    exam: ExamSettings | None = None,
) -> Trained:
    """Read human and corrupted replies of the training parts with the causal model `config.encoder`, fit the weights,
    run the exam, write `out`. Raises `ScorerError` or `DataError`."""
    check_target(out, resume=False, overwrite=overwrite)
    parts = [parts_of(each, config.seed) for each in sets]
    where = local_or_hub(config.encoder, base)
    reader = LikelihoodReader(where, config.revision, device=config.device, dtype=DTYPE)
    pairs = _pairs([own["train"] for own in parts], config.seed)
    read = _read(reader, pairs, progress)
    weights = fit_weights([(read[_better(pair)], read[_worse(pair)]) for pair in pairs])
    report: dict[str, Any] = {
        "loss": config.loss,
        "encoder": shown(config.encoder),
        "seed": config.seed,
        "data": [{"name": each.name, "sha256": each.sha256, "records": len(each)} for each in sets],
        "pairs": len(pairs),
        "test": {"weight_of_" + name: value for name, value in weights.weights.items()},
        "exam": examine(checked(_AsFitted(reader, weights)), parts, replace(exam or EXAM, seed=config.seed)).as_dict(),
    }
    with appearing(out, replace=True) as finished:
        text = json.dumps(weights.model_dump(mode="json"), indent=2) + "\n"
        (finished / WEIGHTS_FILE).write_text(text, encoding="utf-8")
        (finished / "training.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        lines = ["# Fluency", "", f"Weights for `{report['encoder']}`, seed {config.seed}.", ""]
        text = "\n".join([*lines, *markdown_lines(report["exam"])]) + "\n"
        (finished / "README.md").write_text(text, encoding="utf-8")
    return Trained(out, report)


def fit_weights(pairs: Sequence[tuple[Likelihood, Likelihood]]) -> FluencyWeights:
    """Minimise the logistic loss of the gap in pairs (better, worse), by L-BFGS in float64, then fit a sigmoid for the
    scale of scores."""
    import torch

    known = [pair for pair in pairs if pair[1].given != -math.inf]
    human = list(dict.fromkeys(better for better, _ in known))
    centre = math.fsum(each.given for each in human) / len(human)

    def table(which: int) -> torch.Tensor:
        rows = [list(pair[which].features(centre).values()) for pair in known]
        return torch.tensor(rows, dtype=torch.float64)  # [pairs, features]

    better, worse = table(0), table(1)
    spread = torch.cat([better, worse]).std(0).clamp_min(1e-6)
    gap = (better - worse) / spread
    weights = torch.zeros(len(FEATURES), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.softplus(-(gap @ weights)).mean() + _DECAY * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    raw = (weights.detach() / spread).tolist()
    outputs = [math.fsum(w * x for w, x in zip(raw, row, strict=True)) for row in torch.cat([better, worse]).tolist()]
    platt = fit_platt(outputs, [1.0] * len(known) + [0.0] * len(known))
    scaled = {name: platt.slope * weight for name, weight in zip(FEATURES, raw, strict=True)}
    return FluencyWeights(dtype=DTYPE, centre=centre, weights=scaled, intercept=platt.intercept)


class _AsFitted:
    __name__ = "fluency"

    def __init__(self, reader: LikelihoodReader, weights: FluencyWeights) -> None:
        self._reader, self._weights = reader, weights

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:  # noqa: ARG002
        return [self._weights.score(each) for each in self._reader.read(prompts, completions)]


def _pairs(materials: Sequence[Material], seed: int) -> list[Pair]:
    each = max(1, REPLIES // len(materials))
    stock = list(stock_phrases())
    made = []
    for number, material in enumerate(materials):
        made += own_pairs(material, most=each, seed=seed, held_out=False)
        for constant in range(CONSTANTS):
            text = stock[(number * CONSTANTS + constant) * 97 % len(stock)]
            made += constant_pairs(material, text, most=each, seed=seed + constant)
    return made


def _better(pair: Pair) -> tuple[str, str]:
    return pair.about.prompt, pair.better


def _worse(pair: Pair) -> tuple[str, str]:
    return pair.worse_about.prompt, pair.worse


def _read(
    reader: LikelihoodReader, pairs: Sequence[Pair], progress: FitProgress | None
) -> dict[tuple[str, str], Likelihood]:
    texts = list(dict.fromkeys(text for pair in pairs for text in (_better(pair), _worse(pair))))
    found: dict[tuple[str, str], Likelihood] = {}
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        found.update(zip(some, reader.read([p for p, _ in some], [r for _, r in some]), strict=True))
        if progress is not None:
            progress(len(found), len(texts), math.nan)
    return found
