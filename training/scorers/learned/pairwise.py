"""Lessons of a judge: human replies against everything that should score lower, in pairs (Bradley & Terry 1952).

For each prompt these are: its replies of lower levels (or, if prompts have one reply, lower ones of other prompts with
similar length), its replies corrupted by rules, replies to other clients, the same reply under another prompt, and
constants. After every epoch, constants that fool the current model are searched and added to the lessons.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from training.data.corruptions import CORRUPTIONS, corrupt
from training.data.phrases import stock_phrases
from training.scorers.exam.constants import Constant, candidates_of, search_constants
from training.scorers.exam.material import Material, Score
from training.scorers.exam.pairs import alike
from training.scorers.learned.batches import WINDOW, derived_seed

if TYPE_CHECKING:
    import torch

FINALISTS = 16  # constants added by a search
_LOWEST = 2  # replies of the lowest level used per prompt
_SPOILT, _FIXED = 2, 2  # replies corrupted by rules, and constants, per prompt
_DRAWS = 4  # replies drawn at random, of which the one with the most similar length is used
_MATCHED_WEIGHT, _CONSTANT_WEIGHT = 2.0, 1.5
_MINED_SHARE = 0.7  # of the constants, once a search has found some
_SEARCH_CANDIDATES, _SEARCH_PROMPTS = 120, 12
TEXTS = 12  # approximate number per prompt


@dataclass
class Unit:
    """The texts of one prompt as (prompt, reply), and pairs of indices as (better, worse, weight). `levels`: index ->
    level, for texts that may be compared with those of other prompts of the set `number`."""

    texts: dict[tuple[str, str], int] = field(default_factory=dict)
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    number: int = 0
    levels: dict[int, float] = field(default_factory=dict)

    def place(self, prompt: str, reply: str) -> int:
        return self.texts.setdefault((prompt, reply), len(self.texts))

    def add(self, better: int, worse: int, weight: float = 1.0) -> None:
        if better != worse:
            self.pairs.append((better, worse, weight))


class PairLessons:
    """`graded`: sets whose levels are learnt. `replies`: sets of which only the good replies are used."""

    def __init__(
        self,
        graded: Sequence[Material],
        replies: Sequence[Material],
        *,
        seed: int,
        batch_size: int,
        prompts_per_epoch: int,
    ) -> None:
        self.sets = [*graded, *replies]
        self.levels_count = len(graded)
        self.seed = seed
        self.per_batch = max(1, batch_size // TEXTS)
        self.per_set = max(1, prompts_per_epoch // len(self.sets))
        self.mined: list[Constant] = []  # found by the last search, best first
        self.known: list[str] = []  # found by any search
        self.searches: list[dict[str, float]] = []
        self._stock = list(stock_phrases())
        self._streams = [stream for number in range(len(self.sets)) for stream in self._streams_of(number)]

    def plan(self, epoch: int) -> list[list[Unit]]:
        """The batches of an epoch. Their number is the same in every epoch."""
        draw = random.Random(derived_seed(self.seed, epoch, "pairs"))
        units = [
            self._unit(number, anchor, draw)
            for at, (number, anchors, count) in enumerate(self._streams)
            for anchor in _visited(anchors, epoch, count, f"{self.seed}:{at}")
        ]
        draw.shuffle(units)
        batches: list[list[Unit]] = []
        for start in range(0, len(units), WINDOW * self.per_batch):
            near = sorted(units[start : start + WINDOW * self.per_batch], key=_length)
            batches += [near[at : at + self.per_batch] for at in range(0, len(near), self.per_batch)]
        draw.shuffle(batches)
        return batches

    def texts(self, batch: Sequence[Unit]) -> tuple[list[str], list[str]]:
        """Prompts and replies."""
        rows = [text for unit in batch for text in unit.texts]
        return [prompt for prompt, _ in rows], [reply for _, reply in rows]

    def loss(self, logits: torch.Tensor, batch: Sequence[Unit]) -> torch.Tensor:
        """Weighted mean of -log σ(better - worse) over all pairs. `logits`: [texts, 1]."""
        import torch

        pairs: list[tuple[int, int, float]] = []
        graded: list[tuple[int, float, int]] = []  # (set, level, place)
        start = 0
        for unit in batch:
            pairs += [(start + better, start + worse, weight) for better, worse, weight in unit.pairs]
            graded += [(unit.number, level, start + place) for place, level in unit.levels.items()]
            start += len(unit.texts)
        known = {pair[:2] for pair in pairs}
        pairs += [
            (better, worse, 1.0)
            for one, high, better in graded
            for other, low, worse in graded
            if one == other and high > low and (better, worse) not in known
        ]
        better, worse, weights = (list(column) for column in zip(*pairs, strict=True))
        gap = logits[better, 0] - logits[worse, 0]
        weight = torch.tensor(weights, device=gap.device)
        return (weight * torch.nn.functional.softplus(-gap)).sum() / weight.sum()

    def search(self, score: Score, epoch: int) -> None:
        """Find constants that fool the model after `epoch`, and add them to the lessons."""
        seed = derived_seed(self.seed, epoch, "search")
        draw = random.Random(seed)
        everything = [record for material in self.sets for record in material.records]
        stock = draw.sample(self._stock, min(FINALISTS * 2, len(self._stock)))
        candidates = candidates_of(
            everything, most=_SEARCH_CANDIDATES, seed=seed, stock=[*self.known[-FINALISTS * 2 :], *stock]
        )
        good = [material.records[at] for material in self.sets for at in material.good]
        about = draw.sample(good, min(_SEARCH_PROMPTS, len(good)))
        self.mined = search_constants(score, candidates, about, finalists=FINALISTS)[:FINALISTS]
        new = {constant.text: None for constant in reversed(self.mined)}  # the best last, so that they are kept longest
        self.known = [text for text in self.known if text not in new] + list(new)

    def state(self) -> dict[str, Any]:
        mined = [[constant.text, constant.mean] for constant in self.mined]
        return {"known": self.known, "mined": mined, "searches": self.searches}

    def restore(self, state: dict[str, Any]) -> None:
        self.known, self.searches = list(state["known"]), list(state["searches"])
        self.mined = [Constant(text, mean) for text, mean in state["mined"]]

    def _streams_of(self, number: int) -> list[tuple[int, list[tuple[int, ...]], int]]:
        """What an epoch draws from a set, and how often: prompts with their replies, or single replies above the lowest
        level, balanced by level."""
        material = self.sets[number]
        graded = number < self.levels_count
        if graded and material.ranked_within:
            good = set(material.good)
            held = [[tuple(own) for own in material.by_prompt.values() if good & set(own)]]
        elif graded:
            held = [
                [(at,) for at in material.above_lowest if material.records[at].level == level]
                for level in material.scale[1:]
            ]
        else:
            held = [[(at,) for at in material.good]]
        held = [anchors for anchors in held if anchors]
        return [(number, anchors, max(1, self.per_set // len(held))) for anchors in held]

    def _unit(self, number: int, anchor: tuple[int, ...], draw: random.Random) -> Unit:
        material, unit = self.sets[number], Unit(number=number)
        records = material.records
        if number < self.levels_count and len(anchor) > 1:
            top = self._within(material, anchor, unit, draw)
        else:
            top = list(anchor)
            if number < self.levels_count:
                self._between(material, anchor[0], unit, draw)
        own = [(at, unit.place(records[at].prompt, str(records[at].response))) for at in top]
        prompt = records[top[0]].prompt
        for name in draw.sample(list(CORRUPTIONS), _SPOILT):
            at, place = draw.choice(own)
            spoilt = corrupt(name, prompt, str(records[at].response), draw)
            if spoilt is not None:
                unit.add(place, unit.place(prompt, spoilt))
        for reply, weight in (*self._others(material, top[0], draw), *self._constants(draw)):
            worse = unit.place(prompt, reply)
            for _, place in own:
                unit.add(place, worse, weight)
        stranger = self._stranger(material, top[0], draw)
        if stranger is not None:
            at, place = draw.choice(own)
            unit.add(place, unit.place(records[stranger].prompt, str(records[at].response)))
        return unit

    def _within(self, material: Material, anchor: Sequence[int], unit: Unit, draw: random.Random) -> list[int]:
        """Add pairs of a prompt's own levels; returns its best replies."""
        lowest = [at for at in anchor if material.records[at].level == material.scale[0]]
        kept = [at for at in anchor if at not in lowest] + draw.sample(lowest, min(_LOWEST, len(lowest)))
        for high in kept:
            for low in kept:
                one, other = material.records[high], material.records[low]
                if (one.level or 0.0) > (other.level or 0.0):
                    matched = alike(material.lengths[high], material.lengths[low])
                    unit.add(
                        unit.place(one.prompt, str(one.response)),
                        unit.place(other.prompt, str(other.response)),
                        _MATCHED_WEIGHT if matched else 1.0,
                    )
        best = max(material.records[at].level or 0.0 for at in kept)
        return [at for at in kept if (material.records[at].level or 0.0) == best]

    def _between(self, material: Material, at: int, unit: Unit, draw: random.Random) -> None:
        """Add pairs of one reply and lower ones of other prompts with similar length."""
        own = material.records[at]
        lower = [other for other, record in enumerate(material.records) if (record.level or 0.0) < (own.level or 0.0)]
        for _ in range(_LOWEST):
            if lower:
                other = material.like_in_length(at, draw.sample(lower, min(_DRAWS, len(lower))))
                for each in (at, other):
                    record = material.records[each]
                    place = unit.place(record.prompt, str(record.response))
                    unit.levels[place] = record.level or 0.0
                unit.add(unit.place(own.prompt, str(own.response)), place, _MATCHED_WEIGHT)

    def _others(self, material: Material, at: int, draw: random.Random) -> list[tuple[str, float]]:
        """Replies to other clients: one on the same topic, and a random one with a reply of similar length."""
        made: list[tuple[str, float]] = []
        near = material.near[at]
        if near:
            made.append((str(material.records[draw.choice(near)].response), 1.0))
        strangers = [draw.choice(material.above_lowest) for _ in range(2 * _DRAWS)]
        strangers = [other for other in strangers if material.clusters[other] != material.clusters[at]][:_DRAWS]
        if strangers:
            made.append((str(material.records[material.like_in_length(at, strangers)].response), 1.0))
        return made

    def _constants(self, draw: random.Random) -> list[tuple[str, float]]:
        made = []
        for _ in range(_FIXED):
            mined = bool(self.known) and draw.random() < _MINED_SHARE
            # Later ones are drawn more often, since they fool the current model.
            at = int(len(self.known) * max(draw.random(), draw.random()))
            made.append((self.known[at] if mined else draw.choice(self._stock), _CONSTANT_WEIGHT))
        return made

    def _stranger(self, material: Material, at: int, draw: random.Random) -> int | None:
        """A reply to another client; None if there is none."""
        strangers = [draw.choice(material.good) for _ in range(_DRAWS)]
        return next((other for other in strangers if material.clusters[other] != material.clusters[at]), None)


def _visited(anchors: Sequence[tuple[int, ...]], epoch: int, count: int, seed: str) -> list[tuple[int, ...]]:
    """`count` of them for an epoch; none is repeated before all have been used."""
    chosen: list[tuple[int, ...]] = []
    for number in range(epoch * count, (epoch + 1) * count):
        cycle, at = divmod(number, len(anchors))
        chosen.append(anchors[_order(len(anchors), f"{seed}:{cycle}")[at]])
    return chosen


def _order(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def _length(unit: Unit) -> int:
    return max(len(prompt) + len(reply) for prompt, reply in unit.texts)
