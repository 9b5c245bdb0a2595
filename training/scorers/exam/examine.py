"""The exam of a scorer: whether it prefers good replies to what a policy could find instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emorl_core.scorers.asking import Asked, ask_rounded
from emorl_core.scorers.base import Checked
from training.data.corruptions import CORRUPTIONS
from training.data.records import Record
from training.scorers.exam.constants import Constant, candidates_of, search_constants
from training.scorers.exam.figures import (
    Figure,
    accuracy,
    auc,
    best_thresholds,
    classes_of,
    macro_f1,
    rank_correlation,
)
from training.scorers.exam.material import Material
from training.scorers.exam.pairs import CONSTANT, MATCHED, NEAR, OWN, Pair, constant_pairs, own_pairs, ranked_pairs

LEVELS, CLASSES, LENGTH = "higher over lower level, any prompts", "levels told apart", "correlation with length"
# Row -> what data it needs; the report lists the rows for which no data set had them.
_NEEDS = {
    CONSTANT: "replies",
    OWN: "replies of two clients",
    NEAR: "replies of clients who speak of the same thing",
    "high over medium": "three levels within a prompt, as in pair",
    f"high over medium{MATCHED}": "three levels within a prompt, as in pair",
    "medium over low": "three levels within a prompt, as in pair",
    f"medium over low{MATCHED}": "three levels within a prompt, as in pair",
    LEVELS: "levels across prompts, as in annomi, epitome, esconv",
    CLASSES: "levels across prompts, as in annomi, epitome, esconv",
    **{f"own over {name}": "a reply that the rule can change" for name in CORRUPTIONS},
    LENGTH: "replies",
}
_MACRO_F1_LEVELS = 10  # with more levels, they are not treated as classes


@dataclass(frozen=True, slots=True)
class ExamSettings:
    """The size of the exam. Everything is drawn with `seed`, which also splits the data."""

    seed: int = 0
    replies: int = 120  # good replies of each data set that are tested
    graded: int = 600  # replies of each data set whose levels are compared
    candidates: int = 300  # replies of the training part, or sentences of them, that are tried as constants
    prompts: int = 24  # prompts of the training part used in the search for constants


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `by_length`: the same figure for a scorer that always prefers the longer reply."""

    row: str
    data: str
    measure: str
    figure: Figure
    by_length: float


@dataclass(frozen=True, slots=True)
class Fooling:
    """The best constant for a data set, and the mean scores of constant and good replies on the test part. The text may
    come from the data."""

    data: str
    constant: Constant
    mean: float
    human: float


@dataclass(frozen=True, slots=True)
class Exam:
    """The results. `left_out`: rows for which no data set had suitable replies, and what they need."""

    scorer: str
    rows: tuple[Row, ...]
    fooling: tuple[Fooling, ...]
    left_out: Mapping[str, str]
    settings: ExamSettings

    def as_dict(self, *, texts: bool = False) -> dict[str, Any]:
        """JSON values. texts: include the constants' texts, which may come from the data."""
        return {
            "scorer": self.scorer,
            "rows": [
                {"row": row.row, "data": row.data, "measure": row.measure, "by_length": _number(row.by_length)}
                | {name: _number(value) for name, value in asdict(row.figure).items()}
                for row in self.rows
            ],
            "constants": [
                {"data": each.data, "mean": each.mean, "human": each.human}
                | ({"text": each.constant.text} if texts else {})
                for each in self.fooling
            ],
            "left_out": dict(self.left_out),
            "settings": asdict(self.settings),
        }


class Asking:
    """A scorer with a cache: each pair of prompt and reply is scored once, in batches."""

    def __init__(self, scorer: Checked) -> None:
        self._scorer = scorer
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, about: Sequence[Asked], replies: Sequence[str]) -> list[float]:
        keys = [(each.prompt, reply) for each, reply in zip(about, replies, strict=True)]
        new = {key: each for key, each in zip(keys, about, strict=True) if key not in self._known}
        if new:
            scores = ask_rounded(self._scorer, list(new.values()), [reply for _, reply in new])
            self._known.update(zip(new, scores, strict=True))
        return [self._known[key] for key in keys]


