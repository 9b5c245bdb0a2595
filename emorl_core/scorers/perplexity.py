"""Fluency as the perplexity of the reply *given the prompt* under a causal or seq2seq language model, in batches.

The published scorer uses the perplexity of prompt + reply, which rewards copying fluent prompts; `scope: both` keeps
that for the preset `paper`. Perplexity = exp(mean negative log-likelihood per scored token, natural log).
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError, batches, check_texts, clip, pick_device
from emorl_core.scorers.cross_encoder import load_pretrained, local_or_hub, pick_max_length

if TYPE_CHECKING:
    import torch


class PerplexityConfig(ScorerConfig):
    """`mapping` turns a perplexity into a score. `log` (default): 1 - log(ppl) / log(worst), so equal ratios of
    perplexity are equal steps. `linear`: (worst - ppl) / worst, as published. Both are 0 from `worst` on."""

    kind: Literal["perplexity"] = "perplexity"
    model: str  # a folder or hub id
    revision: str | None = None
    scope: Literal["response", "both"] = "response"  # whose tokens are scored; `both` only with causal models
    mapping: Literal["log", "linear"] = "log"
    worst: float = Field(1000.0, gt=1)  # perplexity at which the score is 0 (the published figure is 50)
    separator: str = " "  # between prompt and reply, for causal models
    max_length: int | None = Field(None, ge=8)  # tokens; the beginning of the prompt is truncated first
    batch_size: int = Field(16, ge=1)

    def build(self, context: Context) -> Scorer:
        return Perplexity(self, context)


class Perplexity:
    __name__ = "perplexity"

    def __init__(self, config: PerplexityConfig, context: Context) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        self.config = config
        where = local_or_hub(config.model, context.base)
        try:
            seq2seq = bool(AutoConfig.from_pretrained(where, revision=config.revision).is_encoder_decoder)
        except Exception as error:  # noqa: BLE001  transformers raises a dozen types
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise ScorerError(f"model {config.model!r} cannot be loaded: {reason}", param="model") from None
        if seq2seq and config.scope == "both":
            raise ScorerError(f"scope: both needs a causal model; {config.model!r} is seq2seq", param="scope")
        self.seq2seq = seq2seq
        auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self.model, self.tokenizer, missing = load_pretrained(auto, where, config.revision)
        if missing:
            raise ScorerError(
                f"model {config.model!r} has no trained head: the checkpoint lacks {missing[0]}", param="model"
            )
        self.model.to(pick_device(context.device)).eval()
        self.max_length = pick_max_length(config.max_length, self.model, self.tokenizer, config.model)

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        check_texts(self.__name__, prompts, completions)
        return [self.score(ppl) for ppl in self.perplexities(prompts, completions)]

    def score(self, ppl: float) -> float:
        """[1, inf] -> [0, 1]; NaN stays NaN."""
        worst = self.config.worst
        if self.config.mapping == "linear":
            return clip((worst - ppl) / worst) if ppl != math.inf else 0.0
        return clip(1 - math.log(ppl) / math.log(worst)) if ppl != math.inf else 0.0

    def perplexities(self, prompts: list[str], completions: list[str]) -> list[float]:
        """One per pair; inf for a completion without tokens, which is not fluent."""
        import torch

        rows = [self._row(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        found = [math.inf] * len(rows)
        scored = [index for index, (_, targets) in enumerate(rows) if any(target >= 0 for target in targets)]
        with torch.inference_mode():
            for batch in batches([sum(map(len, rows[index])) for index in scored], self.config.batch_size):
                chosen = [scored[at] for at in batch]
                for index, loss in zip(chosen, self._losses([rows[index] for index in chosen]), strict=True):
                    found[index] = math.exp(min(loss, 700.0)) if not math.isnan(loss) else math.nan
        return found

    def _row(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """Causal: (tokens, the token to predict at each position or -100). Seq2seq: (source, target)."""
        reply = self.tokenizer(completion, add_special_tokens=False)["input_ids"] if completion.strip() else []
        reply = reply[: self.max_length - 1]
        if self.seq2seq:
            source = self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"]
            return source, reply
        if not reply:
            return [], []
        # Prompt and reply are encoded separately, so that no token contains parts of both.
        given = self.tokenizer(prompt + self.config.separator, add_special_tokens=False)["input_ids"]
        start = self.tokenizer.bos_token_id
        head = [] if start is None else [start]
        room = self.max_length - len(reply) - len(head)
        given = given[-room:] if room > 0 else []
        tokens = head + given + reply
        # Without a start token, nothing predicts the very first token.
        first = len(head) + len(given) if self.config.scope == "response" else len(head)
        first = max(first, 1)
        return tokens, [token if place >= first else -100 for place, token in enumerate(tokens)]

    def _losses(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        """Mean negative log-likelihood of each row's targets."""
        import torch

        inputs, mask = self._padded([row[0] for row in rows], int(self.tokenizer.pad_token_id))
        targets, _ = self._padded([row[1] for row in rows], -100)
        if self.seq2seq:
            logits = self.model(input_ids=inputs, attention_mask=mask, labels=targets).logits
        else:
            logits = self.model(input_ids=inputs, attention_mask=mask).logits[:, :-1]
            targets = targets[:, 1:]
        each = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, reduction="none", ignore_index=-100
        )  # [batch, T]
        count = (targets != -100).sum(1)
        return [float(value) for value in (each.sum(1) / count).cpu()]

    def _padded(self, rows: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        width = max(map(len, rows))
        padded = [row + [filler] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        return torch.tensor(padded, device=self.model.device), torch.tensor(mask, device=self.model.device)
