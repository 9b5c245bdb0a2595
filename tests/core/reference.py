"""The judge of the golden tests: EMORL as published, in other people's code.

N separate Hugging Face models, N - 1 of them wrapped by PEFT, no cache, the whole forward again for every token; their
`decoder_hidden_states[-1]` are mixed and go through the base model's own head with its own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from tests.builders import outdated_peft

END, PAD = 1, 0


class SeparateModels:
    """Lane 0 is the bare base, lane i the base with adapter folder i - 1, each a model of its own."""

    def __init__(self, base: Path, adapters: Sequence[Path]) -> None:
        self.models: list[torch.nn.Module] = [AutoModelForSeq2SeqLM.from_pretrained(base).eval()]
        for folder in adapters:
            with outdated_peft():
                own = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), folder)
            self.models.append(own.eval())

    @torch.inference_mode()
    def hidden(self, prompts: Sequence[Sequence[int]], decoder_ids: Tensor) -> Tensor:
        """Ragged prompts, decoder inputs [B, T] with the start token -> last hidden states [N, B, T, D]."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[*p, *[PAD] * (longest - len(p))] for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (longest - len(p)) for p in prompts])
        states = []
        for model in self.models:
            out = model(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=decoder_ids,
                output_hidden_states=True,
                use_cache=False,
            )
            states.append(out.decoder_hidden_states[-1])
            # The published recipe rests on this: the last state is what the model's own head reads.
            torch.testing.assert_close(self.head(states[-1]), out.logits)
        return torch.stack(states)

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]: the base model's own head. mT5's never scales."""
        base: Any = self.models[0]
        scaled = getattr(base.config, "scale_decoder_outputs", False)
        logits: Tensor = base.lm_head(hidden * base.config.d_model**-0.5 if scaled else hidden)
        return logits

    def mixed_logits(self, prompts: Sequence[Sequence[int]], weights: Tensor, decoder_ids: Tensor) -> Tensor:
        """weights [B, N] -> [B, T, V]."""
        return self.head(torch.einsum("bn,nbtd->btd", weights, self.hidden(prompts, decoder_ids)))

    def greedy(
        self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], max_new_tokens: int
    ) -> list[tuple[int, ...]]:
        """One list of token ids per row, the end of sequence included, nothing after it."""
        mix = torch.tensor(weights)
        decoder_ids = torch.zeros(len(prompts), 1, dtype=torch.int64)
        for _ in range(max_new_tokens):
            chosen = self.mixed_logits(prompts, mix, decoder_ids)[:, -1].argmax(-1, keepdim=True)
            decoder_ids = torch.cat([decoder_ids, chosen], dim=1)
        rows = [row[1:] for row in decoder_ids.tolist()]
        return [tuple(row[: row.index(END) + 1] if END in row else row) for row in rows]
