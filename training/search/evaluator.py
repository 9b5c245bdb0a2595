"""Points -> score tables: one shared sweep for all that are new, then the scorers on the texts that are new.

Nothing is done twice: points that give the same texts are generated once, a text that follows from its neighbours not
at all, and a prompt's text is scored once, however many points give it and however often the search was interrupted.

For a given prefix a lane's logits are fixed and the mix is linear in the weights, so "this token is the largest" is a
half-space for every other token: the weight vectors that give one greedy text form a convex cone. When two vectors give
the same tokens, so does every vector between them. (Greedy decoding of mixed hidden states, weights from 0.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emorl_core.scorers import Checked
from emorl_core.scorers.asking import Asked, Panel
from training.search.generator import Generator
from training.search.grid import SearchError
from training.search.log import EvaluationLog
from training.search.score_table import ScoreTable
from training.search.spaces import Point

# Two directions are opposite when their cosine is this near to -1: 5e-7 rad, far below the distance of grid points.
_OPPOSITE = 1e-13
_HASH = 16  # hexadecimal digits that name a text among those of one prompt


@dataclass(slots=True)
class Counts:
    """What a search did. Texts are counted once per prompt and key."""

    rays: int = 0  # distinct keys evaluated: directions, for an ensemble; the zero vector among them
    texts_generated: int = 0
    texts_implied: int = 0  # known from their neighbours
    texts_scored: int = 0  # distinct texts, once per prompt
    lane_row_steps: int = 0  # lane rows computed, one token each
    unshared_lane_row_steps: int = 0  # what one run per generated text would have computed


class Known:
    """The directions that were generated, and which tokens each prompt had under them."""

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._directions: list[np.ndarray] = []
        self._tokens: list[list[str]] = []  # names of token sequences, per direction and prompt

    def add(self, point: Point, tokens: Sequence[str]) -> None:
        """point: not the zero vector; tokens: one name of a token sequence per prompt."""
        self._directions.append(_direction(point))
        self._tokens.append(list(tokens))

    def implied(self, point: Point) -> list[str | None]:
        """Per prompt the name of the tokens that `point` must give, or None where that is not known."""
        found: list[str | None] = [None] * self._prompts
        for i, j in self._around(_direction(point)):
            for prompt, (a, b) in enumerate(zip(self._tokens[i], self._tokens[j], strict=True)):
                if a == b:
                    found[prompt] = a
        return found

    def _around(self, here: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of known directions with `here` on the line between them."""
        if not self._directions:
            return []
        away = np.stack(self._directions) - here  # [K, N]
        distance = np.linalg.norm(away, axis=1)
        distance[distance == 0.0] = np.inf  # `here` itself
        away = away / distance[:, None]
        first, second = np.nonzero(np.triu(away @ away.T < -1 + _OPPOSITE))
        return list(zip(first.tolist(), second.tolist(), strict=True))


def _direction(point: Point) -> np.ndarray:
    vector = np.asarray(point, dtype=np.float64)
    return vector / vector.sum()


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """One point. `tokens` and `texts` name what each prompt got; equal names, equal things."""

    point: Point
    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]  # [prompts][scorers]

    def as_line(self, names: Sequence[str]) -> dict[str, Any]:
        columns = list(zip(*self.scores, strict=True))
        return {
            "point": list(self.point),
            "means": {name: sum(column) / len(column) for name, column in zip(names, columns, strict=True)},
            "scores": {name: list(column) for name, column in zip(names, columns, strict=True)},
            "tokens": list(self.tokens),
            "texts": list(self.texts),
        }


