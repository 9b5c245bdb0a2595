"""Prompts of a part of the data, in the template and as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emorl_core.bundle import split_template
from emorl_core.text.tokenizer import Tokenizer
from training.data.records import Record


@dataclass(frozen=True, slots=True)
class Prompt:
    """`index`: its place in the part. `source`: what is sampled from; `gradient_source`: what is trained on."""

    index: int
    text: str
    source: tuple[int, ...]
    gradient_source: tuple[int, ...]
    references: tuple[str, ...] = ()
    where: str = ""  # file and line, for messages
    extras: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def prompt(self) -> str:
        """The text, by the name that a record has for it."""
        return self.text


def encode_prompts(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_source_tokens: int,
    gradient_source_tokens: int | None = None,
) -> tuple[tuple[Prompt, ...], int]:
    """One `Prompt` per distinct prompt text, in order of first appearance, and how many were cut to the limit."""
    around = split_template(template)
    prompts: dict[str, Prompt] = {}
    cut = 0
    for record in records:
        if record.prompt in prompts:
            continue
        ids = tuple(tokenizer.encode_prompt(record.prompt, *around))
        cut += len(ids) > max_source_tokens
        source = cut_source(ids, max_source_tokens)
        prompts[record.prompt] = Prompt(
            len(prompts),
            record.prompt,
            source,
            source if gradient_source_tokens is None else cut_source(ids, gradient_source_tokens),
            record.references,
            record.where,
            record.extras,
        )
    return tuple(prompts.values()), cut


def cut_source(ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """At most `limit` ids; the last one, the tokenizer's end of sequence, stays."""
    return ids if len(ids) <= limit else (*ids[: limit - 1], ids[-1])
