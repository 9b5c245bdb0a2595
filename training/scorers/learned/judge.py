"""Trains a judge on the states of a frozen causal model: human replies and everything that should score lower are read
once, then a small network is fitted over the features.

Many sentences are read as replies to everybody. Those that fool the network get more weight, and it is fitted again.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_core.files.writing import appearing
from emorl_core.scorers.base import checked
from emorl_core.scorers.calibration import Calibration, fit_platt, write_calibration
from emorl_core.scorers.cross_encoder import local_or_hub, shown
from emorl_core.scorers.judge import ABOUT_FILE, HEAD_FILE, Head, JudgeAbout
from emorl_core.scorers.states import StateReader
from training.data.phrases import stock_phrases
from training.data.records import RecordSet
from training.progress import FitProgress
from training.scorers.exam.constants import candidates_of
from training.scorers.exam.examine import ExamSettings, examine
from training.scorers.exam.material import Material, parts_of
from training.scorers.exam.pairs import CONSTANT, OWN, Pair, own_pairs
from training.scorers.exam.report import markdown_lines
from training.scorers.learned.courses import kind_of_row
from training.scorers.learned.heads import Contest, Fit, fit_head, won
from training.scorers.learned.metrics import brier, expected_calibration_error
from training.scorers.learned.readings import Readings, Text
from training.scorers.learned.settings import DTYPE, ScorerTraining
from training.scorers.learned.train import EXAM, Trained, check_levels, check_target, partial_of

if TYPE_CHECKING:
    import torch

LEVELS = "levels"
_WORTH = {LEVELS: 1.5, OWN: 1.5, CONSTANT: 2.0, "spoilt": 2.0}  # total weight of a kind's contests in a data set
_LOWEST = 2  # replies of the lowest level used per prompt
_MOST = 20.0  # gain beyond which the softmax is cut off


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many texts are read, which determines the time."""

    replies: int = 150  # good replies of each set to corrupt, and to compare with others'
    validation: int = 40  # the same in the validation part
    graded: int = 800  # replies of each set whose levels are compared
    between: int = 8000  # pairs of these, if prompts have one reply each
    constants: int = 240  # sentences of each set that answer everybody, a quarter of them stock phrases
    answers: int = 8  # prompts that each of them answers
    about: int = 60  # prompts of which these are drawn
    rounds: int = 1  # fits after the first, with more weight on the constants that fooled the one before

    def held_out(self) -> Sizes:
        """The sizes for the validation part."""
        return replace(
            self,
            replies=self.validation,
            graded=self.graded // 2,
            between=self.between // 5,
            constants=self.constants // 3,
            answers=max(1, self.answers // 2),
        )


class Lessons:
    """Texts to read, and which should score higher than which.

    Args:
        sets: a part of each data set: first those whose levels are learnt, then the others.
        sources: the training parts, whose replies are used as constants.
    """

    def __init__(
        self, sets: Sequence[Material], sources: Sequence[Material], graded: int, sizes: Sizes, seed: int
    ) -> None:
        self.sizes, self.seed = sizes, seed
        self.texts: dict[Text, int] = {}
        self.contests: list[Contest] = []
        for number, (material, source) in enumerate(zip(sets, sources, strict=True)):
            self.add(material.name, own_pairs(material, most=sizes.replies, seed=seed, held_out=False))
            self._constants(material, source)
            if number < graded:
                self._levels(material, random.Random(f"{seed}:{material.name}:levels"))

    def add(self, data: str, pairs: Sequence[Pair]) -> None:
        for pair in pairs:
            better = self._place((pair.about.prompt, pair.better))
            worse = self._place((pair.worse_about.prompt, pair.worse))
            if better != worse:
                self.contests.append(Contest(pair.row, data, better, worse))

    def weights(self, outputs: Sequence[float] | None = None) -> list[float]:
        """The weight of each contest. outputs: of the last fit, one per text; half of the constants' weight is then
        shared out by a softmax of their mean gains on human replies."""
        kinds = [(kind_of_row(each.row), each.data) for each in self.contests]
        count = Counter(kinds)
        even = [_WORTH[kind] / count[kind, data] for kind, data in kinds]
        if outputs is None:
            return even
        gains: dict[tuple[str, str], list[float]] = {}
        texts = list(self.texts)
        constants = [(at, each, texts[each.worse][1]) for at, each in enumerate(self.contests) if each.row == CONSTANT]
        for _, each, text in constants:
            gains.setdefault((each.data, text), []).append(outputs[each.worse] - outputs[each.better])
        shares = {key: math.exp(min(_MOST, sum(own) / len(own))) for key, own in gains.items()}
        total: dict[str, float] = {}
        for _, each, text in constants:
            total[each.data] = total.get(each.data, 0.0) + shares[each.data, text]
        for at, each, text in constants:
            even[at] = 0.5 * even[at] + 0.5 * _WORTH[CONSTANT] * shares[each.data, text] / total[each.data]
        return even

    def fooled(self, outputs: Sequence[float]) -> dict[str, tuple[float, float]]:
        """Data set -> (mean output of the constant that gains most, mean output of the human replies beside it)."""
        texts = list(self.texts)
        held: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for each in self.contests:
            if each.row == CONSTANT:
                held.setdefault((each.data, texts[each.worse][1]), []).append(
                    (outputs[each.worse], outputs[each.better])
                )
        found: dict[str, tuple[float, float]] = {}
        for (data, _), own in held.items():
            means = (sum(a for a, _ in own) / len(own), sum(b for _, b in own) / len(own))
            if data not in found or means[0] > found[data][0]:
                found[data] = means
        return found

    def _constants(self, material: Material, source: Material) -> None:
        """Sentences as replies to everybody, against the clients' own good replies."""
        draw = random.Random(f"{self.seed}:{material.name}:constants")
        stock = draw.sample(list(stock_phrases()), self.sizes.constants // 4)
        good = [source.records[at] for at in source.good]
        texts = candidates_of(good, most=self.sizes.constants - len(stock), seed=draw.randrange(2**32), stock=stock)
        about = draw.sample(material.good, min(self.sizes.about, len(material.good)))
        for text in texts:
            for at in draw.sample(about, min(self.sizes.answers, len(about))):
                record, cluster = material.records[at], material.clusters[at]
                self.add(material.name, [Pair(CONSTANT, cluster, record, str(record.response), text, record)])

    def _levels(self, material: Material, draw: random.Random) -> None:
        if material.ranked_within:
            each = [own for own in material.by_prompt.values() if len(own) > 1]
            most = max(1, self.sizes.graded // (_LOWEST + 3))  # PAIR has three others
            for own in draw.sample(each, min(most, len(each))):
                lowest = [at for at in own if material.records[at].level == material.scale[0]]
                kept = [at for at in own if at not in lowest] + draw.sample(lowest, min(_LOWEST, len(lowest)))
                for high in kept:
                    for low in kept:
                        self._level(material, high, low)
            return
        some = draw.sample(range(len(material.records)), min(self.sizes.graded, len(material.records)))
        for _ in range(self.sizes.between):
            self._level(material, draw.choice(some), draw.choice(some))

    def _level(self, material: Material, high: int, low: int) -> None:
        """Add a contest in which the first reply has a higher level."""
        better, worse = material.records[high], material.records[low]
        if (better.level or 0.0) > (worse.level or 0.0):
            self.add(material.name, [Pair(LEVELS, "", better, str(better.response), str(worse.response), worse)])

    def _place(self, text: Text) -> int:
        return self.texts.setdefault(text, len(self.texts))


def train_judge(
    config: ScorerTraining,
    data: RecordSet,
    out: Path,
    *,
    also: Sequence[RecordSet] = (),
    replies: Sequence[RecordSet] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: FitProgress | None = None,
    base: Path | None = None,
    exam: ExamSettings | None = None,
    sizes: Sizes | None = None,
    fit: Fit | None = None,
) -> Trained:
    """Read, fit, weigh constants and fit again, calibrate on the validation part, run the exam on the test part, write
    `out`.

    Arguments as in `train_scorer`; data without levels count as human replies. Readings are stored in `.<out>.partial`,
    from which `resume` continues to the same network. Raises `ScorerError` or `DataError`."""
    check_target(out, resume=resume, overwrite=overwrite)
    levelled, bare = (
        [each for each in (data, *also) if (each.records[0].level is None) == none] for none in (False, True)
    )
    sets, graded = [*levelled, *bare, *replies], len(levelled)
    parts = [parts_of(each, config.seed) for each in sets]
    if graded:
        check_levels(config, parts[:graded])
    partial = partial_of(out)
    if overwrite and not resume:
        shutil.rmtree(partial, ignore_errors=True)
    reader = StateReader(local_or_hub(config.encoder, base), config.revision, device=config.device, dtype=DTYPE)
    known = {"model": shown(config.encoder), "revision": config.revision, "dtype": DTYPE}
    work = _Work(Readings(reader, partial, known), parts, graded, config.seed, sizes or Sizes(), fit or Fit(), progress)
    head = work.fitted()
    calibration, validation = work.calibrated(head)
    exam = replace(exam or EXAM, seed=config.seed)
    report: dict[str, Any] = {
        "loss": config.loss,
        "encoder": shown(config.encoder),
        "dtype": DTYPE,
        "seed": config.seed,
        "sizes": asdict(work.sizes),
        "fit": asdict(work.fit),
        "data": [
            {
                "name": each.name,
                "sha256": each.sha256,
                "records": len(each),
                "skipped": each.skipped,
                "graded": at < graded,
            }
            for at, each in enumerate(sets)
        ],
        "contests": len(work.lessons.contests),
        "texts": len(work.lessons.texts),
        "fooled": work.fooled,  # after each fit, on the training part: the best constant and human replies
        "validation": {**validation, **work.figures(head, calibration)},
        "exam": examine(checked(_AsFitted(work.readings, head, calibration)), parts, exam).as_dict(),
    }
    _write(head, calibration, report, out)
    shutil.rmtree(partial)
    return Trained(out, report)


class _Work:
    """A judge in training."""

    def __init__(
        self,
        readings: Readings,
        parts: Sequence[Mapping[str, Material]],
        graded: int,
        seed: int,
        sizes: Sizes,
        fit: Fit,
        progress: FitProgress | None,
    ) -> None:
        self.readings, self.seed, self.sizes, self.fit = readings, seed, sizes, fit
        self.fooled: list[dict[str, tuple[float, float]]] = []  # after each fit
        self._progress = progress
        train = [own["train"] for own in parts]
        self.lessons = Lessons(train, train, graded, sizes, seed)
        self.validation = Lessons([own["validation"] for own in parts], train, graded, sizes.held_out(), seed)

    def fitted(self) -> Head:
        """The network, refitted with more weight on the constants that fooled it."""
        features = self.readings.of(list(self.lessons.texts), self._told)
        weights = self.lessons.weights()
        for _ in range(1 + self.sizes.rounds):
            head = fit_head(features, self.lessons.contests, weights, seed=self.seed, fit=self.fit)
            outputs = outputs_of(head, features)
            self.fooled.append(self.lessons.fooled(outputs))
            weights = self.lessons.weights(outputs)
        return head

    def calibrated(self, head: Head) -> tuple[Calibration, dict[str, Any]]:
        """The calibration, with better replies as 1 and worse ones as 0, and the share of validation contests won."""
        outputs, contests = self._outputs(head, self.validation), self.validation.contests
        both = [outputs[place] for each in contests for place in (each.better, each.worse)]
        shares = {f"{row}, {data}": share for (row, data), (share, _) in won(outputs, contests).items()}
        return fit_platt(both, [1.0, 0.0] * len(contests)), shares

    def figures(self, head: Head, calibration: Calibration) -> dict[str, float]:
        """Figures on the validation part, whose pairs determine the calibration."""
        outputs, contests = self._outputs(head, self.validation), self.validation.contests
        scores = [calibration.apply([outputs[place]]) for each in contests for place in (each.better, each.worse)]
        targets = [1.0, 0.0] * len(contests)
        return {
            "brier": brier(scores, targets),
            "ece": expected_calibration_error(scores, targets),
        }

    def _outputs(self, head: Head, lessons: Lessons) -> list[float]:
        return outputs_of(head, self.readings.of(list(lessons.texts), self._told))

    def _told(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total, float("nan"))


class _AsFitted:
    """The scorer that will be written to the folder."""

    __name__ = "judge"

    def __init__(self, readings: Readings, head: Head, calibration: Calibration) -> None:
        self._readings, self._head, self._calibration = readings, head, calibration

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:  # noqa: ARG002
        outputs = outputs_of(self._head, self._readings.of(list(zip(prompts, completions, strict=True))))
        return [
            self._calibration.apply([output]) if reply.strip() else 0.0
            for output, reply in zip(outputs, completions, strict=True)
        ]


def outputs_of(head: Head, features: torch.Tensor) -> list[float]:
    return [float(value) for value in head(features)]


def _write(head: Head, calibration: Calibration, report: dict[str, Any], out: Path) -> None:
    from safetensors.torch import save_file

    with appearing(out, replace=True) as finished:
        save_file({name: getattr(head, name).contiguous() for name in Head.__dataclass_fields__}, finished / HEAD_FILE)
        about = JudgeAbout(dtype=DTYPE)
        (finished / ABOUT_FILE).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_calibration(finished, calibration)
        (finished / "training.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        data = ", ".join(f"{each['name']} ({each['records']} replies)" for each in report["data"])
        lines = [
            "# A judge of replies",
            "",
            f"A network over the states of `{report['encoder']}`, from {data}, seed {report['seed']}. In a recipe:",
            f"`{{kind: judge, model: {report['encoder']}, weights: THIS_FOLDER}}`.",
            "",
            "It follows the annotators of its data and their kind of text: a training signal and a measure for",
            "research, not a judgement of care. The data's licences bind whoever uses or passes on these weights.",
            "",
        ]
        text = "\n".join([*lines, *markdown_lines(report["exam"])]) + "\n"
        (finished / "README.md").write_text(text, encoding="utf-8")
