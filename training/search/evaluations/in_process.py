"""Points -> evaluations in this process: one shared sweep for all that are new, then the scorers on the new texts.

For a given prefix a lane's logits are fixed and the mix is linear in the weights, so "this token is the largest" is a
half-space for every other token: the weight vectors that give one greedy text form a convex cone. When two vectors give
the same tokens, so does every vector between them. (Greedy decoding of mixed hidden states, weights from 0.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Checked
from emorl_core.scorers.asking import Asked, Panel
from training.data.records import Record
from training.search.evaluations.evaluation import Counts, Evaluation, name_of
from training.search.evaluations.evaluator import EvaluatingOver
from training.search.evaluations.generator import EnsembleGenerator, Generator
from training.search.strategies.spaces import Point

# Two directions are opposite when their cosine is this near to -1: 5e-7 rad, far below the distance of grid points.
_OPPOSITE = 1e-13


class Known:
    """The generated directions, with each prompt's tokens under them."""

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts
        self._directions: list[np.ndarray] = []
        self._tokens: list[list[str]] = []  # names of token sequences, per direction and prompt

    def add(self, point: Point, tokens: Sequence[str]) -> None:
        """point: not the zero vector; tokens: one name of a token sequence per prompt."""
        self._directions.append(_direction(point))
        self._tokens.append(list(tokens))

    def implied(self, point: Point) -> list[str | None]:
        """For each prompt the hash of the tokens that `point` must give, or None if unknown."""
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


def over_ensemble(
    ensemble: Ensemble, objectives: Sequence[str], scorers: Mapping[str, Checked], *, max_new_tokens: int
) -> EvaluatingOver:
    """Points are weights of these objectives."""

    def over(records: Sequence[Record], settled: Callable[[int], None]) -> InProcess:
        prompts = [record.prompt for record in records]
        generator = EnsembleGenerator(ensemble, objectives, prompts, max_new_tokens=max_new_tokens)
        return InProcess(generator, records, scorers, settled=settled)

    return over


class InProcess:
    """Evaluates points over one set of prompts with a generator and scorers in this process."""

    def __init__(
        self,
        generator: Generator,
        about: Sequence[Asked],
        scorers: Mapping[str, Checked],
        *,
        infer: bool = True,
        settled: Callable[[int], None] = lambda texts: None,
    ) -> None:
        """about: the generator's prompts as the scorers see them; infer: use `implied` to avoid generating texts, if
        only the direction of a point matters; settled: called with the number of new texts."""
        self.names = tuple(scorers)
        self.counts = Counts()
        self._generator, self._about = generator, tuple(about)
        self._panel, self._settled = Panel(scorers), settled  # asked by (prompt, name of text)
        self._infer = infer
        self._known = Known(len(self._about))
        self._text_of: dict[str, str] = {}  # name of tokens -> name of their text

    def key(self, point: Point) -> Hashable:
        return self._generator.key(point)

    def evaluate(self, points: Sequence[Point]) -> list[Evaluation]:
        """Raises `EngineError`, `ScorerError`."""
        texts: dict[tuple[int, str], str] = {}  # (prompt, name of text) -> text, of those to be scored
        tokens = self._tokens(points, texts)
        self._panel.score({key: (self._about[key[0]], text) for key, text in texts.items()})
        self.counts.texts_scored += len(texts)
        made = []
        for point, own in zip(points, tokens, strict=True):
            named = tuple(self._text_of[name] for name in own)
            scores = tuple(self._panel[prompt, name] for prompt, name in enumerate(named))
            made.append(Evaluation(point, tuple(own), named, scores))
        return made

    def remember(self, evaluation: Evaluation) -> None:
        if self._infer and any(evaluation.point):
            self._known.add(evaluation.point, evaluation.tokens)
        for prompt, (tokens, text) in enumerate(zip(evaluation.tokens, evaluation.texts, strict=True)):
            self._text_of[tokens] = text
            self._panel.remember((prompt, text), evaluation.scores[prompt])

    def _tokens(self, points: Sequence[Point], texts: dict[tuple[int, str], str]) -> list[list[str]]:
        """Hashes of the tokens, [points][prompts]; adds texts that are not scored yet to `texts`."""
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
        tokens, name = name_of(token_ids), name_of(text)
        self._text_of[tokens] = name
        if (prompt, name) not in self._panel:
            texts[prompt, name] = text
        return tokens
