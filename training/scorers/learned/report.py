"""Evaluation of a trained scorer on a held-out part, its calibration, and its model card."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emorl_core.scorers.calibration import Calibration, Temperature, fit_isotonic, fit_platt, fit_temperature, sigmoid
from emorl_core.scorers.words import prompt_key
from training.data.records import Record
from training.scorers.exam.report import markdown_lines
from training.scorers.learned.metrics import brier, expected_calibration_error, macro_f1, ranking_accuracy


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A held-out part prepared for evaluation. The first `graded` rows are the data's own pairs; they are followed by
    top-level replies of other prompts (`mismatched` per prompt), which should score lower than the prompt's own."""

    prompts: list[str]
    responses: list[str]
    levels: list[float]
    groups: list[str]
    graded: int
    scale: list[float]  # the levels of the whole data set, lowest first
    loss: str

    @staticmethod
    def of(records: Sequence[Record], scale: list[float], loss: str, mismatched: int) -> Evaluation:
        rows = [
            (record.prompt, str(record.response), float(record.level or 0.0), prompt_key(record.prompt))
            for record in records
        ]
        graded = len(rows)
        if loss == "margin":
            own: dict[str, list[tuple[str, str]]] = {}
            for prompt, response, level, key in rows:
                if level == scale[-1]:
                    own.setdefault(key, []).append((prompt, response))
            keys = list(own)
            for at, key in enumerate(keys):
                # The next prompts in order: fixed, so that two runs on one split are evaluated on the same pairs.
                for offset in range(1, min(mismatched, len(keys) - 1) + 1):
                    strangers = own[keys[(at + offset) % len(keys)]]
                    rows.append((own[key][0][0], strangers[0][1], scale[0], key))
        prompts, responses, levels, groups = (list(column) for column in zip(*rows, strict=True))
        return Evaluation(prompts, responses, levels, groups, graded, scale, loss)

    @property
    def targets(self) -> list[float]:
        """Levels scaled to [0, 1]."""
        low, high = self.scale[0], self.scale[-1]
        return [(level - low) / (high - low) for level in self.levels]

    @property
    def classes(self) -> list[int]:
        return [self.scale.index(level) for level in self.levels]

    def quality(self, raw: Sequence[Sequence[float]]) -> float:
        """The criterion for the best epoch: ranking accuracy, mismatched replies included, or macro-F1."""
        if self.loss == "margin":
            return ranking_accuracy([row[0] for row in raw], self.levels, self.groups)[0]
        calibration = calibrate(self, raw, "")
        return macro_f1(predictions(raw, calibration), self.classes, len(self.scale))[0]


def calibrate(part: Evaluation, raw: Sequence[Sequence[float]], how: str) -> Calibration:
    """Fit the calibration on a part that was not used in training."""
    if part.loss == "classes":
        low, high = part.scale[0], part.scale[-1]
        return fit_temperature(raw, part.classes, [(level - low) / (high - low) for level in part.scale])
    fit = fit_isotonic if how == "isotonic" else fit_platt
    return fit([row[0] for row in raw], part.targets)


def evaluate(part: Evaluation, raw: Sequence[Sequence[float]], calibration: Calibration) -> dict[str, Any]:
    """The figures of the report. Calibration figures compare scores with levels scaled to [0, 1]."""
    scores = [calibration.apply(row) for row in raw]
    own, targets = slice(0, part.graded), part.targets
    figures: dict[str, Any] = {
        "brier": brier(scores[own], targets[own]),
        "ece": expected_calibration_error(scores[own], targets[own]),
        "brier_uncalibrated": brier(_plain(part, raw)[own], targets[own]),
        "ece_uncalibrated": expected_calibration_error(_plain(part, raw)[own], targets[own]),
        "brier_constant": brier([math.fsum(targets[own]) / part.graded] * part.graded, targets[own]),
    }
    if part.loss == "classes":
        predicted = predictions(raw, calibration)
        figures["macro_f1_uncalibrated"] = macro_f1([_argmax(row) for row in raw], part.classes, len(part.scale))[0]
        figures["macro_f1"], figures["f1_by_level"] = macro_f1(predicted, part.classes, len(part.scale))
        figures["accuracy"] = sum(map(int.__eq__, predicted, part.classes)) / part.graded
        most = max(part.classes, key=part.classes.count)
        figures["macro_f1_majority"] = macro_f1([most] * part.graded, part.classes, len(part.scale))[0]
        # Prompts have one reply each here, so pairs are taken across prompts.
        figures["ranking_accuracy"], figures["ranking_pairs"] = ranking_accuracy(scores, part.levels, [0] * part.graded)
        return figures
    values, levels, groups = scores[own], part.levels[own], part.groups[own]
    best, worst = part.scale[-1], part.scale[0]
    figures["ranking_accuracy"], figures["ranking_pairs"] = ranking_accuracy(values, levels, groups)
    figures["high_over_low"], figures["high_over_low_pairs"] = ranking_accuracy(
        values, levels, groups, better=best, worse=worst
    )
    if len(scores) > part.graded:
        kept = [index for index in range(len(scores)) if index >= part.graded or part.levels[index] == best]
        figures["own_over_mismatched"], figures["own_over_mismatched_pairs"] = ranking_accuracy(
            [scores[index] for index in kept],
            [part.levels[index] for index in kept],
            [part.groups[index] for index in kept],
        )
    return figures


