"""Search for the best constant reply, which a policy finds if a scorer allows it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emorl_core.scorers.asking import Asked
from training.data.phrases import STOCK
from training.data.records import Record
from training.scorers.exam.material import Score

_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_FEWEST_WORDS = 4
_FIRST, _GROWTH, _KEPT = 2, 3, 4  # prompts in the first round; their growth per round; one text in `_KEPT` is kept


@dataclass(frozen=True, slots=True)
class Constant:
    """A sentence and its mean score as a reply to all prompts."""

    text: str
    mean: float


def candidates_of(records: Iterable[Record], *, most: int, seed: int, stock: Iterable[str] = STOCK) -> list[str]:
    """All of `stock`, then up to `most` replies and single sentences of replies, drawn at random."""
    texts: dict[str, None] = {}
    for record in records:
        if record.response is not None:
            texts[record.response] = None
            parts = [part for part in _SENTENCES.split(record.response) if len(part.split()) >= _FEWEST_WORDS]
            texts.update(dict.fromkeys(parts))
    drawn = random.Random(f"{seed}:constants").sample(list(texts), min(most, len(texts)))
    return list(dict.fromkeys([*stock, *drawn]))


def search_constants(
    score: Score, candidates: Sequence[str], about: Sequence[Asked], *, finalists: int = 1
) -> list[Constant]:
    """The best constants, best first, by successive halving (Jamieson & Talwalkar 2016): all candidates answer a few
    prompts, the best quarter answers more, until at least `finalists` of them have answered all of `about`."""
    alive = list(dict.fromkeys(candidates))
    sums = dict.fromkeys(alive, 0.0)
    answered, size = 0, _FIRST
    while True:
        last = len(alive) <= finalists or answered + size >= len(about)
        block = about[answered:] if last else about[answered : answered + size]
        scores = iter(score([each for each in block for _ in alive], [text for _ in block for text in alive]))
        for _ in block:
            for text in alive:
                sums[text] += next(scores)
        answered += len(block)
        alive.sort(key=lambda text: -sums[text])  # stable: ties go to the earlier candidate
        if last:
            return [Constant(text, sums[text] / answered) for text in alive]
        alive = alive[: max(finalists, len(alive) // _KEPT)]
        size *= _GROWTH
