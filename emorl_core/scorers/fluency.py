"""Fluency of a reply to *this* client: its likelihood under the base here, compared with elsewhere.

Perplexity alone rewards stock phrases and repetitions, which are likely everywhere. So a reply's likelihood without a
prompt and under other clients' prompts counts against it, and a likelihood far above that of human replies is as
suspicious as one far below. The weights are fitted on human replies against corrupted ones
(`emorl train-scorer --loss fluency`).
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from emorl_core.config import Strict, faults
from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError, batches, check_texts, pick_device
from emorl_core.scorers.calibration import sigmoid
from emorl_core.scorers.cross_encoder import load_pretrained, local_or_hub, pick_max_length

if TYPE_CHECKING:
    import torch

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
    batch_size: int = Field(16, ge=1)

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
        self, where: str, revision: str | None, *, device: str, max_length: int | None, batch_size: int
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.model, self.tokenizer, missing = load_pretrained(AutoModelForCausalLM, where, revision)
        if missing:
            raise ScorerError(f"model {where!r} has no trained head: it lacks {missing[0]}", param="model")
        if self.tokenizer.eos_token_id is None:
            raise ScorerError(f"model {where!r}: its tokenizer has no token that ends a reply", param="model")
        self.model.to(pick_device(device)).eval()
        self.max_length = pick_max_length(max_length, self.model, self.tokenizer, where)
        self.batch_size = batch_size
        self._elsewhere = [self._context(text) for text in ("", *OTHERS)]
        self._caches: dict[int, Any] = {}

    def read(self, prompts: list[str], replies: list[str]) -> list[Likelihood]:
        """One per pair, in order."""
        ids = [self._reply(reply) for reply in replies]
        nothing = Likelihood(-math.inf, -math.inf, -math.inf, -math.inf)
        found = [nothing] * len(ids)
        some = [at for at, own in enumerate(ids) if len(own) > 1]
        for batch in batches([len(ids[at]) + len(prompts[at]) // 4 for at in some], self.batch_size):
            chosen = [some[at] for at in batch]
            own = [ids[at] for at in chosen]
            given = self._behind([self._context(prompts[at]) for at in chosen], own)
            free, *others = [self._behind_fixed(number, own) for number in range(len(self._elsewhere))]
            for place, at in enumerate(chosen):
                elsewhere = [each[place][0] for each in others]
                found[at] = Likelihood(
                    given[place][0], free[place][0], math.fsum(elsewhere) / len(elsewhere), given[place][1]
                )
        return found

    def _reply(self, reply: str) -> list[int]:
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"] if reply.strip() else []
        return [*ids[: self.max_length // 2], int(self.tokenizer.eos_token_id)]

    def _context(self, prompt: str) -> list[int]:
        if self.tokenizer.chat_template:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        else:
            text = f"{prompt}\n"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        start = self.tokenizer.bos_token_id
        if not self.tokenizer.chat_template and start is not None:
            ids = [start, *ids]
        return ids[-(self.max_length - self.max_length // 2 - 1) :]

    def _behind(self, contexts: list[list[int]], replies: list[list[int]]) -> list[tuple[float, float]]:
        """(mean log-likelihood of the reply's tokens, log-likelihood of its end) for each."""
        import torch

        rows = [context + reply for context, reply in zip(contexts, replies, strict=True)]
        width = max(map(len, rows))
        inputs = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits
        found = []
        for row, (context, reply) in enumerate(zip(contexts, replies, strict=True)):
            first = len(context)
            found.append(_likelihood(logits[row, first - 1 : first - 1 + len(reply)], reply))
        return found

    def _behind_fixed(self, number: int, replies: list[list[int]]) -> list[tuple[float, float]]:
        """As `_behind`, after one of the fixed prompts, which is read only once."""
        import torch

        context = self._elsewhere[number]
        with torch.inference_mode():
            if number not in self._caches:
                ids = torch.tensor([context], device=self.model.device)
                read = self.model(input_ids=ids, use_cache=True)
                self._caches[number] = (read.past_key_values, read.logits[0, -1])
            cache, last = self._caches[number]
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(replies))
            width = max(map(len, replies))
            inputs = torch.tensor([own + [0] * (width - len(own)) for own in replies], device=self.model.device)
            mask = torch.tensor(
                [[1] * (len(context) + len(own)) + [0] * (width - len(own)) for own in replies],
                device=self.model.device,
            )
            logits = self.model(input_ids=inputs, attention_mask=mask, past_key_values=cache).logits
        return [
            _likelihood(torch.cat([last[None], logits[row, : len(own) - 1]]), own) for row, own in enumerate(replies)
        ]


def _likelihood(logits: torch.Tensor, reply: list[int]) -> tuple[float, float]:
    """logits: [tokens of the reply and its end, V], each predicting the token at its position."""
    each = logits.float().log_softmax(-1)[range(len(reply)), reply]
    return float(each[:-1].mean()), float(each[-1])