def examine(scorer: Checked, sets: Sequence[Mapping[str, Material]], settings: ExamSettings | None = None) -> Exam:
    """Search constants on the training parts, set thresholds on the validation parts, evaluate on the test parts.

    Args:
        sets: for each data set its parts `train`, `validation` and `test`, as returned by `parts_of`.

    Raises `ScorerError`.
    """
    settings = settings or ExamSettings()
    asking = Asking(scorer)
    rows: list[Row] = []
    fooling: list[Fooling] = []
    for parts in sets:
        test = parts["test"]
        pairs: list[Pair] = []
        if parts["train"].good and test.good:
            constant = best_constant(asking, parts["train"].records, settings, good=parts["train"].good)
            asked = constant_pairs(test, constant.text, most=settings.replies, seed=settings.seed)
            pairs += asked
            fooling.append(_fooled(asking, test.name, constant, asked))
        pairs += own_pairs(test, most=settings.replies, seed=settings.seed, held_out=True)
        if test.ranked_within:
            pairs += ranked_pairs(test)
        rows += _pair_rows(asking, test.name, pairs)
        if len(test.scale) > 1 and not test.ranked_within:
            rows += _level_rows(asking, parts, settings)
        rows += _length_row(asking, test, settings)
    order = list(_NEEDS)
    rows.sort(key=lambda row: order.index(row.row) if row.row in order else len(order))
    missing = {name: why for name, why in _NEEDS.items() if name not in {row.row for row in rows}}
    return Exam(scorer.__name__, tuple(rows), tuple(fooling), missing, settings)


def best_constant(
    score: Asking, records: Sequence[Record], settings: ExamSettings, *, good: Sequence[int] | None = None
) -> Constant:
    """The sentence that scores best as a reply to the clients of `records`, searched among their replies and the
    held-out stock phrases. good: indices of the records whose prompts are used; None: all."""
    candidates = candidates_of(records, most=settings.candidates, seed=settings.seed)
    places = range(len(records)) if good is None else good
    step = max(1, len(places) // settings.prompts)
    about = [records[at] for at in places[::step]][: settings.prompts]
    return search_constants(score, candidates, about)[0]


def _fooled(asking: Asking, name: str, constant: Constant, pairs: Sequence[Pair]) -> Fooling:
    about = [pair.about for pair in pairs]
    human, fixed = asking(about, [pair.better for pair in pairs]), asking(about, [pair.worse for pair in pairs])
    return Fooling(name, constant, math.fsum(fixed) / len(pairs), math.fsum(human) / len(pairs))


def _pair_rows(asking: Asking, name: str, pairs: Sequence[Pair]) -> list[Row]:
    held: dict[str, list[Pair]] = {}
    for pair in pairs:
        held.setdefault(pair.row, []).append(pair)
    asking([each for pair in pairs for each in (pair.about, pair.worse_about)],
           [text for pair in pairs for text in (pair.better, pair.worse)])  # fmt: skip
    made = []
    for row, own in held.items():
        better = asking([pair.about for pair in own], [pair.better for pair in own])
        worse = asking([pair.worse_about for pair in own], [pair.worse for pair in own])
        clusters = [pair.cluster for pair in own]
        lengths = [(float(_length(pair.better)), float(_length(pair.worse))) for pair in own]
        figure = accuracy(list(zip(better, worse, strict=True)), clusters)
        made.append(Row(row, name, "accuracy", figure, accuracy(lengths, clusters).value))
    return made


def _level_rows(asking: Asking, parts: Mapping[str, Material], settings: ExamSettings) -> list[Row]:
    test, validation = _some(parts["test"], settings), _some(parts["validation"], settings)
    if len({record.level for record in test.records}) < 2:
        return []
    scores, levels = _scores(asking, test), [float(record.level or 0.0) for record in test.records]
    lengths = [float(length) for length in test.lengths]
    made = [
        Row(LEVELS, test.name, "AUC", auc(scores, levels, test.clusters), auc(lengths, levels, test.clusters).value)
    ]
    classes = len(test.scale)
    if classes <= _MACRO_F1_LEVELS and len({record.level for record in validation.records}) == classes:
        figures = []
        for own, known in (
            (scores, _scores(asking, validation)),
            (lengths, [float(length) for length in validation.lengths]),
        ):
            thresholds = best_thresholds(known, _classes(validation), classes)
            figures.append(macro_f1(classes_of(own, thresholds), _classes(test), classes, test.clusters))
        made.append(Row(CLASSES, test.name, "macro-F1", figures[0], figures[1].value))
    return made


def _length_row(asking: Asking, test: Material, settings: ExamSettings) -> list[Row]:
    some = _some(test, settings)
    scores, lengths = _scores(asking, some), [float(length) for length in some.lengths]
    if len(some.records) < 3:
        return []
    return [Row(LENGTH, test.name, "Spearman", rank_correlation(scores, lengths, some.clusters), 1.0)]


def _some(material: Material, settings: ExamSettings) -> Material:
    """At most `settings.graded` of the records, evenly spaced."""
    step = max(1, math.ceil(len(material.records) / settings.graded))
    return Material(material.name, material.records[::step], material.scale)


def _scores(asking: Asking, material: Material) -> list[float]:
    return asking(material.records, [str(record.response) for record in material.records])


def _classes(material: Material) -> list[int]:
    return [material.scale.index(float(record.level or 0.0)) for record in material.records]


def _length(text: str) -> int:
    return len(text.split())


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
