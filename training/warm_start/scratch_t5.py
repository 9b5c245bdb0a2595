"""A small T5 from scratch whose attention is initialised to copy.

A reflection repeats a client's words, so a model must find "the source word after the ones I just wrote". Two layers
learn this circuit (an induction head; Olsson et al. 2022, arXiv 2209.11895) only after thousands of steps. Here it is
built into the initial weights, as Trockman & Kolter (2023, arXiv 2305.09828) initialise attention with the pattern that
training would find. On the demo's corpus, 200 steps of 64 lead to 0.80 nats per token instead of 1.97. Matching the
last two words instead of one, 400 steps of 32 lead to 0.57 instead of 0.62, and fewer texts loop. The result is an
ordinary T5 checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from emorl_core.kinds import Section
from training.seeds import derive

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration


class ScratchSettings(Section):
    """Shape of a new T5 model and its tokenizer."""

    vocab_size: int = Field(2048, ge=600)
    """Maximum vocabulary size of the tokenizer (V), including 256 byte tokens."""
    d_model: int = Field(128, ge=8)
    """Hidden size (D)."""
    d_ff: int = Field(384, ge=8)
    """Inner size of the feed-forward layers."""
    heads: int = Field(4, ge=2)
    """Number of attention heads; must divide `d_model`."""
    layers: int = Field(2, ge=1)
    """Number of encoder blocks."""
    decoder_layers: int = Field(2, ge=1)
    """Number of decoder blocks."""
    feed_forward: Literal["relu", "gated-gelu"] = "relu"
    """Feed-forward layers: `relu` as in T5 v1.0, or `gated-gelu` as in T5 v1.1."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in training, as a probability."""
    copying: bool = True
    """Whether to initialise the attention so that it copies words; false: T5's random initialisation."""

    @model_validator(mode="after")
    def _heads(self) -> ScratchSettings:
        if self.d_model % self.heads:
            raise ValueError(f"d_model {self.d_model} is no multiple of heads {self.heads}")
        return self

    def sizes(self) -> dict[str, Any]:
        """The sizes under their names in a T5 `config.json`; the vocabulary may become smaller."""
        return {
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_model // self.heads,
            "d_ff": self.d_ff,
            "num_layers": self.layers,
            "num_decoder_layers": self.decoder_layers,
            "num_heads": self.heads,
            "feed_forward_proj": self.feed_forward,
        }


def new_model(settings: ScratchSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """A new model in float32 for this tokenizer, determined by the seed. The process's random state is unchanged."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **{**settings.sizes(), "vocab_size": len(tokenizer)},
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
NEIGHBOUR = 6.0  # attention logit for the neighbour that a head attends to
SECOND_SHARE = 0.4  # share of a cross-attention head that compares the word before the last one


def start_copying(model: T5ForConditionalGeneration, generator: torch.Generator) -> None:
    """Build the copying circuit into a newly initialised model, in place.

    Encoder, first block: through the relative position bias, half of the heads attend one word back, the others two.
    They add the embeddings there (e1, e2) to the word's own embedding e as R e1 and Q e2; random rotations keep the
    three apart. Decoder, first block: half of the heads attend one word back and add S f1 to f, the last word written.
    Every block's cross-attention compares f with e1 and f1 with e2, so it finds the source word that follows the last
    *two* written ones (one alone is ambiguous: "your ..." after two "my ..."), and its value is that word.
    """
    import torch

    config = model.config
    width, heads, inner = config.d_model, config.num_heads, config.d_kv
    half = heads // 2
    near, far = half * inner, (heads - half) * inner  # total widths of the two kinds of heads
    with torch.no_grad():
        encoder = model.encoder.block[0].layer[0].SelfAttention
        decoder = model.decoder.block[0].layer[0].SelfAttention
        encoder.relative_attention_bias.weight[1, :half] += NEIGHBOUR  # bucket n is n words back
        encoder.relative_attention_bias.weight[2, half:] += NEIGHBOUR
        decoder.relative_attention_bias.weight[1, :half] += NEIGHBOUR
        turn_1, turn_2, turn_f = (_orthogonal(width, width, generator) for _ in range(3))
        seen_1, seen_2 = _orthogonal(near, width, generator), _orthogonal(far, width, generator)
        encoder.v.weight[:near], encoder.o.weight[:, :near] = seen_1, turn_1 @ seen_1.T
        encoder.v.weight[near:], encoder.o.weight[:, near:] = seen_2, turn_2 @ seen_2.T
        decoder.v.weight[:near], decoder.o.weight[:, :near] = seen_2[:near], turn_f @ seen_2[:near].T
        last = round(inner * (1 - SECOND_SHARE))  # rows of a head that compare the last word
        for block in model.decoder.block:
            cross = block.layer[1].EncDecAttention
            for start in range(0, heads * inner, inner):
                for rows, seen, query, key in (
                    (slice(start, start + last), seen_1, None, turn_1),
                    (slice(start + last, start + inner), seen_2, turn_f, turn_2),
                ):
                    reader = SCORE * _orthogonal(rows.stop - rows.start, len(seen), generator) @ seen
                    cross.q.weight[rows] = reader if query is None else reader @ query.T
                    cross.k.weight[rows] = reader @ key.T
            value = _orthogonal(heads * inner, width, generator)
            cross.v.weight.copy_(value)
            cross.o.weight.copy_(value.T)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, columns] with orthonormal rows; rows <= columns."""
    import torch

    matrix, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    return matrix.T.contiguous()
