"""Prompts and replies -> what a model is fitted on: the ids of a prompt that a server makes, and a reply with its end.

With an encoder the prompt is the input and the reply the labels; a decoder-only model reads both as one sequence, in
which the prompt has no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emorl_core.bundles.bundle import split_template
from emorl_core.text.chat import ChatTemplate, Message
from emorl_core.text.control_tokens import prompt_encoder
from training.data.prompts import Encode, fitted
from training.data.wording import ChatSettings
from training.warm_start.errors import FitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NO_LABEL = -100  # torch's cross-entropy and transformers leave such places out


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids. `labels` are as long as `ids` for a decoder-only model."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts and replies become ids. `reply` gives the end of the reply too, and maybe what comes behind it."""

    prompt: Encode
    reply: Encode


@dataclass(frozen=True, slots=True)
class Examples:
    """And how many prompts and replies were longer than their limits."""

    examples: list[Example]
    cut_sources: int
    cut_targets: int


def wording_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str, chat: ChatSettings | None
) -> Wording:
    """Raises BundleError for a chat without a chat template that can be used."""
    reply = reply_encoder(tokenizer, chat, _end_tokens(model), encoder=model.config.is_encoder_decoder)
    if chat is not None:
        turns = ChatTemplate(tokenizer, system=chat.system)
        return Wording(lambda prompt: turns.encode([Message("user", prompt)]), reply)
    encode = prompt_encoder(tokenizer).encode
    before, after = split_template(template)
    return Wording(lambda prompt: encode(before, prompt, after), reply)


def reply_encoder(
    tokenizer: PreTrainedTokenizerBase, chat: ChatSettings | None, ends: Sequence[int], *, encoder: bool
) -> Encode:
    """A reply -> its ids and its end. ends: the ids that end a text or a turn; encoder: whether the model has one.

    Raises BundleError for a chat without a chat template that can be used.
    """
    encode = prompt_encoder(tokenizer).encode
    if chat is not None:
        turns = ChatTemplate(tokenizer, system=chat.system)

        def in_turn(reply: str) -> list[int]:
            ids = turns.encode_reply(reply)
            place = next((i for i, token in enumerate(ids) if token in ends), None)
            return [*ids, ends[0]] if place is None else ids[: place + 1]

        return in_turn
    if encoder:
        return lambda reply: encode("", reply, "")
    # The tokenizer's own end where the model has several: others end turns of chats.
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    return lambda reply: [*encode("", reply, "", whole=False), end]


def make_examples(
    model: PreTrainedModel,
    wording: Wording,
    pairs: Sequence[tuple[str, str]],
    *,
    max_source_tokens: int,
    max_target_tokens: int,
) -> Examples:
    """pairs: (prompt, reply). A longer prompt's text is cut; a longer reply keeps its end.

    Raises RecipeError for a template that exceeds `max_source_tokens` alone, FitError for a sequence that exceeds the
    positions of the model.
    """
    whole, cut_sources, cut_targets = [], 0, 0
    positions = None if model.config.is_encoder_decoder else getattr(model.config, "max_position_embeddings", None)
    for prompt, reply in pairs:
        source = fitted(wording.prompt, prompt, max_source_tokens, field="max_source_tokens")
        target = [*wording.reply(reply)]
        cut_sources += source.cut
        if len(target) > max_target_tokens:
            cut_targets += 1
            target = [*target[: max_target_tokens - 1], target[-1]]
        if model.config.is_encoder_decoder:
            whole.append(Example([*source.ids], target))
        else:
            whole.append(Example([*source.ids, *target], [NO_LABEL] * len(source.ids) + target))
    longest = max(len(example.ids) for example in whole)
    if positions is not None and longest > positions:
        raise FitError(
            f"a prompt and its reply have {longest} tokens, and the base has {positions} positions; lower "
            "max_source_tokens or fit.max_target_tokens",
            param="max_target_tokens",
        )
    return Examples(whole, cut_sources, cut_targets)


def _end_tokens(model: PreTrainedModel) -> list[int]:
    """What ends a text or a turn, by the model's generation config or, without, its config. A base that has none is not
    loaded (`emorl_core.text.vocabulary`)."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = model.config.eos_token_id if found is None else found
    return [found] if isinstance(found, int) else [*found]
