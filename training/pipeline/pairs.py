"""The data of a recipe's `adapter_start`: records with replies, and their token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emorl_core.adapters.adapter import ACTIVATED_TASK
from emorl_core.models.config import read_config
from emorl_core.models.registry import adapter_task, family_of
from emorl_core.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from training.config import RecipeError
from training.data.prompts import encode_prompts
from training.data.records import Record
from training.data.wording import template_or_chat
from training.pipeline.base import records_with_replies
from training.pipeline.invocation import check_invoked
from training.pipeline.prepare import Data, records_hash
from training.recipe.recipe import Recipe
from training.rl.given import Given, Pair
from training.warm_start.examples import reply_encoder

GivenRecords = Mapping[str, tuple[Record, ...]]  # by objective


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """`given`, with the number of truncated prompts and of replies that were too long and left out."""

    given: Given
    cut: int
    too_long: int
    sha256: str  # of the records

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(pair.source) for pairs in self.given.pairs.values() for pair in pairs)

    def summary(self) -> str:
        """A one-line summary."""
        sizes = ", ".join(f"{len(pairs)} of {name}" for name, pairs in self.given.pairs.items())
        return f"adapter_start: pairs {sizes}; {self.cut} prompts cut, {self.too_long} replies too long and left out"


def given_records(recipe: Recipe, folder: Path, data: Data) -> GivenRecords:
    """Pairs by objective; empty for a recipe without `adapter_start`. folder: where relative paths start.

    Raises `DataError`, and `RecipeError` for an objective whose sources have no reply to fit on.
    """
    start = recipe.adapter_start
    if start is None:
        return {}
    return {
        name: tuple(records_with_replies(sources, f"adapter_start.sources.{name}", folder, data, recipe.data.split_by))
        for name, sources in start.sources.items()
    }


def encode_pairs(
    recipe: Recipe, records: GivenRecords, base: Path, invocation: tuple[int, ...] | None
) -> EncodedPairs | None:
    """As ids for the base in the folder `base`; None for a recipe without `adapter_start`. invocation: the tokens of
    every prompt from which adapters act; None: they act everywhere.

    Raises `RecipeError`: all replies are too long, or adapters would not act after some prompt.
    """
    start = recipe.adapter_start
    if start is None:
        return None
    encode = template_or_chat(recipe.prompt_template, recipe.chat, HuggingFaceTokenizer(base))
    config = read_config(base)
    ends = family_of(config).end_tokens(base, config)
    reply_of = reply_encoder(load_tokenizer(base), recipe.chat, ends, encoder=adapter_task(base) != ACTIVATED_TASK)
    pairs: dict[str, tuple[Pair, ...]] = {}
    cut = too_long = 0
    for name, own in records.items():
        prompts, longer = encode_prompts(own, encode, max_source_tokens=recipe.max_source_tokens)
        if invocation is not None:
            check_invoked(invocation, prompts)
        source_of = {prompt.text: prompt.source for prompt in prompts}
        replies = [(source_of[record.prompt], tuple(reply_of(record.response or ""))) for record in own]
        pairs[name] = tuple(Pair(*each) for each in replies if len(each[1]) <= recipe.rl.max_new_tokens)
        cut += longer
        too_long += len(replies) - len(pairs[name])
        if not pairs[name]:
            raise RecipeError(
                f"adapter_start.sources.{name}: every reply has more than {recipe.rl.max_new_tokens} tokens "
                "(rl.max_new_tokens)",
                param=f"adapter_start.sources.{name}",
            )
    every = [record for own in records.values() for record in own]
    return EncodedPairs(Given(start, pairs), cut, too_long, records_hash(every))
