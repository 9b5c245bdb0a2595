"""Replies of a cell -> scores per prompt, from the objectives' scorers, the judges, and text metrics.

The scorers' answers are cached in the cell's folder until replies or scorers change. A cell is scored alone, always in
the same batches, so that a resumed run gives the same last digits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emorl_core.files.hashes import folder_hash
from emorl_core.files.writing import replacing
from emorl_core.scorers import Checked, Context, build_scorer
from emorl_core.scorers.asking import ask_rounded
from emorl_core.scorers.diversity import distinct_bigrams
from emorl_core.scorers.edit_rate import edit_rate
from emorl_core.scorers.words import longest_run, ngrams, words
from training.data.records import Record
from training.evaluation.cells import Cell, Reply, cell_folder
from training.search.score_table import Array

FORMAT = "emorl-scores/1"
SCORES_FILE = "scores.json"
_START = 3  # words

MEASURES: dict[str, str] = {
    "distinct_2": "distinct bigrams of all replies / all their bigrams; near 0, they all say the same",
    "diversity_2": "distinct bigrams / words of a reply",
    "edit_rate": "word-level edit distance to the prompt / the longer length; 0 is a copy",
    "copy_rate": "longest run of words that prompt and reply share / words of the reply; 1 is a copy",
    "words": "words of a reply",
    "ended": "share of replies that ended by themselves, not by the limit",
    "distinct": "share of replies that no other prompt got too",
    "same_start": "share of replies that begin with the three words that most begin with; near 1 is a formula",
}


OF_ALL_REPLIES = ("distinct_2",)  # measures that a resample of the prompts says nothing about


@dataclass(frozen=True, slots=True)
class Scorers:
    """The scorers of a comparison. `marks` change when a scorer, or a model that it loads, changes."""

    objectives: Mapping[str, Checked]
    judges: Mapping[str, Checked]
    marks: Mapping[str, str]

    @property
    def all(self) -> dict[str, Checked]:
        return {**self.objectives, **self.judges}


def build_scorers(objectives: Mapping[str, Any], judges: Mapping[str, Any], context: Context) -> Scorers:
    """Load the scorers. Raises `ScorerError` naming the field."""
    specs = {f"objectives.{name}.scorer": spec for name, spec in objectives.items()}
    specs |= {f"evaluation.scorers.{name}": spec for name, spec in judges.items()}
    built = {where: build_scorer(spec, context, where=where) for where, spec in specs.items()}
    return Scorers(
        {name: built[f"objectives.{name}.scorer"] for name in objectives},
        {name: built[f"evaluation.scorers.{name}"] for name in judges},
        dict(
            zip(
                [*objectives, *judges],
                [_mark(spec, context) for spec in specs.values()],
                strict=True,
            )
        ),
    )


def _mark(spec: Any, context: Context) -> str:
    """SHA-256 of the settings, of the folders they name, and of the corpus that some scorers learn from."""
    folders = [folder_hash(path) for path in _folders(spec, context.base)]
    corpus = [[record.prompt, record.response] for record in context.corpus]
    shown = json.dumps([spec, folders, corpus], sort_keys=True, default=str)
    return hashlib.sha256(shown.encode()).hexdigest()


def _folders(spec: Any, base: Path | None) -> list[Path]:
    if isinstance(spec, Mapping):
        return [path for value in spec.values() for path in _folders(value, base)]
    if isinstance(spec, (list, tuple)):
        return [path for value in spec for path in _folders(value, base)]
    if isinstance(spec, str) and "/" in spec:
        path = (base or Path()) / Path(spec).expanduser()
        return [path] if path.is_dir() else []
    return []


def scores_of(
    out: Path,
    cell: Cell,
    replies: Sequence[Reply],
    records: Sequence[Record],
    scorers: Scorers,
    told: Callable[[str], None] = lambda name: None,
) -> dict[str, Array]:
    """Scorer -> one score per prompt, [prompts]. told: called with the name of every scorer that is not cached. Raises
    `ScorerError`."""
    path = cell_folder(out, cell.method, cell.seed) / SCORES_FILE
    texts = [reply.text for reply in replies]
    answered = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    kept = _kept(path, answered, scorers.marks)
    missing = [name for name in scorers.all if name not in kept]
    for name in missing:
        told(name)
        kept[name] = ask_rounded(scorers.all[name], records, texts)
    if missing:
        marks = {name: scorers.marks[name] for name in kept}
        content = {"format": FORMAT, "replies": answered, "marks": marks, "scores": kept}
        path.parent.mkdir(parents=True, exist_ok=True)  # baselines have no cell folder yet
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return {name: np.array(kept[name], dtype=np.float64) for name in scorers.all}


def _kept(path: Path, answered: str, marks: Mapping[str, str]) -> dict[str, list[float]]:
    """The cached scores that are still valid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["replies"] != answered:
            return {}
        return {name: row for name, row in content["scores"].items() if content["marks"].get(name) == marks.get(name)}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}  # absent or unreadable: score again


def measures_of(replies: Sequence[Reply], records: Sequence[Record]) -> dict[str, Array]:
    """Text metrics: `MEASURES` -> one number per prompt, [prompts]."""
    texts = [reply.text for reply in replies]
    prompts = [record.prompt for record in records]
    often = Counter(texts)
    starts = [tuple(words(text)[:_START]) for text in texts]
    commonest = Counter(starts).most_common(1)[0][0]
    columns = {
        "distinct_2": _distinct_2(texts),
        "diversity_2": [distinct_bigrams(text) for text in texts],
        "edit_rate": [edit_rate(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
        "copy_rate": [copy_rate(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
        "words": [float(len(words(text))) for text in texts],
        "ended": [float(reply.finish_reason == "stop") for reply in replies],
        "distinct": [float(often[text] == 1) for text in texts],
        "same_start": [float(start == commonest) for start in starts],
    }
    return {name: np.array(columns[name], dtype=np.float64) for name in MEASURES}


def _distinct_2(texts: Sequence[str]) -> list[float]:
    """Each reply's part of distinct-2 (Li et al. 2016), so that the mean over the replies is that of all replies
    together: every occurrence of a bigram counts as 1 / its number of occurrences."""
    bigrams = [ngrams(words(text), 2) for text in texts]
    often = Counter(bigram for own in bigrams for bigram in own)
    mean = often.total() / len(texts)
    return [math.fsum(1 / often[bigram] for bigram in own) / mean if own else 0.0 for own in bigrams]


def copy_rate(prompt: str, reply: str) -> float:
    """Length of the longest run of words that both contain / words of the reply; 0 for an empty reply."""
    own = words(reply)
    return longest_run(words(prompt), own) / len(own) if own else 0.0
