"""A small T5 from scratch whose attention starts out able to copy.

A reflection says a client's words back, so a model must find "the source word after the one I just wrote". Two layers
learn that circuit (an induction head; Olsson et al. 2022, arXiv 2209.11895) only after thousands of steps. Here it is
put in at the start, as Trockman & Kolter (2023, arXiv 2305.09828) start attention from the pattern that training would
find: on the demo's corpus 200 steps then reach a loss that 2,000 plain ones do not. The checkpoint is an ordinary T5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from training.section import Section
from training.seeds import derive

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration


class ScratchSettings(Section):
    """Shape of a new T5 and of the tokenizer that is trained for it."""

    vocab_size: int = Field(2048, ge=600)
    """Tokens at most, the 256 bytes included (V)."""
    d_model: int = Field(128, ge=8)
    """Width of the hidden states (D)."""
    d_ff: int = Field(384, ge=8)
    """Width inside the feed-forward layers."""
    heads: int = Field(4, ge=2)
    """Attention heads, each d_model / heads wide."""
    layers: int = Field(2, ge=1)
    """Encoder blocks."""
    decoder_layers: int = Field(2, ge=1)
    """Decoder blocks."""
    feed_forward: Literal["relu", "gated-gelu"] = "relu"
    """`relu` as in T5 v1.0, `gated-gelu` as in T5 1.1."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations dropped in training."""
    copying: bool = True
    """Start with attention that copies; false: T5's own random start."""

    @model_validator(mode="after")
    def _heads(self) -> ScratchSettings:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of heads {self.heads}")
        return self


def new_model(settings: ScratchSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """A fresh model in float32 for this tokenizer, the same for the same seed. The process's random state is kept."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=settings.d_model,
        d_kv=settings.d_model // settings.heads,
        d_ff=settings.d_ff,
        num_layers=settings.layers,
        num_decoder_layers=settings.decoder_layers,
        num_heads=settings.heads,
        feed_forward_proj=settings.feed_forward,
        dropout_rate=settings.dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "model"))
        model = T5ForConditionalGeneration(config)
        if settings.copying:
            start_copying(model, torch.Generator().manual_seed(derive(seed, "copying")))
    return model


SCORE = 0.5  # scale of the matching queries and keys
NEIGHBOUR = 6.0  # attention logit for the neighbour that a head looks at


def start_copying(model: T5ForConditionalGeneration, generator: torch.Generator) -> None:
    """Lay the copying circuit into a freshly initialised model, in place.

    Encoder, first block: half of the heads attend to the word before (by the relative position bias) and add its
    embedding e' to the state as R e', with R a random rotation that keeps it apart from the word's own. Decoder, every
    block's cross-attention: query P e of the word just written against key P R^T (e + R e') matches where the word
    before is the one just written; the value brings back the source word found there.
    """
    import torch

    config = model.config
    width, heads, inner = config.d_model, config.num_heads, config.d_kv
    half = heads // 2
    with torch.no_grad():
        first = model.encoder.block[0].layer[0].SelfAttention
        buckets = config.relative_attention_num_buckets // 2  # of one direction; bucket n is n tokens back
        first.relative_attention_bias.weight[1, :half] += NEIGHBOUR
        if half < heads - 1:
            first.relative_attention_bias.weight[buckets + 1, half] += NEIGHBOUR  # one head looks at the word after
        rotation = _orthogonal(width, width, generator)
        seen = _orthogonal(half * inner, width, generator)  # the part of e' that fits through the heads
        first.v.weight[: half * inner] = seen
        first.o.weight[:, : half * inner] = rotation @ seen.T
        for block in model.decoder.block:
            cross = block.layer[1].EncDecAttention
            for head in range(heads):
                rows = slice(head * inner, (head + 1) * inner)
                reader = _orthogonal(inner, half * inner, generator) @ seen
                cross.q.weight[rows] = SCORE * reader
                cross.k.weight[rows] = SCORE * reader @ rotation.T
            value = _orthogonal(heads * inner, width, generator)
            cross.v.weight.copy_(value)
            cross.o.weight.copy_(value.T)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, columns] with orthonormal rows; rows <= columns."""
    import torch

    matrix, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    return matrix.T.contiguous()
