"""How a scorer is trained and evaluated: lessons, quality per epoch, calibration, figures on the test part."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from emorl_core.scorers.asking import Asked
from emorl_core.scorers.calibration import Calibration, fit_platt
from training.scorers.exam.material import Material
from training.scorers.exam.pairs import CONSTANT, NEAR, OWN, Pair, constant_pairs, own_pairs, ranked_pairs
from training.scorers.learned.batches import examples_of
from training.scorers.learned.fitting import Fitting
from training.scorers.learned.lessons import GradedLessons, Lessons
from training.scorers.learned.metrics import brier, expected_calibration_error
from training.scorers.learned.pairwise import PairLessons
from training.scorers.learned.report import Evaluation, calibrate, evaluate
from training.scorers.learned.settings import ScorerTraining

_REPLIES, _RANKED = 12, 40  # per validation set: good replies that are tested, pairs of its own levels
_CONSTANTS = 4  # constants found in an epoch's search that its quality is measured with
_BETWEEN = "levels of different prompts"


class Course(Protocol):
    """One way to train a scorer."""

    lessons: Lessons

    def after_epoch(self, run: Fitting, epoch: int) -> float:
        """The quality of the current model on the validation part."""

    def calibration(self, run: Fitting) -> Calibration:
        """The calibration, fitted on the validation part."""

    def figures(self, run: Fitting, calibration: Calibration) -> dict[str, Any]:
        """Figures on the test part."""


class GradedCourse:
    """Learns levels, by margins within a prompt or as classes."""

    def __init__(self, config: ScorerTraining, parts: Mapping[str, Material], levels: list[float]) -> None:
        self.config = config
        self.lessons: Lessons = GradedLessons(config, examples_of(parts["train"].records), levels)
        self._validation, self._test = (
            Evaluation.of(parts[part].records, levels, config.loss, config.mismatched)
            for part in ("validation", "test")
        )

    def after_epoch(self, run: Fitting, epoch: int) -> float:  # noqa: ARG002  one signature for all courses
        return self._validation.quality(run.raw(self._validation.prompts, self._validation.responses))

    def calibration(self, run: Fitting) -> Calibration:
        part = self._validation
        return calibrate(part, run.raw(part.prompts, part.responses), self.config.calibration)

    def figures(self, run: Fitting, calibration: Calibration) -> dict[str, Any]:
        return evaluate(self._test, run.raw(self._test.prompts, self._test.responses), calibration)


class PairCourse:
    """Learns from all kinds of pairs, with a search for constants after every epoch. `graded`: parts of the sets whose
    levels are learnt; `replies`: parts of the sets that provide only human replies."""

    def __init__(
        self,
        config: ScorerTraining,
        graded: Sequence[Mapping[str, Material]],
        replies: Sequence[Mapping[str, Material]] = (),
    ) -> None:
        self.config = config
        self._lessons = PairLessons(
            [parts["train"] for parts in graded],
            [parts["train"] for parts in replies],
            seed=config.seed,
            batch_size=config.batch_size,
            prompts_per_epoch=config.prompts_per_epoch,
        )
        self.lessons: Lessons = self._lessons
        self._graded, self._replies = graded, replies
        self._pairs = self._pairs_of("validation")

    def after_epoch(self, run: Fitting, epoch: int) -> float:
        def score(about: Sequence[Asked], replies: Sequence[str]) -> list[float]:
            return [row[0] for row in run.raw([each.prompt for each in about], replies)]

        self._lessons.search(score, epoch)
        pairs = [*self._pairs, *self._constant_pairs("validation")]
        gaps = _gaps(run, pairs)
        human = [better for pair, (better, _) in zip(pairs, gaps, strict=True) if pair.row == CONSTANT]
        self._lessons.searches.append(
            {"constant": self._lessons.mined[0].mean, "human": math.fsum(human) / max(1, len(human))}
        )
        held: dict[str, list[float]] = {}
        for pair, (better, worse) in zip(pairs, gaps, strict=True):
            held.setdefault(kind_of_row(pair.row), []).append(
                1.0 if better > worse else 0.5 if better == worse else 0.0
            )
        return math.fsum(math.fsum(won) / len(won) for won in held.values()) / len(held)

    def calibration(self, run: Fitting) -> Calibration:
        """Better replies as 1, worse ones as 0; all pairs count the same, so half of the targets are 1."""
        pairs = [*self._pairs, *self._constant_pairs("validation")]
        gaps = _gaps(run, pairs)
        return fit_platt([z for gap in gaps for z in gap], [target for _ in gaps for target in (1.0, 0.0)])

    def figures(self, run: Fitting, calibration: Calibration) -> dict[str, Any]:
        pairs = self._pairs_of("test")
        scores = [calibration.apply([z]) for gap in _gaps(run, pairs) for z in gap]
        targets = [target for _ in pairs for target in (1.0, 0.0)]
        won = [
            0.5 * (1 + (better > worse) - (better < worse))
            for better, worse in zip(scores[::2], scores[1::2], strict=True)
        ]
        return {
            "pairs_won": math.fsum(won) / len(won),
            "pairs": len(pairs),
            "brier": brier(scores, targets),
            "ece": expected_calibration_error(scores, targets),
        }

    def _pairs_of(self, part: str) -> list[Pair]:
        """All pairs except constants, without the phrases that are reserved for the exam."""
        seed, made = self.config.seed, []
        for parts in (*self._graded, *self._replies):
            made += own_pairs(parts[part], most=_REPLIES, seed=seed, held_out=False)
        for parts in self._graded:
            material = parts[part]
            pairs = ranked_pairs(material) if material.ranked_within else _between_pairs(material, seed)
            made += random.Random(seed).sample(pairs, min(_RANKED, len(pairs)))
        return made

    def _constant_pairs(self, part: str) -> list[Pair]:
        return [
            pair
            for constant in self._lessons.mined[:_CONSTANTS]
            for parts in (*self._graded, *self._replies)
            for pair in constant_pairs(parts[part], constant.text, most=_REPLIES, seed=self.config.seed)
        ]


def _between_pairs(material: Material, seed: int) -> list[Pair]:
    """Each reply above the lowest level, paired with a lower one of another prompt."""
    draw = random.Random(f"{seed}:{material.name}:between")
    made = []
    for at in material.above_lowest:
        own = material.records[at]
        lower = [record for record in material.records if (record.level or 0.0) < (own.level or 0.0)]
        if lower:
            other = draw.choice(lower)
            made.append(Pair(_BETWEEN, material.clusters[at], own, str(own.response), str(other.response), other))
    return made


def kind_of_row(row: str) -> str:
    """The kind of a row: constants, other clients, corrupted replies or levels. All kinds have equal weight in an
    epoch's quality."""
    if row in (OWN, NEAR):
        return OWN
    return row if row == CONSTANT else "spoilt" if row.startswith("own over ") else "levels"


def _gaps(run: Fitting, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """(output for the better, for the worse) of each pair; every text is read once."""
    texts: dict[tuple[str, str], int] = {}
    for pair in pairs:
        texts.setdefault((pair.about.prompt, pair.better), len(texts))
        texts.setdefault((pair.worse_about.prompt, pair.worse), len(texts))
    raw = run.raw([prompt for prompt, _ in texts], [reply for _, reply in texts])
    return [
        (raw[texts[pair.about.prompt, pair.better]][0], raw[texts[pair.worse_about.prompt, pair.worse]][0])
        for pair in pairs
    ]
