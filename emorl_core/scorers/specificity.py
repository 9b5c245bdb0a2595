"""Specificity: cosine similarity between the embeddings of prompt and reply, 0 if negative.

Uses any Hugging Face encoder (a folder or hub id), with mean pooling over the tokens (without padding). A reply that
copies the prompt gets 1, so use this as a metric, or as a factor with a scorer that penalises copies.
"""

# ruff: noqa: ARG002  one signature for all scorers
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from emorl_core.scorers.base import Context, Scorer, ScorerConfig, ScorerError, batches, clip, pick_device
from emorl_core.scorers.cross_encoder import load_pretrained, local_or_hub, pick_max_length

if TYPE_CHECKING:
    import torch


class SpecificityConfig(ScorerConfig):
    """The score is max(0, cos)."""

    kind: Literal["specificity"] = "specificity"
    model: str  # a folder or hub id of a sentence encoder
    revision: str | None = None
    max_length: int | None = Field(None, ge=8)  # tokens of one text; null: the checkpoint's limit, up to 512
    batch_size: int = Field(64, ge=1)  # texts per forward pass

    def build(self, context: Context) -> Scorer:
        return Specificity(self, context)


class Specificity:
    __name__ = "specificity"

    def __init__(self, config: SpecificityConfig, context: Context) -> None:
        from transformers import AutoModel

        where = local_or_hub(config.model, context.base)
        model, self.tokenizer, missing = load_pretrained(AutoModel, where, config.revision)
        untrained = [name for name in missing if "pooler" not in name]  # mean pooling does not use the pooler
        if untrained:
            raise ScorerError(
                f"model {config.model!r} has no trained encoder: the checkpoint lacks {untrained[0]}", param="model"
            )
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(pick_device(context.device))
        self.model.eval()
        self.max_length = pick_max_length(config.max_length, model, self.tokenizer, config.model)
        self.batch_size = config.batch_size

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        import torch

        # Samples share prompts, so each distinct text is encoded once.
        texts = list(dict.fromkeys([*prompts, *completions]))
        vectors = dict(zip(texts, self.embed(texts), strict=True))
        scores: list[float] = []
        for prompt, completion in zip(prompts, completions, strict=True):
            # An empty text has no meaning to compare, although its special tokens have a vector.
            if not prompt.strip() or not completion.strip():
                scores.append(0.0)
            else:
                scores.append(clip(float(torch.dot(vectors[prompt], vectors[completion]))))
        return scores

    def embed(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """One unit vector per text, float32 on the CPU."""
        import torch

        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        rows = [{name: values[index] for name, values in encoded.items()} for index in range(len(texts))]
        vectors: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        with torch.inference_mode():
            for batch in batches([len(row["input_ids"]) for row in rows], self.batch_size):
                padded = self.tokenizer.pad([rows[index] for index in batch], return_tensors="pt").to(self.model.device)
                hidden = self.model(**padded).last_hidden_state.float()  # [batch, S, D]
                mask = padded["attention_mask"][..., None].float()  # [batch, S, 1]
                mean = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
                for index, vector in zip(batch, torch.nn.functional.normalize(mean, dim=-1).cpu(), strict=True):
                    vectors[index] = vector
        return vectors
