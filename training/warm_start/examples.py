"""Training examples from prompts and replies: a prompt's ids as a server encodes them, and a reply's with its end.

With an encoder the prompt is the input and the reply the labels. A decoder-only model reads both as one sequence, in
which prompt tokens have no label.
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

NO_LABEL = -100  # torch's cross-entropy and transformers ignore positions with this label


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids. For a decoder-only model, `labels` has the length of `ids`."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts and replies become ids. `reply` includes the end of the reply, and possibly what follows it."""

    prompt: Encode
    reply: Encode


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples, and how many prompts and replies exceeded their limits."""

    examples: list[Example]
    cut_sources: int
    cut_targets: int


def wording_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str, chat: ChatSettings | None
) -> Wording:
    """The encoding of prompts and replies for this model. Raises BundleError for a chat without a usable chat
    template."""
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
    """Encodes a reply, including its end. ends: the ids that end a text or a turn; encoder: whether the model has one.

    Raises BundleError for a chat without a usable chat template.
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
    # Use the tokenizer's own end if the model has several: others end turns of chats.
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
    """pairs: (prompt, reply). Prompts and replies beyond their limits are truncated; a reply keeps its end token.

    Raises RecipeError for a template that alone exceeds `max_source_tokens`, FitError for a sequence that exceeds the
    model's positions.
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
    """The ids that end a text or a turn, by the model's generation config or else its config. A base without any is not
    loaded (`emorl_core.text.vocabulary`)."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = model.config.eos_token_id if found is None else found
    return [found] if isinstance(found, int) else [*found]
