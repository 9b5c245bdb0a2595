"""Fluency of a reply to *this* client: its likelihood under the base here, compared with elsewhere.

Perplexity alone rewards stock phrases and repetitions, which are likely everywhere. So a reply's likelihood without a
prompt and under other clients' prompts counts against it, and a likelihood far above that of human replies is as
suspicious as one far below. The weights are fitted on human replies against corrupted ones
(`emorl train-scorer --loss fluency`).
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from emorl_core.config import Strict, faults
from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError, check_texts
from emorl_core.scorers.calibration import sigmoid
from emorl_core.scorers.cross_encoder import local_or_hub
from emorl_core.scorers.passes import Dtype, ModelPasses, PassesAfter

WEIGHTS_FILE = "fluency.json"
SYSTEM = "You are a counselor. Reflect what the client says in one or two short sentences."
# Invented prompts on different topics: a reply that is likely under these is likely everywhere.
OTHERS = (
    "I lost my job in March and since then I just sit at home all day.",
    "My daughter screams at me whenever I ask her to do her homework.",
)
FEATURES = ("below", "above", "over_free", "over_others", "end")


class FluencyWeights(Strict):
    """The weight of each feature of `Likelihood.features`. `centre`: the mean log-likelihood of human replies."""

    model_config = ConfigDict(allow_inf_nan=False)
    format: Literal["emorl-fluency/1"] = "emorl-fluency/1"
    dtype: Dtype = "float32"  # number format in which the model computes
    centre: float
    weights: dict[str, float]
    intercept: float

    def score(self, likelihood: Likelihood) -> float:
        """Score in [0, 1]; 0 for a reply without words."""
        if likelihood.given == -math.inf:
            return 0.0
        features = likelihood.features(self.centre)
        return sigmoid(self.intercept + math.fsum(self.weights[name] * features[name] for name in FEATURES))


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean log-likelihood per token of a reply: `given` its prompt, `free`: without a prompt, `others`: under other
    prompts. `end`: the log-likelihood of the end token after it."""

    given: float
    free: float
    others: float
    end: float

    def features(self, centre: float) -> dict[str, float]:
        off = self.given - centre
        values = (min(off, 0.0), -max(off, 0.0), self.given - self.free, self.given - self.others, max(self.end, -8.0))
        return dict(zip(FEATURES, values, strict=True))


class FluencyConfig(ScorerConfig):
    """Needs a causal base and the weights fitted with it."""

    kind: Literal["fluency"] = "fluency"
    model: str  # a folder or hub id of a causal language model, preferably the recipe's own base
    revision: str | None = None
    weights: str  # the folder written by `emorl train-scorer --loss fluency`
    max_length: int | None = Field(None, ge=32)  # tokens; the beginning of the prompt is truncated first
    batch_size: int = Field(16, ge=1)  # replies to one prompt that are read together

    def build(self, context: Context) -> Scorer:
        return Fluency(self, context)


class Fluency:
    __name__ = "fluency"

    def __init__(self, config: FluencyConfig, context: Context) -> None:
        folder = (context.base or Path()) / Path(config.weights).expanduser()
        self.weights = read_weights(folder)
        self.reader = LikelihoodReader(
            local_or_hub(config.model, context.base),
            config.revision,
            device=context.device,
            dtype=self.weights.dtype,
            max_length=config.max_length,
            batch_size=config.batch_size,
        )

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        check_texts(self.__name__, prompts, completions)
        return [self.weights.score(each) for each in self.reader.read(prompts, completions)]


def read_weights(folder: Path) -> FluencyWeights:
    """Raises `ScorerError` if the file is missing or not in this format."""
    try:
        found = FluencyWeights.model_validate_json((folder / WEIGHTS_FILE).read_bytes())
    except OSError:
        raise ScorerError(f"weights {str(folder)!r} has no {WEIGHTS_FILE}", param="weights") from None
    except ValidationError as fault:
        raise ScorerError(f"{WEIGHTS_FILE}: {faults(fault)[0]}", param="weights") from None
    if set(found.weights) != set(FEATURES):
        raise ScorerError(f"{WEIGHTS_FILE}: weights must be {', '.join(FEATURES)}", param="weights")
    return found


class LikelihoodReader:
    """A causal model that reads replies after prompts, in its chat template if it has one."""

    def __init__(
        self,
        where: str,
        revision: str | None,
        *,
        device: str,
        dtype: Dtype,
        max_length: int | None = None,
        batch_size: int = 16,
    ) -> None:
        self.passes = ModelPasses(where, revision, device=device, dtype=dtype, max_length=max_length)
        if self.passes.tokenizer.eos_token_id is None:
            raise ScorerError(f"model {where!r}: its tokenizer has no token that ends a reply", param="model")
        self._batch_size = batch_size
        self._elsewhere: list[PassesAfter] = []

    def read(self, prompts: Sequence[str], replies: Sequence[str]) -> list[Likelihood]:
        """One per pair, in order."""
        if not self._elsewhere:
            self._elsewhere = [PassesAfter(self.passes, self._context(text)) for text in ("", *OTHERS)]
        found = [Likelihood(-math.inf, -math.inf, -math.inf, -math.inf)] * len(replies)
        by_prompt: dict[str, dict[int, tuple[int, ...]]] = {}
        for at, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            tokens = self._reply(reply)
            if len(tokens) > 1:
                by_prompt.setdefault(prompt, {})[at] = tokens
        for prompt, own in by_prompt.items():
            to_read = list(own.values())
            given = self.passes.after(self.passes.context(self._context(prompt)), to_read, self._batch_size)
            elsewhere = [each.read(to_read) for each in self._elsewhere]
            for row, at in enumerate(own):
                free, *others = [float(each[row].likely[:-1].mean()) for each in elsewhere]
                likely = given[row].likely
                found[at] = Likelihood(
                    float(likely[:-1].mean()), free, math.fsum(others) / len(others), float(likely[-1])
                )
        return found

    def _reply(self, reply: str) -> tuple[int, ...]:
        tokenizer = self.passes.tokenizer
        ids = tokenizer(reply, add_special_tokens=False)["input_ids"] if reply.strip() else []
        return (*ids[: self.passes.max_length // 2], int(tokenizer.eos_token_id))

    def _context(self, prompt: str) -> list[int]:
        tokenizer, longest = self.passes.tokenizer, self.passes.max_length
        if tokenizer.chat_template:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        else:
            text = f"{prompt}\n"
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokenizer.chat_template and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        return ids[-(longest - longest // 2 - 1) :]