def predictions(raw: Sequence[Sequence[float]], calibration: Calibration) -> list[int]:
    """The likeliest class of each row after calibration; before it, class weights in the loss make rare classes too
    likely."""
    if not isinstance(calibration, Temperature):
        raise TypeError("only class probabilities have a likeliest class")
    return [_argmax(calibration.likely(row)) for row in raw]


def write_card(folder: Path, report: dict[str, Any]) -> None:
    """Write `README.md` in the hub's format: front matter, description, figures, limits."""
    test = report["test"]
    rows = "\n".join(f"| {name} | {figure(value)} |" for name, value in sorted(test.items()))
    loss = {
        "pairwise": "pairs (Bradley-Terry): human replies over lower levels, replies spoilt by rules, replies to other "
        "clients, and constants found by search",
        "margin": "margin ranking over the replies of a prompt, with replies of other prompts as lowest level",
        "classes": "cross-entropy over the levels with balanced class weights",
    }[report["loss"]]
    parts = ", ".join(
        f"{part} {report['prompts'][part]} prompts / {report['pairs'][part]} pairs" for part in report["prompts"]
    )
    sources = "\n".join(
        f"- Data: {each['name']}, {each['records']} {'graded pairs' if each['graded'] else 'human replies'}, "
        f"{each['skipped']} malformed rows skipped, sha256 `{each['sha256']}`."
        for each in report["data"]
    )
    exam = "\n".join(markdown_lines(report["exam"]))
    text = f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [emorl-scorer, cross-encoder]
---
# Scorer trained from {", ".join(each["name"] for each in report["data"])}

Reads a client's prompt and a reply, and answers with one number in [0, 1], calibrated by `calibration.json`.
Use it in a recipe as `{{kind: cross_encoder, model: THIS_FOLDER}}`.

- Encoder: `{report["encoder"]}`; loss: {loss}.
{sources}
- Split by dialogue or prompt with seed {report["seed"]}: {parts}.
- Epoch {report["epoch_kept"]} of {len(report["validation_by_epoch"])} was kept by the validation part, which also
  fitted the calibration.

## On the test part, whose clients it never saw

| figure | value |
|---|---|
{rows}

## Exam

{exam}

## Limits

The score follows the annotators of this data set and its kind of text. It is a training signal and a measure for
research, not a judgement of care. The data's licence binds whoever uses or passes on these weights.

Settings: `{json.dumps(report["settings"], sort_keys=True)}`
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def _plain(part: Evaluation, raw: Sequence[Sequence[float]]) -> list[float]:
    """Scores without the fitted calibration: a sigmoid, or the expected level at temperature 1."""
    if part.loss == "margin":
        return [sigmoid(row[0]) for row in raw]
    low, high = part.scale[0], part.scale[-1]
    plain = Temperature(temperature=1.0, values=tuple((level - low) / (high - low) for level in part.scale))
    return [plain.apply(row) for row in raw]


def _argmax(row: Sequence[float]) -> int:
    return max(range(len(row)), key=lambda index: row[index])


def figure(value: object) -> str:
    """One or several figures on the test part, as text."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return ", ".join(figure(item) for item in value) if isinstance(value, list) else str(value)
