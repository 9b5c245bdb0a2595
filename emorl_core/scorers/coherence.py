"""Coherence by natural-language inference: the prompt is the premise, the reply the hypothesis."""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError
from emorl_core.scorers.cross_encoder import CrossEncoder, CrossEncoderConfig

ENTAILMENT, CONTRADICTION = "entailment", "contradiction"


class CoherenceConfig(ScorerConfig):
    """`consistent`: 1 - P(contradiction): a reply may add something, but not contradict the client. `entailed`:
    P(entailment). The classifier must have named labels and a trained head; both are checked."""

    kind: Literal["coherence"] = "coherence"
    model: str  # a folder or hub id of an NLI classifier
    revision: str | None = None
    score: Literal["consistent", "entailed"] = "consistent"
    max_length: int | None = Field(None, ge=8)  # tokens of both texts together; null: the checkpoint's limit
    batch_size: int = Field(32, ge=1)

    def build(self, context: Context) -> Scorer:
        return Coherence(self, context)


class Coherence:
    __name__ = "coherence"

    def __init__(self, config: CoherenceConfig, context: Context) -> None:
        wanted = ENTAILMENT if config.score == "entailed" else CONTRADICTION
        self._turn = config.score == "consistent"
        shared = config.model_dump(include={"model", "revision", "max_length", "batch_size"})
        # `expected` accepts any classifier with classes; it is a placeholder until the label's exact spelling is known.
        encoder = CrossEncoder(CrossEncoderConfig(**shared, output="expected"), context, name=self.__name__)
        label = next((label for label in encoder.labels if label.lower() == wanted), None)
        if label is None:
            raise ScorerError(
                f"model {config.model!r} has no label {wanted!r}; it has {', '.join(encoder.labels)}. "
                "Name a classifier trained for natural-language inference",
                param="model",
            )
        encoder.output = label
        self._classifier = encoder

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        likely = self._classifier(prompts, completions)
        return [1.0 - p for p in likely] if self._turn else likely
