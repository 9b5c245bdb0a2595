"""A scorer with a penalty for replies that also score high under other clients' prompts.

Score = s(prompt, reply) · (1 - mean of s(other prompt, reply)), over training prompts drawn for each pair. Whatever s
is, a sentence with the same score under every prompt gets at most 1/4, which limits what a constant reply can gain.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any, Literal

from pydantic import Field

from emorl_core.scorers.base import Checked, Context, Scorer, ScorerConfig, ScorerError, clip
from emorl_core.scorers.words import prompt_key


class ContrastConfig(ScorerConfig):
    """`of` is called 1 + `others` times for each reply."""

    kind: Literal["contrast"] = "contrast"
    of: dict[str, Any] | str  # a scorer, specified as on its own
    others: int = Field(2, ge=1, le=16)  # prompts of other clients, drawn from the recipe's training part

    @property
    def reads_corpus(self) -> bool:
        return True

    @property
    def parts(self) -> tuple[object, ...]:
        return (self.of,)

    def build(self, context: Context) -> Scorer:
        assert context.part is not None  # set by the registry, which builds every scorer
        prompts = list({prompt_key(record.prompt): record.prompt for record in context.corpus}.values())
        if len(prompts) < self.others + 1:
            raise ScorerError(
                f"contrast: the training part has {len(prompts)} prompts; needed: {self.others + 1}", param="others"
            )
        return Contrast(context.part(self.of, "scorer.of"), prompts, self.others)


class Contrast:
    """Deterministic: the prompts drawn depend only on the pair."""

    def __init__(self, scorer: Checked, prompts: list[str], others: int) -> None:
        self.scorer, self.prompts, self.others = scorer, prompts, others
        self.__name__ = f"contrast({scorer.__name__})"

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        own = self.scorer(prompts, completions, **kwargs)
        elsewhere = [self._drawn(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        # Data columns belong to the client, not to the other prompts.
        others = self.scorer(
            [other for drawn in elsewhere for other in drawn],
            [text for text in completions for _ in range(self.others)],
        )
        scores = []
        for place, score in enumerate(own):
            mine = others[place * self.others : (place + 1) * self.others]
            scores.append(clip(score * (1 - math.fsum(mine) / self.others)))
        return scores

    def _drawn(self, prompt: str, reply: str) -> list[str]:
        seed = hashlib.sha256(f"{prompt}\x00{reply}".encode()).digest()
        drawn = random.Random(seed).sample(self.prompts, self.others + 1)
        return [other for other in drawn if prompt_key(other) != prompt_key(prompt)][: self.others]