class Evaluator:
    """Evaluates points over one set of prompts and remembers them all."""

    def __init__(
        self,
        generator: Generator,
        about: Sequence[Asked],
        scorers: Mapping[str, Checked],
        *,
        infer: bool = True,
        log: EvaluationLog | None = None,
        settled: Callable[[int], None] = lambda texts: None,
    ) -> None:
        """about: what the generator's prompts are to the scorers; infer: let `implied` spare texts, where only the
        direction of a point counts; log: where evaluations go and come back from; settled: told how many more texts are
        there."""
        self.names = tuple(scorers)
        self.counts = Counts()
        self._generator, self._about = generator, tuple(about)
        self._panel, self._log, self._settled = Panel(scorers), log, settled  # asked by (prompt, name of text)
        self._infer = infer
        self._done: dict[Hashable, _Evaluation] = {}
        self._known = Known(len(self._about))
        self._text_of: dict[str, str] = {}  # name of tokens -> name of their text
        for line in log.read if log is not None else ():
            self._remember(_read(line, self.names))

    def tables(self, points: Sequence[Point]) -> list[ScoreTable]:
        """One table per point. Raises `EngineError`, `ScorerError`."""
        self._evaluate(points)
        return [ScoreTable(self.names, np.array(self._done[self._generator.key(point)].scores)) for point in points]

    def _evaluate(self, points: Sequence[Point]) -> None:
        new: dict[Hashable, Point] = {}
        for point in points:
            key = self._generator.key(point)
            if key not in self._done:
                new.setdefault(key, point)
        if not new:
            return
        texts: dict[tuple[int, str], str] = {}  # (prompt, name of text) -> text, of those to be scored
        tokens = self._tokens(list(new.values()), texts)
        self._panel.score({key: (self._about[key[0]], text) for key, text in texts.items()})
        self.counts.texts_scored += len(texts)
        made = []
        for point, own in zip(new.values(), tokens, strict=True):
            named = tuple(self._text_of[name] for name in own)
            scores = tuple(self._panel[prompt, name] for prompt, name in enumerate(named))
            made.append(_Evaluation(point, tuple(own), named, scores))
        if self._log is not None:
            self._log.append([evaluation.as_line(self.names) for evaluation in made])
        for evaluation in made:
            self._remember(evaluation)

    def _tokens(self, points: Sequence[Point], texts: dict[tuple[int, str], str]) -> list[list[str]]:
        """Names of the tokens, [points][prompts]; puts texts that nobody scored yet into `texts`."""
        prompts = range(len(self._about))
        names: list[list[str | None]] = []
        for point in points:
            if self._generator.is_silent(point):
                names.append([self._named("", (), p, texts) for p in prompts])
            else:
                names.append(self._known.implied(point) if self._infer else [None for _ in prompts])
                self.counts.texts_implied += sum(name is not None for name in names[-1])
        self._settled(sum(name is not None for own in names for name in own))
        swept = [i for i, own in enumerate(names) if None in own]
        if swept:
            result = self._generator.generate(
                [points[i] for i in swept],
                [[k for k, i in enumerate(swept) if names[i][p] is None] for p in prompts],
                lambda: self._settled(1),
            )
            for item in result.items:
                name = self._named(item.text, item.token_ids, item.prompt_index, texts)
                names[swept[item.weights_index]][item.prompt_index] = name
            self.counts.texts_generated += len(result.items)
            self.counts.lane_row_steps += result.lane_row_steps
            self.counts.unshared_lane_row_steps += result.unshared_lane_row_steps
        return [[name for name in own if name is not None] for own in names]

    def _named(self, text: str, token_ids: Sequence[int], prompt: int, texts: dict[tuple[int, str], str]) -> str:
        tokens, name = _hash(token_ids), _hash(text)
        self._text_of[tokens] = name
        if (prompt, name) not in self._panel:
            texts[prompt, name] = text
        return tokens

    def _remember(self, evaluation: _Evaluation) -> None:
        self._done[self._generator.key(evaluation.point)] = evaluation
        self.counts.rays = len(self._done)
        if self._infer and any(evaluation.point):
            self._known.add(evaluation.point, evaluation.tokens)
        for prompt, (tokens, text) in enumerate(zip(evaluation.tokens, evaluation.texts, strict=True)):
            self._text_of[tokens] = text
            self._panel.remember((prompt, text), evaluation.scores[prompt])


def _read(line: Mapping[str, Any], names: Sequence[str]) -> _Evaluation:
    try:
        columns = [line["scores"][name] for name in names]
        return _Evaluation(
            tuple(map(float, line["point"])),
            tuple(line["tokens"]),
            tuple(line["texts"]),
            tuple(zip(*columns, strict=True)),
        )
    except (KeyError, TypeError, ValueError):
        raise SearchError("the log of the search is broken; --overwrite starts anew", param="resume") from None


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:_HASH]
