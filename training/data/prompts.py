"""The prompts of a part of the data, as token ids in the template or chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from training.config import RecipeError
from training.data.records import Record

Encode = Callable[[str], Sequence[int]]  # a prompt -> its ids, in a template or chat


@dataclass(frozen=True, slots=True)
class Prompt:
    """`index`: position in the part. `source`: ids for sampling; `gradient_source`: ids for the gradient pass."""

    index: int
    text: str
    source: tuple[int, ...]
    gradient_source: tuple[int, ...]
    references: tuple[str, ...] = ()
    where: str = ""  # file and line, for messages
    extras: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def prompt(self) -> str:
        """The text, under the same name as in a record."""
        return self.text


def encode_prompts(
    records: Sequence[Record],
    encode: Encode,
    *,
    max_source_tokens: int,
    gradient_source_tokens: int | None = None,
) -> tuple[tuple[Prompt, ...], int]:
    """One `Prompt` per distinct prompt text, in order of first appearance, and how many were truncated to the limit.

    Raises `RecipeError` for a limit that the template alone exceeds.
    """
    prompts: dict[str, Prompt] = {}
    cut = 0
    for record in records:
        if record.prompt in prompts:
            continue
        source = fitted(encode, record.prompt, max_source_tokens, field="max_source_tokens")
        learned_from = source
        if gradient_source_tokens is not None:
            field = "rl.gradient_source_tokens"
            learned_from = fitted(encode, record.prompt, gradient_source_tokens, field=field)
        cut += source.cut
        prompts[record.prompt] = Prompt(
            len(prompts),
            record.prompt,
            source.ids,
            learned_from.ids,
            record.references,
            record.where,
            record.extras,
        )
    return tuple(prompts.values()), cut


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt's ids, and whether its text was truncated."""

    ids: tuple[int, ...]
    cut: bool


def fitted(encode: Encode, prompt: str, limit: int, *, field: str) -> Fitted:
    """The prompt in its template with at most `limit` ids: a longer text is truncated at its end, the template is kept.

    Raises `RecipeError`, naming `field`, for a limit that the template alone exceeds.
    """
    ids = tuple(encode(prompt))
    if len(ids) <= limit:
        return Fitted(ids, cut=False)
    ids = tuple(encode(""))
    if len(ids) >= limit:
        raise RecipeError(
            f"{field} is {limit}; the template takes {len(ids)} tokens by itself, which leaves none for a prompt",
            param=field,
        )
    fits, beyond = 0, len(prompt)  # characters
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        tried = tuple(encode(prompt[:middle]))
        if len(tried) <= limit:
            fits, ids = middle, tried
        else:
            beyond = middle
    return Fitted(ids, cut=True)
